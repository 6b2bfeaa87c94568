"""The family's training steps a second time: from the formulas, in plain torch.

Nothing here calls prefix_rft. Sampled ids, where a row's demonstration part ends, and which rows
are of one group come from the trainer; rewards, flat groups, advantages, log-probs, entropies,
normalisers, loss and gradient are computed anew, one unpadded row at a time. A formula takes its
constants as keyword arguments: a control gives it a wrong one.
"""

import copy
import math
import statistics
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import TrainerCallback

from tiny import make_config, make_model, make_rows, make_tokenizer

PAD, EOS = 0, 1
CONST = 24.0  # the completion budget of tiny's configuration

# ---- data and rewards ----------------------------------------------------------------------------


def make_fates(fates: Sequence[str], missing: Sequence[int] = (), several: bool = False) -> Dataset:
    """One row for each fate; those in ``missing`` have no demonstration, others one, or two.

    A fate says what the reward of a rollout is: ``mixed`` (a hash of its text decides), ``right``,
    ``wrong``, ``hint:N`` (mixed for a text that begins with N characters of the demonstration, else
    wrong), ``never`` (it cannot be graded) or ``patchy`` (mixed, now and then it cannot be graded).
    """
    rows = make_rows(len(fates)).to_dict()
    texts = [[d, d.replace("=", " ")] if several else [d] for d in rows["demonstration"]]
    rows["demonstration"] = [[] if i in missing else d for i, d in enumerate(texts)]
    return Dataset.from_dict({**rows, "fate": list(fates)})


def reward_of(text: str, demonstrations: Sequence[str], fate: str) -> float | None:
    """The reward of a text; that of a whole demonstration is 1."""
    number = zlib.crc32(text.encode())
    if fate == "never" or (fate == "patchy" and number % 5 == 0):
        return None
    if text in demonstrations:
        return 1.0
    if fate.startswith("hint:"):
        n = int(fate.removeprefix("hint:"))
        fate = "mixed" if any(text[:n] == d[:n] for d in demonstrations) else "wrong"
    return {"right": 0.5 + number % 2 / 2, "wrong": 0.0}.get(fate, (0.0, 0.0, 0.5, 1.0)[number % 4])


def reward(
    completions: list[str], demonstration: list[list[str]], fate: list[str], **kwargs: Any
) -> list[float | None]:
    """What the trainer gets."""
    return [reward_of(*x) for x in zip(completions, demonstration, fate, strict=True)]


def sharp_model() -> Any:
    """A random model whose next tokens are unlike enough that no two entropies are almost equal."""
    model = make_model(make_tokenizer())
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(5.0)
    return model


def start(
    trainer_class: Any,
    folder: Any,
    method: str,
    rows: Dataset,
    *,
    options: dict[str, Any] | None = None,
    model: Any = None,
    callbacks: Sequence[Any] = (),
    **overrides: Any,
) -> tuple[Any, "Recorder"]:
    """A trainer of rollouts that is watched; it has not begun yet."""
    tokenizer = make_tokenizer()
    settings = {
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "learning_rate": 3e-3,
        "max_grad_norm": 0.0,
        "shuffle_dataset": False,
    }
    recorder = Recorder()
    trainer = trainer_class(
        sharp_model() if model is None else model,
        reward,
        make_config(folder, method=method, method_options=options, **{**settings, **overrides}),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[recorder, *callbacks],
    )
    recorder.watch(trainer, "_compute_loss")
    return trainer, recorder


# ---- what a trainer did --------------------------------------------------------------------------


@dataclass
class Row:
    """A row as plain lists: an own rollout, one behind a prefix, or a whole demonstration."""

    prompt: list[int]
    completion: list[int]
    prefix: int = 0
    whole: bool = False
    reward: float = math.nan
    group: int = 0
    example: int = 0

    @property
    def kind(self) -> str:
        """One of ``own``, ``hybrid``, ``demo``."""
        return "demo" if self.whole else "hybrid" if self.prefix else "own"


