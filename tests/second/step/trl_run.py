"""TRL's trainers on small datasets, watched: what each optimizer step began with and did."""

import copy
import functools
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from second.step.update import LogProbs, Row, Update, score, solve_rate
from tiny import make_config, make_model, make_rows, make_tokenizer, shaped_reward

PAD, EOS = 0, 1
CONST = 24.0  # the completion budget of tiny's configuration

# ---- data and rewards ----------------------------------------------------------------------------


def make_rewards(
    rules: Sequence[str], missing: Sequence[int] = (), several: bool = False
) -> Dataset:
    """One row for each rule; those in ``missing`` have no demonstration, others one, or two.

    A rule says what the reward of a rollout is: ``mixed`` (a hash of its text decides), ``right``,
    ``wrong``, ``rare`` (right for one text of six), ``hint:N`` (mixed for a text that begins with N
    characters of the demonstration, else wrong), ``never`` (it cannot be graded) or ``patchy``
    (mixed, now and then it cannot be graded).
    """
    rows = make_rows(len(rules)).to_dict()
    texts = [[d, d.replace("=", " ")] if several else [d] for d in rows["demonstration"]]
    rows["demonstration"] = [[] if i in missing else d for i, d in enumerate(texts)]
    return Dataset.from_dict({**rows, "rule": list(rules)})


def reward_of(text: str, demonstrations: Sequence[str], rule: str) -> float | None:
    """The reward of a text; that of a whole demonstration is 1."""
    number = zlib.crc32(text.encode())
    if rule == "never" or (rule == "patchy" and number % 5 == 0):
        return None
    if text in demonstrations:
        return 1.0
    if rule.startswith("hint:"):
        n = int(rule.removeprefix("hint:"))
        rule = "mixed" if any(text[:n] == d[:n] for d in demonstrations) else "wrong"
    known = {"right": 0.5 + number % 2 / 2, "wrong": 0.0, "rare": float(number % 6 == 0)}
    return known.get(rule, (0.0, 0.0, 0.5, 1.0)[number % 4])


def reward(
    completions: list[str], demonstration: list[list[str]], rule: list[str], **kwargs: Any
) -> list[float | None]:
    """What the trainer gets."""
    return [reward_of(*x) for x in zip(completions, demonstration, rule, strict=True)]


def graded(text: str, example: dict[str, Any]) -> float | None:
    """The reward of a text once more, from its example: by its rule, else by tiny's reward."""
    if "rule" in example:
        return reward_of(text, example["demonstration"], example["rule"])
    return shaped_reward([text], [example["answer"]])[0]


def sharp_model() -> Any:
    """A random model whose next tokens are unlike enough that no two entropies are almost equal."""
    model = make_model(make_tokenizer())
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(5.0)
    return model


def attentive_model() -> Any:
    """One whose distributions a context moves far enough to be told from rounding."""
    model = sharp_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.mul_(5.0)
            layer.self_attn.o_proj.weight.mul_(5.0)
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
    recorder.watch(trainer)
    return trainer, recorder


# ---- what a trainer did --------------------------------------------------------------------------


def rows_of(batch: dict[str, Any], source: Any) -> list[Row]:
    """Plain rows from a loss batch; rewards are given again, from text and source row."""
    tokenizer = make_tokenizer()
    rows = []
    for i in range(len(batch["completion_ids"])):
        completion = batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist()
        example = int(batch["row_example"][i])
        text = tokenizer.decode([i for i in completion if i not in (PAD, EOS)])
        known = graded(text, source[example])
        told = batch["row_reward"][i].item()
        if batch["row_dropped"][i] and completion == [EOS] and math.isnan(told):
            continue  # it fills up a step of demonstrations
        demo, prefix = batch["demo_mask"][i], batch["prefix_mask"][i]
        assert int(demo.sum()) in (0, len(completion))
        assert not prefix[int(prefix.sum()) :].any()
        row = Row(
            prompt=batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist(),
            completion=completion,
            prefix=0 if demo.any() else int(prefix.sum()),
            whole=bool(demo.any()),
            reward=math.nan if known is None else known,
            group=int(batch["row_group"][i]),
            example=example,
            place=int(batch["row_place"][i]),
        )
        # A batch may hold rewards in single precision.
        assert math.isclose(told, row.reward, rel_tol=1e-6) or (told != told and known is None)
        asked = {source[example]["prompt"]}
        if batch["row_hinted"][i]:
            texts = source[example]["demonstration"]
            asked = {f"h:{d[:n]};{p}" for p in asked for d in texts for n in range(1, len(d) + 1)}
        assert tokenizer.decode(row.prompt) in asked
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

    def watch(self, trainer: Any, name: str = "_compute_loss") -> None:
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


# ---- a step as formulas read it ------------------------------------------------------------------


@functools.cache
def _empty(layers: int) -> Any:
    return make_model(make_tokenizer(), layers=layers)


def model_of(weights: dict[str, Tensor]) -> Any:
    """A model with these weights."""
    layers = {name.split(".")[2] for name in weights if name.startswith("model.layers.")}
    model = copy.deepcopy(_empty(len(layers)))
    model.load_state_dict(weights)
    return model


@torch.no_grad()
def scores(
    weights: dict[str, Tensor], rows: Sequence[Row], temperature: float = 1.0
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs and entropies of each row's completion under a model with these weights."""
    model = model_of(weights)
    both = [score(model, r, temperature) for r in rows]
    return [x for x, _ in both], [x for _, x in both]


def update_of(
    record: Record,
    old: dict[str, Tensor] | None = None,
    ref: dict[str, Tensor] | None = None,
    temperature: float = 1.0,
    **more: Any,
) -> Update:
    """A recorded step; ``old`` and ``ref`` are the weights of the sampler and of the reference, the
    present ones by default."""

    def under(weights: dict[str, Tensor] | None) -> LogProbs | None:
        if weights is None or weights is record.weights:
            return None
        return lambda: scores(weights, record.rows, temperature)[0]

    return Update(
        model_of(record.weights),
        record.rows,
        record.generation,
        const=CONST,
        old=under(old),
        ref=under(ref),
        temperature=temperature,
        **more,
    )


def without(record: Record, *rates: float) -> Record:
    """The step without the groups whose rollouts are solved at one of these rates."""

    def rate(row: Row) -> float:
        mates = [r for r in record.generation if r.group == row.group and r.kind != "demo"]
        return solve_rate(mates)

    return replace(record, rows=[r for r in record.rows if rate(r) not in rates])


def joined(*ranks: Sequence[dict[str, Any]]) -> list[Record]:
    """The steps of several processes, from ``Record.plain``: all rows, the mean of losses."""
    records = []
    for parts in zip(*ranks, strict=True):
        rows = [[Row(**r) for x in parts for r in x[k]] for k in ("rows", "generation")]
        loss = sum(x["loss"] for x in parts) / len(parts)
        records.append(Record(parts[0]["weights"], parts[0]["gradient"], loss, *rows))
    return records