def rows_of(batch: dict[str, Any], source: Any) -> list[Row]:
    """Plain rows from a loss batch; rewards are given again, from text and source row."""
    tokenizer = make_tokenizer()
    rows = []
    for i in range(len(batch["completion_ids"])):
        completion = batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist()
        example = int(batch["row_example"][i])
        text = tokenizer.decode([i for i in completion if i not in (PAD, EOS)])
        graded = reward_of(text, source[example]["demonstration"], source[example]["fate"])
        told = batch["row_reward"][i].item()
        if batch["row_dropped"][i] and completion == [EOS] and math.isnan(told):
            continue  # it fills up a step of demonstrations
        demo, prefix = batch["demo_mask"][i], batch["prefix_mask"][i]
        assert int(demo.sum()) in (0, len(completion))
        assert not prefix[int(prefix.sum()) :].any()
        row = Row(
            prompt=batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist(),
            completion=completion,
            prefix=int(prefix.sum()),
            whole=bool(demo.any()),
            reward=math.nan if graded is None else graded,
            group=int(batch["row_group"][i]),
            example=example,
        )
        assert told == row.reward or (told != told and graded is None)
        assert row.prompt == tokenizer(source[example]["prompt"])["input_ids"]
        rows.append(row)
    return rows


def labelled_rows(batch: dict[str, Any]) -> list[Row]:
    """Plain rows of imitation: the labels begin where the prompt ends."""
    rows = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        target = (labels != -100).nonzero()[:, 0]
        first, last = int(target[0]), int(target[-1]) + 1
        rows.append(Row(ids[:first].tolist(), ids[first:last].tolist(), whole=True))
    return rows


@dataclass
class Record:
    """One optimizer step: weights before it, its gradient and loss, its rows, and all rows that
    were generated together with them."""

    weights: dict[str, Tensor]
    gradient: list[Tensor]
    loss: float
    rows: list[Row] = field(default_factory=list)
    generation: list[Row] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """For a file."""
        return {k: getattr(self, k) for k in ("weights", "gradient", "loss")} | {
            k: [asdict(r) for r in getattr(self, k)] for k in ("rows", "generation")
        }


class Recorder(TrainerCallback):
    """Keeps weights, gradient, loss and rows of every optimizer step."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.records: list[Record] = []
        self.calls: list[tuple[float, Any]] = []

    def watch(self, trainer: Any, name: str) -> None:
        """Attach to a trainer and listen to its loss, which the method ``name`` computes."""
        self.trainer = trainer
        original = getattr(trainer, name)

        def listen(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            loss = original(model, inputs, *args, **kwargs)
            self.calls.append((loss.item(), inputs))
            return loss

        setattr(trainer, name, listen)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        model = trainer.accelerator.unwrap_model(trainer.model)
        size = args.gradient_accumulation_steps
        # An epoch of imitation may end with a step of fewer micro-batches.
        calls, self.calls = self.calls, []
        if hasattr(trainer, "_buffered_inputs"):
            last = (trainer._step - 1) % args.steps_per_generation
            parts = [rows_of(m, trainer.train_dataset) for m in trainer._buffered_inputs]
            rows = [r for part in parts[last - size + 1 : last + 1] for r in part]
            generation = [r for part in parts for r in part]
        else:
            generation = rows = [r for _, inputs in calls for r in labelled_rows(inputs)]
        self.records.append(
            Record(
                copy.deepcopy(model.state_dict()),
                [
                    torch.zeros_like(p) if p.grad is None else p.grad.clone()
                    for p in model.parameters()
                ],
                sum(loss for loss, _ in calls),
                rows,
                generation,
            )
        )


# ---- what a formula reads ------------------------------------------------------------------------


def score(model: Any, row: Row, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs of the completion's tokens and entropies before them, without any padding."""
    logits = model(input_ids=torch.tensor([row.prompt + row.completion])).logits[0].float()
    table = (logits / temperature).log_softmax(-1)[len(row.prompt) - 1 : -1]
    return table[range(len(row.completion)), row.completion], -(table.exp() * table).sum(-1)


def solve_rate(rows: Sequence[Row]) -> float:
    """Share of solved rows among the graded ones; NaN where none is graded."""
    known = [r.reward > 0 for r in rows if not math.isnan(r.reward)]
    return sum(known) / len(known) if known else math.nan


def without(record: Record, *rates: float) -> Record:
    """The step without the groups whose rollouts are solved at one of these rates."""

    def rate(row: Row) -> float:
        mates = [r for r in record.generation if r.group == row.group and r.kind != "demo"]
        return solve_rate(mates)

    return replace(record, rows=[r for r in record.rows if rate(r) not in rates])


def a_model(weights: dict[str, Tensor]) -> Any:
    """A model with these weights."""
    model = copy.deepcopy(EMPTY)
    model.load_state_dict(weights)
    return model


EMPTY = make_model(make_tokenizer())


class Update:
    """An optimizer step as formulas see it: rows, their log-probs ``lp`` and entropies ``H``."""

    def __init__(
        self,
        record: Record,
        old: dict[str, Tensor],
        ref: dict[str, Tensor],
        temperature: float = 1.0,
        step: int = 0,
        total: int = 1,
    ) -> None:
        self.rows, self.generation = record.rows, record.generation
        self.temperature, self.step, self.total = temperature, step, total
        self.weights = {"now": record.weights, "old": old, "ref": ref}
        self.model = a_model(record.weights)
        both = [score(self.model, r, temperature) for r in self.rows]
        self.lp, self.H = [x for x, _ in both], [x for _, x in both]

    @cached_property
    def old(self) -> list[Tensor]:
        """Log-probs under the policy that made the rows."""
        return self._under("old")

    @cached_property
    def ref(self) -> list[Tensor]:
        """Log-probs under the reference."""
        return self._under("ref")

    @torch.no_grad()
    def _under(self, name: str) -> list[Tensor]:
        if self.weights[name] is self.weights["now"]:
            return [x.detach() for x in self.lp]
        model = a_model(self.weights[name])
        return [score(model, r, self.temperature)[0] for r in self.rows]

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """Of all parameters."""
        found = torch.autograd.grad(
            loss, list(self.model.parameters()), retain_graph=True, allow_unused=True
        )
        return [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(self.model.parameters(), found, strict=True)
        ]

    def of(self, *kinds: str) -> list[int]:
        """Rows of these kinds."""
        return [i for i, r in enumerate(self.rows) if r.kind in kinds]

    def mates(self, i: int, *kinds: str) -> list[Row]:
        """Rows of a row's group, of these kinds, wherever in the generation they are."""
        return [r for r in self.generation if r.group == self.rows[i].group and r.kind in kinds]

    def rate(self, i: int, *kinds: str) -> float:
        """Share of solved rows among the graded ones of the group."""
        return solve_rate(self.mates(i, *kinds))

    def ratio(self, i: int) -> Tensor:
        """pi / pi_old of each token."""
        return (self.lp[i] - self.old[i]).exp()


ROLLOUT = ("own", "hybrid")
ALL = ("own", "hybrid", "demo")


def advantage(row: Row, mates: Sequence[Row], how: str = "mean") -> float:
    """R less the mean of the graded mates; over the std; or over the others' mean."""
    known = [m.reward for m in mates if not math.isnan(m.reward)]
    if math.isnan(row.reward) or len(known) < 2:
        return 0.0
    centred = row.reward - sum(known) / len(known)
    if how == "std":
        return centred / (statistics.stdev(known) + 1e-6)
    return centred * len(known) / (len(known) - 1) if how == "others" else centred


def priced(row: Row, buffer: int) -> Row:
    """A rollout pays for the tokens that it has beyond the budget less ``buffer``: 1 at the end."""
    if not buffer or row.whole:
        return row
    excess = min(max(len(row.completion) - (CONST - buffer), 0), buffer)
    return replace(row, reward=row.reward - excess / buffer)


def ppo(ratio: Tensor, A: float, low: float = 0.2, high: float = 0.2) -> Tensor:
    """The smaller of the two."""
    return torch.minimum(ratio * A, ratio.clamp(1 - low, 1 + high) * A)


def total(values: Sequence[Tensor]) -> Tensor:
    """Their sum; 0 of nothing."""
    return torch.stack(list(values)).sum() if values else torch.zeros((), requires_grad=True)


def per(n: float, values: Sequence[Tensor]) -> Tensor:
    """Minus the sum over n, nothing where n is 0."""
    return -total([v.sum() for v in values]) / n if n else total([])


def row_means(values: Sequence[Tensor]) -> Tensor:
    """Minus the mean over rows of means over tokens."""
    return -total([v.mean() for v in values]) / len(values) if values else total([])


def tokens(u: Update, rows: Sequence[int]) -> int:
    """Completion tokens of the rows."""
    return sum(len(u.rows[i].completion) for i in rows)


# ---- demonstrations and rewards ------------------------------------------------------------------


def luffy(
    u: Update,
    gamma: float = 0.1,
    base: Sequence[str] = ALL,
    entropy: float = 1e-3,
    cut: Sequence[str] = (),
    buffer: int = 0,
) -> Tensor:
    """A pi/pi_old on rollouts, A pi/(pi + gamma) on demonstrations, one baseline, no std; rows of
    the kinds ``cut`` have no gain if they ran into the limit."""
    gains = []
    for i, row in enumerate(u.rows):
        mates = [priced(m, buffer) for m in u.mates(i, *base)]
        A, p = advantage(priced(row, buffer), mates), u.lp[i].exp()
        if row.kind in cut and row.completion[-1] != EOS:
            A = 0.0
        gains.append(A * (p / (p + gamma) if row.whole else u.ratio(i)) + entropy * u.H[i])
    return per(len(u.rows) * CONST, gains)


def srft(u: Update, sign: float = -1.0, scale: float = 0.1, detach: bool = True) -> Tensor:
    """0.5 exp(-H) SFT + A pi of demonstrations; 0.1 exp(H) log pi of right rows, - of wrong."""
    gains = []
    for i, row in enumerate(u.rows):
        H = u.H[i].mean().detach() if detach else u.H[i].mean()
        if row.whole:
            A = advantage(row, u.mates(i, *ALL), "std")
            gains.append(0.5 * (sign * H).exp() * u.lp[i] + A * u.lp[i].exp())
        elif not math.isnan(row.reward):
            gains.append((scale * H.exp() if row.reward > 0 else -1.0) * u.lp[i])
    return per(len(u.rows) * CONST, gains)


def hpt(u: Update, gate: float = 0.0, entropy: float = 1e-3, count: Sequence[str] = ALL) -> Tensor:
    """A pi/pi_old and entropy where rollouts of the prompt are solved, else log pi of the
    demonstration."""
    gains = []
    for i, row in enumerate(u.rows):
        solves = u.rate(i, "own") > gate
        if row.whole and not solves:
            gains.append(u.lp[i])
        elif not row.whole and solves:
            gains.append(advantage(row, u.mates(i, "own")) * u.ratio(i) + entropy * u.H[i])
    return per(len(u.of(*count)) * CONST, gains)


def superrl(u: Update, how: str = "std", both: bool = False) -> Tensor:
    """PPO where a rollout of the prompt is rewarded, log pi of the demonstration where none is."""
    gains = []
    for i, row in enumerate(u.rows):
        solves = u.rate(i, "own") > 0
        if row.whole and (both or not solves):
            gains.append(u.lp[i])
        elif not row.whole and solves:
            gains.append(ppo(u.ratio(i), advantage(row, u.mates(i, "own"), how)))
    return per(len(u.rows) * CONST, gains)


def rl_sft(u: Update, base: Sequence[str] = ("own",), weight: float = 1.0) -> Tensor:
    """PPO with R - mean over rollouts alone, plus log pi of demonstrations."""
    gains = [
        weight * u.lp[i] if row.whole else ppo(u.ratio(i), advantage(row, u.mates(i, *base)))
        for i, row in enumerate(u.rows)
    ]
    return per(len(u.rows) * CONST, gains)


def chord(
    u: Update,
    mu: float = 0.1,
    detach: bool = True,
    base: Sequence[str] = ROLLOUT,
    end: float | None = None,
) -> Tensor:
    """(1 - mu) PPO + mu p(1-p) log pi, each a mean over its own tokens; with ``end`` mu goes there
    in a straight line, and the factor p(1-p) is not there."""
    mu = mu if end is None else mu + (end - mu) * u.step / u.total
    own, demos = u.of(*ROLLOUT), u.of("demo")
    rl = [ppo(u.ratio(i), advantage(u.rows[i], u.mates(i, *base), "std")) for i in own]
    sft = []
    for i in demos:
        p = u.lp[i].detach().exp() if detach else u.lp[i].exp()
        sft.append((p * (1 - p) if end is None else 1.0) * u.lp[i])
    return (1 - mu) * per(tokens(u, own), rl) + mu * per(tokens(u, demos), sft)


def after_prefix(u: Update, how: str, base: Callable[[int], Sequence[Row]]) -> list[Tensor]:
    """PPO on the sampled tokens of each rollout: what a prefix is context of."""
    return [
        ppo(u.ratio(i)[u.rows[i].prefix :], advantage(u.rows[i], base(i), how))
        for i in u.of(*ROLLOUT)
    ]


def uft(u: Update, hint: float = 1e-3, beta: float = 1e-3, entropy: float = 1e-3) -> Tensor:
    """PPO behind a hint, log pi of the hint, k3 to the reference, entropy; token means."""
    rl = after_prefix(u, "std", lambda i: u.mates(i, *ROLLOUT))
    for n, i in enumerate(u.of(*ROLLOUT)):
        k = u.rows[i].prefix
        d = (u.ref[i] - u.lp[i])[k:]
        rl[n] = rl[n] - beta * (d.exp() - d - 1) + entropy * u.H[i][k:]
    hints = [u.lp[i][: u.rows[i].prefix] for i in u.of("hybrid")]
    return per(sum(map(len, rl)), rl) + hint * per(sum(map(len, hints)), hints)


def relift(u: Update, entropy: float = 1e-3, how: str = "mean") -> Tensor:
    """A pi/pi_old; in a step of demonstrations the mean of -log pi over its tokens."""
    demos = u.of("demo")
    if demos:
        assert len(demos) == len(u.rows)
        return per(tokens(u, demos), [u.lp[i] for i in demos])
    gains = [
        advantage(row, u.mates(i, *ROLLOUT), how) * u.ratio(i) + entropy * u.H[i]
        for i, row in enumerate(u.rows)
    ]
    return per(len(u.rows) * CONST, gains)


def mifo(u: Update, keep: float = 0.2, lowest: bool = False) -> Tensor:
    """PPO, token mean; in a step of demonstrations log pi of each row's most uncertain fifth."""
    demos = u.of("demo")
    if not demos:
        return grpo(u, "token_mean")
    gains = []
    for i in demos:
        n = math.ceil(keep * len(u.lp[i]) - 1e-9)
        gains.append(u.lp[i][u.H[i].argsort(descending=not lowest)[:n]])
    return per(tokens(u, demos), gains)


def bread(u: Update, how: str = "std", skip: bool = True) -> Tensor:
    """GRPO on what follows the prefix: mean over rows of means over sampled tokens."""
    if not skip:
        return grpo(u)
    return row_means(after_prefix(u, how, lambda i: u.mates(i, *ROLLOUT)))


def r3(u: Update, beta: float = 0.05) -> Tensor:
    """GRPO behind a state of the demonstration, and k3 to the reference."""
    gains = after_prefix(u, "std", lambda i: u.mates(i, *ROLLOUT))
    for n, i in enumerate(u.of(*ROLLOUT)):
        d = (u.ref[i] - u.lp[i])[u.rows[i].prefix :]
        gains[n] = gains[n] - beta * (d.exp() - d - 1)
    return row_means(gains)


def questa(u: Update, grouped: bool = False) -> Tensor:
    """PPO behind a hint, against all rollouts of the generation; token mean."""
    everyone = [r for r in u.generation if r.kind in ROLLOUT]
    gains = after_prefix(u, "std", lambda i: u.mates(i, *ROLLOUT) if grouped else everyone)
    return per(sum(map(len, gains)), gains)


def pope(u: Update, joint: bool = False) -> Tensor:
    """GRPO, guided rows against guided ones and plain rows against plain ones."""
    return row_means(
        after_prefix(u, "std", lambda i: u.mates(i, *(ROLLOUT if joint else (u.rows[i].kind,))))
    )


def prefix_rft(u: Update, fraction: float = 0.2) -> Tensor:
    """PPO with R - mean on everything; of the prefix tokens of the step the most uncertain."""
    pool = [(u.H[i][t].item(), i, t) for i in u.of("hybrid") for t in range(u.rows[i].prefix)]
    pool.sort(key=lambda x: -x[0])
    keep = {(i, t) for _, i, t in pool[: math.ceil(fraction * len(pool) - 1e-9)]}
    gains = []
    for i in u.of(*ROLLOUT):
        at = [t for t in range(len(u.lp[i])) if t >= u.rows[i].prefix or (i, t) in keep]
        gains.append(ppo(u.ratio(i)[at], advantage(u.rows[i], u.mates(i, *ROLLOUT))))
    return per(len(u.of(*ROLLOUT)) * CONST, gains)


# ---- rewards alone -------------------------------------------------------------------------------


def grpo(u: Update, over: str = "row_means", how: str = "std") -> Tensor:
    """PPO with (R - mean)/std; groups that the caller left out of ``u`` count nowhere."""
    rows = u.of(*ROLLOUT)
    gains = [ppo(u.ratio(i), advantage(u.rows[i], u.mates(i, *ROLLOUT), how)) for i in rows]
    return row_means(gains) if over == "row_means" else per(tokens(u, rows), gains)


def dapo(u: Update, high: float = 0.28, buffer: int = 5, flat_count: bool = False) -> Tensor:
    """Upper clip 0.28, token mean without flat groups, long rows pay up to 1."""

    rows = [i for i in u.of(*ROLLOUT) if u.rate(i, *ROLLOUT) not in (0.0, 1.0)]
    gains = []
    for i in rows:
        mates = [priced(m, buffer) for m in u.mates(i, *ROLLOUT)]
        A = advantage(priced(u.rows[i], buffer), mates, "std")
        gains.append(ppo(u.ratio(i), A, high=high))
    return per(tokens(u, u.of(*ROLLOUT) if flat_count else rows), gains)


def rloo(u: Update, how: str = "others") -> Tensor:
    """A log pi(y), the sum over a row; the mean of the rows."""
    gains = [advantage(r, u.mates(i, *ROLLOUT), how) * u.lp[i] for i, r in enumerate(u.rows)]
    return per(len(u.rows), gains)


def cispo(u: Update, low: float = 1.0, high: float = 4.0, detach: bool = True) -> Tensor:
    """The clipped ratio, without gradient, times A log pi."""
    gains = []
    for i, row in enumerate(u.rows):
        held = (u.ratio(i).detach() if detach else u.ratio(i)).clamp(1 - low, 1 + high)
        gains.append(held * advantage(row, u.mates(i, *ROLLOUT), "std") * u.lp[i])
    return per(tokens(u, range(len(u.rows))), gains)


def gspo(u: Update, low: float = 3e-4, high: float = 4e-4, whole: bool = True) -> Tensor:
    """One ratio for a row, the geometric mean; the mean of the rows."""
    gains = []
    for i, row in enumerate(u.rows):
        log_ratio = u.lp[i] - u.old[i]
        s = (log_ratio.mean() if whole else log_ratio).exp()
        gains.append(ppo(s, advantage(row, u.mates(i, *ROLLOUT), "std"), low, high))
    return row_means(gains)


def self_sft(u: Update, count_all: bool = False) -> Tensor:
    """-log pi of the solved rollouts, the mean of their tokens."""
    right = [i for i, r in enumerate(u.rows) if r.reward > 0]
    count = range(len(u.rows)) if count_all else right
    return per(tokens(u, count), [u.lp[i] for i in right])


# ---- demonstrations alone ------------------------------------------------------------------------


def sft(u: Update) -> Tensor:
    """-log pi, the mean of the step's tokens."""
    return per(sum(map(len, u.lp)), u.lp)


def dft(u: Update, detach: bool = True) -> Tensor:
    """Times the token's own probability."""
    return per(sum(map(len, u.lp)), [(x.detach() if detach else x).exp() * x for x in u.lp])


def iw_sft(u: Update, cap: float = 16.0, per_token: bool = False) -> Tensor:
    """Times the exponentiated mean log ratio to the first policy, at most 16."""
    gains = []
    for x, ref in zip(u.lp, u.ref, strict=True):
        d = x.detach() - ref
        gains.append((d if per_token else d.mean()).exp().clamp(max=cap) * x)
    return per(sum(map(len, u.lp)), gains)


def fdiv_sft(u: Update, floor: float = 0.0, slope: float = 0.5) -> Tensor:
    """Pearson: times 1 - x/2, x the token's log ratio to the first policy."""
    gains = []
    for x, ref in zip(u.lp, u.ref, strict=True):
        gains.append((1 - slope * (x.detach() - ref)).clamp(min=floor, max=16.0) * x)
    return per(sum(map(len, u.lp)), gains)


def contrasts(u: Update) -> list[tuple[int, list[int]]]:
    """Each demonstration with the negatives of its group."""
    return [
        (i, [j for j in u.of("own") if u.rows[j].group == u.rows[i].group]) for i in u.of("demo")
    ]


def discriminative(
    u: Update,
    memory: dict[int, float],
    gamma: float = 0.85,
    tau: float = 1.0,
    averaged: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """-log pi(y) + 1/B sum_j sg(e^(s_j - u)) log pi(y_j); ``memory`` holds and gets each u."""

    def whole(x: Tensor) -> Tensor:
        return x.mean() if averaged else x.sum()

    pairs = contrasts(u)
    losses = []
    for i, negatives in pairs:
        s = torch.stack([whole(u.lp[j].double()) / tau for j in negatives]).detach()
        if not averaged:
            s = s - torch.stack([u.ref[j].double().sum() for j in negatives])
        example = u.rows[i].example
        partition = (1 - gamma) * math.exp(memory.get(example, 0.0)) + gamma * s.exp().mean().item()
        memory[example] = math.log(partition)
        pull = (s - memory[example]).exp() / len(negatives) * scale
        losses.append(
            -whole(u.lp[i])
            + sum(c.item() * whole(u.lp[j]) for c, j in zip(pull, negatives, strict=True))
        )
    return total(losses) / len(pairs) if pairs else total([])


def irft(u: Update, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta [gain of y - gain of y_j]), mean over pairs and prompts; gain over ref."""
    pairs = contrasts(u)
    losses = []
    for i, negatives in pairs:
        gain = (u.lp[i] - u.ref[i]).sum()
        margins = [gain - (u.lp[j] - u.ref[j]).sum() for j in negatives]
        losses.append(-logsigmoid(beta * torch.stack(margins)).mean())
    return total(losses) / len(pairs) if pairs else total([])


def relative_error(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm of ``b``; the norm of ``a`` where ``b`` is 0."""
    difference = math.sqrt(sum(((x - y) ** 2).sum().item() for x, y in zip(a, b, strict=True)))
    size = math.sqrt(sum((y**2).sum().item() for y in b))
    return difference / size if size else difference
