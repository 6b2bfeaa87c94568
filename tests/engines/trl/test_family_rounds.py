"""Groups that are sampled again: which rows, how often, from what, and what the others become."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from fake_vllm import put_in_place

import prefix_rft.engines.trl.rollout.sampler as module
from prefix_rft import PrefixRFTTrainer
from prefix_rft.engines.plan import RowPlan
from prefix_rft.support.errors import UserError
from second.step import formulas, trl_run
from second.step.update import (
    ROLLOUT,
    Row,
    Update,
    per,
    relative_error,
    row_means,
    solve_rate,
    total,
)
from tables import rest_slow
from tiny import make_tokenizer

TOKENIZER = make_tokenizer()
MIX = ["wrong", "mixed", "right", "mixed", "mixed", "patchy", "mixed", "right", "wrong", "mixed"]


def ids(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def demonstrations(dataset: Any, example: int) -> list[list[int]]:
    """Token ids of an example's demonstrations, EOS included."""
    return [[*ids(d), trl_run.EOS] for d in dataset[example]["demonstration"]]


@dataclass
class Attempt:
    """One sampling of a generation: plans, the rows asked of the sampler, and what they became."""

    step: int
    plans: list[RowPlan]
    asked: list[int]
    completions: list[list[int]]
    prompts: list[list[int]]
    rewards: list[float]
    logps: list[list[float]] | None

    def rate(self, i: int) -> float:
        """Of the sampled rows of a row's group."""
        group = self.plans[i].group
        rows = [
            Row([], [], reward=r)
            for p, r in zip(self.plans, self.rewards, strict=True)
            if p.group == group and not p.whole
        ]
        return solve_rate(rows)


class Watch:
    """Every attempt of a trainer, by generation; and the rows that were trained in the end."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.generations: list[list[Attempt]] = []
        self.trained: list[dict[str, Any]] = []
        self.asked: list[int] = []
        self._sampled, self._sample = trainer._sampled, trainer._sample
        self._generate = trainer._generate_and_score_completions
        self._log = trainer.log
        self.logged: dict[str, list[float]] = {}
        trainer._sampled, trainer._sample = self.sampled, self.sample
        trainer._generate_and_score_completions, trainer.log = self.generate, self.log

    def generate(self, inputs: Any) -> Any:
        self.generations.append([])
        self.trained.append(self._generate(inputs))
        return self.trained[-1]

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Keeps the lists of which TRL logs the means; its last line is of the run, without any."""
        found = {k: list(v) for k, v in self.trainer._metrics["train"].items()}
        if found.get("reward"):
            self.logged = found
        self._log(*args, **kwargs)

    def sample(self, prompts: Any, plans: Any) -> Any:
        self.asked = [i for i, p in enumerate(plans) if not p.done]
        # The policy scores what it samples; a reference does not.
        name = "sample" if self.trainer.method.reference.sampler == "reference" else "sample_scored"
        with mock.patch.object(module, name, wraps=getattr(module, name)) as sampler:
            found = self._sample(prompts, plans)
        assert sum(len(call.args[1]) for call in sampler.call_args_list) == len(self.asked)
        return found

    def sampled(self, inputs: Any, plans: list[RowPlan]) -> Any:
        self.asked = []
        found = self._sampled(inputs, plans)
        rows = found.rows

        def lists(name: str, mask: str) -> list[list[Any]]:
            kept = zip(rows[name], rows[mask].bool(), strict=True)
            return [x[m].tolist() for x, m in kept]

        logps = "sampling_per_token_logps"
        attempt = Attempt(
            self.trainer.state.global_step,
            plans,
            self.asked,
            lists("completion_ids", "completion_mask"),
            lists("prompt_ids", "prompt_mask"),
            found.reward_N.tolist(),
            lists(logps, "completion_mask") if logps in rows else None,
        )
        for plan, prompt in zip(plans, attempt.prompts, strict=True):
            assert prompt == ids(self.trainer.train_dataset[plan.example]["prompt"])
        self.generations[-1].append(attempt)
        return found


def run(tmp_path: Path, method: str, rows: Any, **settings: Any) -> tuple[Any, Any, Watch]:
    trainer, recorder = trl_run.start(PrefixRFTTrainer, tmp_path, method, rows, **settings)
    watch = Watch(trainer)
    trainer.train()
    return trainer, recorder, watch


def same(a: list[float], b: list[float]) -> bool:
    """Equal, NaN to NaN."""
    return all(x == y or (x != x and y != y) for x, y in zip(a, b, strict=True))


def check_resampled(watch: Watch, wrong: bool, right: bool, attempts: int, first_rows: int) -> int:
    """A group gives way to another example if it is flat, and only then; how many did."""
    dataset, many = watch.trainer.train_dataset, 0
    n = watch.trainer.num_generations
    for generation in watch.generations:
        assert len(generation) <= 1 + attempts
        for number, attempt in enumerate(generation):
            flat = [
                (wrong and attempt.rate(i) == 0.0) or (right and attempt.rate(i) == 1.0)
                for i in range(len(attempt.plans))
            ]
            for i in range(0, len(flat), n):
                group = attempt.plans[i : i + n]
                assert {(p.group, p.example) for p in group} == {(i // n, group[0].example)}
            if number + 1 == len(generation):
                assert not any(flat) or number == attempts
                continue
            assert any(flat)
            later = generation[number + 1]
            assert later.step == attempt.step
            for i, (old, new) in enumerate(zip(attempt.plans, later.plans, strict=True)):
                if flat[i]:
                    many += 1
                    assert new.attempt == number + 1
                    assert new.kept is None
                    assert (i in later.asked) == (not new.whole)
                    known = demonstrations(dataset, new.example)
                    assert list(new.prefix) in [d[: len(new.prefix)] for d in known] or not known
                    # It begins as any group does, and not as one that has failed before.
                    assert bool(new.prefix) == (new.row < first_rows and bool(known))
                else:
                    assert i not in later.asked
                    assert (new.example, new.attempt) == (old.example, old.attempt)
                    assert later.completions[i] == attempt.completions[i]
                    assert same([later.rewards[i]], [attempt.rewards[i]])
    return many


def grpo_with_entropy(u: Update) -> torch.Tensor:
    return formulas.grpo(u) + row_means([0.01 * u.H[i] for i in u.of(*ROLLOUT)])


@pytest.mark.parametrize(
    ("method", "options", "wrong", "right", "formula"),
    [
        ("grpo", {"all_wrong": "resample", "entropy_coef": 0.01}, 1, 0, grpo_with_entropy),
        pytest.param(
            *("grpo", {"all_right": "resample", "attempts": 1}, 0, 1, formulas.grpo),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("luffy", {"all_wrong": "resample", "attempts": 2}, 1, 0, formulas.luffy),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "prefix_rft",
            {"all_wrong": "resample", "all_right": "resample", "num_hybrid": 2, "attempts": 2},
            1,
            1,
            formulas.prefix_rft,
            marks=pytest.mark.slow,
        ),
        ("dapo", {"attempts": 4}, 1, 1, formulas.dapo),
        pytest.param(
            *("bread", {"all_wrong": "resample", "attempts": 1}, 1, 0, formulas.bread),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["grpo", "grpo-right", "luffy", "prefix_rft", "dapo", "bread"],
)
def test_flat_groups_give_way_to_other_prompts(
    tmp_path: Path,
    method: str,
    options: dict,
    wrong: int,
    right: int,
    formula: Callable[[Update], torch.Tensor],
) -> None:
    """What is still flat in the end is in no sum and in no normaliser, and nothing is told of the
    attempts that were given up."""
    dataset = trl_run.make_rewards(MIX * 2, missing=(3, 5))
    trainer, recorder, watch = run(
        tmp_path,
        method,
        dataset,
        options=options,
        max_steps=3,
        logging_steps=100,
        log_rollouts=True,
    )
    attempts = options.get("attempts", 3)
    assert len(watch.generations) == 3
    begun = {"luffy": 1, "prefix_rft": 2}.get(method, 0)
    assert check_resampled(watch, bool(wrong), bool(right), attempts, begun) > 0
    rates = ([0.0] if wrong else []) + ([1.0] if right else [])
    for n, (record, rows) in enumerate(zip(recorder.records, watch.trained, strict=True)):
        last = watch.generations[n][-1]
        flat = [last.rate(i) in rates for i in range(16)]
        assert rows["row_dropped"].tolist() == flat
        step = trl_run.update_of(trl_run.without(record, *rates), record.weights, record.weights)
        loss = formula(step)
        assert record.loss == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
        assert relative_error(record.gradient, step.gradient(loss)) < 1e-5
    check_metrics(watch)
    assert watch.logged["groups/resampled"] == pytest.approx(share_sampled_again(watch))
    check_files(tmp_path, watch)
    assert list(trainer._logs["prompt"]) == [
        TOKENIZER.decode(p) for p in watch.generations[-1][-1].prompts
    ]


OF_STEPS = ("clip_ratio/", "policy/", "prefix/", "continuation/", "demonstration/", "sampling/")
"""Means over the tokens or rows of a step: none where it has none."""


def check_metrics(watch: Watch) -> None:
    """One entry for each generation, and it is of the last attempt."""
    lasts = [g[-1] for g in watch.generations]
    for name, values in watch.logged.items():
        if name.startswith(OF_STEPS):
            assert 0 < len(values) <= len(lasts), name
        else:  # TRL keeps one num_tokens, not a list
            assert len(values) == (1 if name == "num_tokens" else len(lasts)), name
    known = [[r for r in a.rewards if not math.isnan(r)] for a in lasts]
    means = [sum(x) / len(x) for x in known]
    assert watch.logged["reward"] == pytest.approx(means)
    assert watch.logged["rewards/reward/mean"] == pytest.approx(means)
    rates = [[a.rate(i) for i in range(len(a.plans))] for a in lasts]
    for name, value in (("wrong", 0.0), ("right", 1.0)):
        shares = [sum(r == value for r in row) / len(row) for row in rates]
        assert watch.logged[f"groups/all_{name}"] == pytest.approx(shares)
    lengths = [[len(c) for c in a.completions] for a in lasts]
    assert watch.logged["completions/mean_length"] == pytest.approx(
        [sum(x) / len(x) for x in lengths]
    )
    if watch.trainer.method.branches:
        begun = [[len(p.prefix) for p in a.plans if p.prefix and not p.whole] for a in lasts]
        size = len(lasts[0].plans)
        assert watch.logged["prefix/row_share"] == pytest.approx([len(x) / size for x in begun])
        assert watch.logged.get("prefix/length", []) == pytest.approx(
            [sum(x) / len(x) for x in begun if x]
        )
        if watch.trainer.method.trains("demonstration"):
            demos = [sum(p.whole for p in a.plans) / size for a in lasts]
            assert watch.logged["demonstration/row_share"] == pytest.approx(demos)
    dropped = [rows["row_dropped"].float().mean().item() for rows in watch.trained]
    assert watch.logged["groups/dropped"] == pytest.approx(dropped)


def check_files(folder: Path, watch: Watch) -> None:
    """Every line of the rollouts is what was trained."""
    dataset, streams = watch.trainer.train_dataset, watch.trainer.method.streams
    files = sorted((folder / "rollouts").glob("step_*.jsonl"))
    assert [f.name for f in files] == [f"step_{g[0].step:06d}.jsonl" for g in watch.generations]
    for file, generation, rows in zip(files, watch.generations, watch.trained, strict=True):
        last = generation[-1]
        lines = [json.loads(x) for x in file.read_text().splitlines()]
        assert len(lines) == len(last.plans)
        for i, (line, plan) in enumerate(zip(lines, last.plans, strict=True)):
            assert (line["step"], line["group"], line["row"]) == (last.step, plan.group, plan.row)
            assert (line["example"], line["attempt"]) == (plan.example, plan.attempt)
            assert line["prompt_ids"] == last.prompts[i]
            assert line["prompt"] == dataset[plan.example]["prompt"]
            assert line["completion_ids"] == last.completions[i]
            assert line["text"] == TOKENIZER.decode(last.completions[i])
            assert line["demonstration"] == bool(rows["demo_mask"][i].any())
            begun = rows["prefix_mask"][i].sum() + rows["demo_mask"][i].sum()
            assert line["prefix_length"] == int(begun)
            known = demonstrations(dataset, plan.example)
            k = line["prefix_length"]
            assert not k or line["completion_ids"][:k] in [d[:k] for d in known]
            assert not line["demonstration"] or line["completion_ids"] in known
            ids = [t for t in last.completions[i] if t not in (trl_run.PAD, trl_run.EOS)]
            text = TOKENIZER.decode(ids)
            example = dataset[plan.example]
            reward = trl_run.reward_of(text, example["demonstration"], example["rule"])
            assert line["reward"] == reward
            assert line["truncated"] == (last.completions[i][-1] != trl_run.EOS)
            origin = "demonstration" if plan.whole else "continuation" if plan.prefix else "policy"
            mine = [s for s, stream in enumerate(streams) if origin in stream.tokens]
            assert line["advantage"] == rows["row_advantages"][i, mine[0] if mine else 0].item()


def share_sampled_again(watch: Watch) -> list[float]:
    """Of the rows, by generation: those of groups that a second attempt changed."""
    shares = []
    for generation in watch.generations:
        second = generation[min(1, len(generation) - 1)]
        groups = {p.group for p in second.plans if p.attempt > 0}
        shares.append(sum(p.group in groups for p in second.plans) / len(second.plans))
    return shares


@pytest.mark.parametrize("how", ["lengthen", "demonstration"])
def test_a_group_that_stays_as_it_is_is_not_told_as_sampled_again(tmp_path: Path, how: str) -> None:
    """It fails, but it has no demonstration that could help it."""
    _, _, watch = run(
        tmp_path,
        "grpo",
        trl_run.make_rewards(["wrong", "right", "wrong", "wrong"], missing=(2, 3)),
        options={"all_wrong": how},
        max_steps=1,
        logging_steps=100,
    )
    assert share_sampled_again(watch) == [0.25]
    assert watch.logged["groups/resampled"] == [0.25]


@pytest.mark.slow
def test_the_same_seed_takes_the_same_prompts(tmp_path: Path) -> None:
    """From the whole dataset, also from examples that no generation had yet."""
    found = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        _, _, watch = run(
            tmp_path / name,
            "grpo",
            trl_run.make_rewards(["wrong"] * 64),
            options={"all_wrong": "resample", "attempts": 2},
            max_steps=2,
            seed=seed,
        )
        attempts = [a for g in watch.generations for a in g]
        found.append([[p.example for p in a.plans][::4] for a in attempts])
    assert found[0] == found[1]
    assert found[0] != found[2]
    # Two steps of one planned and two other attempts, four groups each.
    drawn = [found[0][i] for i in (1, 2, 4, 5)]
    assert len({tuple(x) for x in drawn}) == 4
    assert all(len(set(x)) > 1 for x in drawn)
    assert max(x for groups in drawn for x in groups) > 32


def test_attempts_are_bounded_and_what_fails_for_good_trains_nothing(tmp_path: Path) -> None:
    trainer, recorder, watch = run(
        tmp_path,
        "grpo",
        trl_run.make_rewards(["wrong"] * 8),
        options={"all_wrong": "resample", "attempts": 2, "entropy_coef": 0.1},
        max_steps=2,
        logging_steps=100,
    )
    for generation in watch.generations:
        assert [a.asked for a in generation] == [list(range(16))] * 3
        assert [{p.attempt for p in a.plans} for a in generation] == [{0}, {1}, {2}]
    for record in recorder.records:
        assert record.loss == 0.0
        assert not any(g.any() for g in record.gradient)
    assert watch.logged["groups/dropped"] == [1.0, 1.0]
    assert watch.logged["groups/resampled"] == [1.0, 1.0]
    start = trl_run.sharp_model().state_dict()
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, start[name])


def luffy_with_more_entropy(u: Update) -> torch.Tensor:
    return formulas.luffy(u, entropy=0.1)


DROPPING: list[tuple[str, dict, Callable[[Update], torch.Tensor]]] = [
    ("grpo", {"all_wrong": "drop"}, formulas.grpo),
    ("grpo", {"all_wrong": "drop", "all_right": "drop"}, formulas.grpo),
    (
        "prefix_rft",
        {"all_right": "drop", "num_hybrid": 2, "prefix_loss": "all"},
        partial(formulas.prefix_rft, fraction=1.0),
    ),
    ("luffy", {"all_wrong": "drop", "entropy_coef": 0.1}, luffy_with_more_entropy),
    ("dapo", {"all_wrong": "drop", "all_right": "drop"}, formulas.dapo),
    ("pope", {"all_wrong": "drop", "first_ratio": 0.4}, formulas.pope),
]


@pytest.mark.parametrize(
    ("method", "options", "formula", "parts"),
    rest_slow(
        ((*case, parts) for case in DROPPING for parts in (1, 4)),
        lambda method, options, formula, parts: parts == (4 if method == "prefix_rft" else 1),
    ),
)
def test_dropped_groups_are_in_no_normaliser(
    tmp_path: Path,
    method: str,
    options: dict,
    formula: Callable[[Update], torch.Tensor],
    parts: int,
) -> None:
    _, recorder, watch = run(
        tmp_path,
        method,
        trl_run.make_rewards(MIX),
        options=options,
        max_steps=2,
        per_device_train_batch_size=16 // parts,
        gradient_accumulation_steps=parts,
        logging_steps=100,
    )
    rates = [r for name, r in (("all_wrong", 0.0), ("all_right", 1.0)) if name in options]
    assert [len(g) for g in watch.generations] == [1, 1]
    fewer = 0
    for record in recorder.records:
        left = trl_run.without(record, *rates)
        step = trl_run.update_of(left, record.weights, record.weights)
        loss = formula(step)
        assert record.loss == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
        assert relative_error(record.gradient, step.gradient(loss)) < 1e-5
        fewer += len(record.rows) - len(left.rows)
    assert fewer > 0
    check_metrics(watch)


@pytest.mark.parametrize("scope", ["minibatch", "step", "row"])
def test_prefix_tokens_of_dropped_groups_are_not_ranked(tmp_path: Path, scope: str) -> None:
    """A group that takes no part in the step takes no place among the tokens that are kept."""
    _, recorder, watch = run(
        tmp_path,
        "prefix_rft",
        trl_run.make_rewards(["right", "mixed", "right", "mixed"] * 2),
        options={"all_right": "drop", "num_hybrid": 2, "entropy_scope": scope},
        max_steps=2,
        seed=5,
        logging_steps=100,
    )
    told = watch.logged["prefix/kept"]
    for record, rows, share in zip(recorder.records, watch.trained, told, strict=True):
        assert 8 <= rows["row_dropped"].sum() < 16
        left = trl_run.without(record, 1.0)
        sizes = [r.prefix for r in left.rows if r.prefix]
        pools = sizes if scope == "row" else [sum(sizes)]
        assert share == pytest.approx(sum(math.ceil(0.2 * n - 1e-9) for n in pools) / sum(sizes))
        if scope == "row":
            continue
        step = trl_run.update_of(left, record.weights, record.weights)
        loss = formulas.prefix_rft(step)
        assert record.loss == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
        assert relative_error(record.gradient, step.gradient(loss)) < 1e-5


def grpo_behind_prefixes(u: Update) -> torch.Tensor:
    """A method of rollouts alone counts prefixes as its own tokens, and trains none of them."""
    values = [
        g.sum() / len(u.lp[i])
        for i, g in enumerate(formulas.after_prefix(u, "std", lambda i: u.mates(i, *ROLLOUT)))
    ]
    return row_means(values)


@pytest.mark.parametrize(
    ("method", "formula"),
    [
        ("bread", formulas.bread),
        pytest.param("grpo", grpo_behind_prefixes, marks=pytest.mark.slow),
    ],
)
def test_prefixes_of_failing_groups_grow(
    tmp_path: Path, method: str, formula: Callable[[Update], torch.Tensor]
) -> None:
    """k/(n+1) of the demonstration at the k-th attempt; a group without demonstration stays as it
    is, and so does one that has been solved."""
    rules = ["wrong", "hint:4", "wrong", "hint:8", "mixed", "never", "hint:12", "right"]
    _, recorder, watch = run(
        tmp_path,
        method,
        trl_run.make_rewards(rules, missing=(2,), several=True),
        options={"all_wrong": "lengthen"},
        max_steps=2,
        logging_steps=100,
        log_rollouts=True,
    )
    dataset = watch.trainer.train_dataset
    lengths: dict[int, list[int]] = {}
    for generation in watch.generations:
        for number, attempt in enumerate(generation):
            for i, (plan, completion) in enumerate(
                zip(attempt.plans, attempt.completions, strict=True)
            ):
                if plan.attempt == number:
                    assert i in attempt.asked
                    lengths.setdefault(plan.example, []).append(len(plan.prefix))
                    known = demonstrations(dataset, plan.example)
                    if number:
                        size = math.floor(number / 4 * len(known[plan.start.index]))
                        assert len(plan.prefix) == size
                        assert completion[:size] == known[plan.start.index][:size]
                else:
                    assert i not in attempt.asked
                    assert completion == generation[number - 1].completions[i]
                if number:
                    before = generation[number - 1]
                    failed = before.rate(i) == 0.0 and bool(dataset[plan.example]["demonstration"])
                    assert (i in attempt.asked) == failed
        for i in range(0, 16, 4):
            assert len({p.start for p in generation[-1].plans[i : i + 4]}) == 1
    grown = {k: v[::4] for k, v in lengths.items()}
    assert grown[0] == sorted(set(grown[0]))
    assert len(grown[0]) == 4
    assert grown[2] == [0]
    assert grown[5] == grown[7] == [0]
    assert [len(grown[k]) > n for k, n in ((1, 1), (3, 2), (6, 3))] == [True] * 3
    assert not any(rows["row_dropped"].any() for rows in watch.trained)
    for record in recorder.records:
        step = trl_run.update_of(record, record.weights, record.weights)
        loss = formula(step)
        assert record.loss == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
        assert relative_error(record.gradient, step.gradient(loss)) < 1e-5
    check_metrics(watch)
    check_files(tmp_path, watch)


@pytest.mark.parametrize(
    ("method", "options", "formula"),
    [
        ("prefix_rft", {"prefix_low": 0.1, "prefix_high": 0.4}, formulas.prefix_rft),
        pytest.param("pope", {"first_ratio": 0.3}, formulas.pope, marks=pytest.mark.slow),
    ],
)
def test_only_the_hybrid_rows_grow_where_a_method_has_them(
    tmp_path: Path, method: str, options: dict, formula: Callable[[Update], torch.Tensor]
) -> None:
    """Half of what was left, and half again; the group's other rows are kept as they are."""
    _, recorder, watch = run(
        tmp_path,
        method,
        trl_run.make_rewards(["wrong", "hint:12", "mixed", "wrong"] * 2, missing=(3,)),
        options={"all_wrong": "lengthen", **options},
        max_steps=2,
        logging_steps=100,
    )
    dataset, longest = watch.trainer.train_dataset, 0
    for generation in watch.generations:
        longest = max(longest, len(generation))
        first = generation[0]
        for number, attempt in enumerate(generation[1:], 1):
            before = generation[number - 1]
            for i, plan in enumerate(attempt.plans):
                old = before.plans[i]
                moves = before.rate(i) == 0.0 and bool(first.plans[i].prefix)
                assert (i in attempt.asked) == moves
                if not moves:
                    assert attempt.completions[i] == before.completions[i]
                    continue
                (known,) = demonstrations(dataset, plan.example)
                left = (1.0 - first.plans[i].start.ratio) * 0.5**number
                size = min(len(known) - 1, math.floor((1.0 - left) * len(known)))
                assert len(plan.prefix) == size
                assert size > len(old.prefix) or size == len(known) - 1
                assert attempt.completions[i][:size] == known[:size]
    assert longest == 4
    for record in recorder.records:
        step = trl_run.update_of(record, record.weights, record.weights)
        loss = formula(step)
        assert record.loss == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
        assert relative_error(record.gradient, step.gradient(loss)) < 1e-5
    check_metrics(watch)


def imitated(u: Update) -> list[torch.Tensor]:
    return [u.lp[i] for i in u.of("demo")]


def grpo_or_demonstration(u: Update) -> torch.Tensor:
    """Rollouts over rollouts, demonstrations over all rows."""
    fallback = -total([x.mean() for x in imitated(u)]) / len(u.rows)
    return formulas.grpo(u) + fallback


def prefix_rft_or_demonstration(u: Update) -> torch.Tensor:
    return formulas.prefix_rft(u) + per(len(u.rows) * trl_run.CONST, imitated(u))


@pytest.mark.parametrize(
    ("method", "options", "formula"),
    [
        ("grpo", {}, grpo_or_demonstration),
        ("prefix_rft", {"num_hybrid": 2}, prefix_rft_or_demonstration),
        pytest.param("luffy", {}, formulas.luffy, marks=pytest.mark.slow),
        pytest.param("grpo", {"all_right": "resample"}, None, marks=pytest.mark.slow),
    ],
    ids=["grpo", "prefix_rft", "luffy", "and-resample"],
)
def test_a_demonstration_in_the_place_of_a_first_row(
    tmp_path: Path,
    method: str,
    options: dict,
    formula: Callable[[Update], torch.Tensor] | None,
) -> None:
    """Nothing is sampled again; a group that has a demonstration, or has none, stays as it is."""
    _, recorder, watch = run(
        tmp_path,
        method,
        trl_run.make_rewards(["wrong", "mixed", "wrong", "right"] * 3, missing=(2,), several=True),
        options={"all_wrong": "demonstration", **options},
        max_steps=2,
        logging_steps=100,
        log_rollouts=True,
    )
    dataset, placed = watch.trainer.train_dataset, 0
    for generation in watch.generations:
        for before, after in pairwise(generation):
            for i, (old, new) in enumerate(zip(before.plans, after.plans, strict=True)):
                fails = (
                    before.rate(i) == 0.0
                    and method != "luffy"
                    and bool(dataset[old.example]["demonstration"])
                )
                settled = any(p.group == old.group and p.whole for p in before.plans)
                if fails and not settled and old.row == 0:
                    placed += 1
                    assert new.whole
                    assert after.completions[i] in demonstrations(dataset, old.example)
                    assert new.example == old.example
                elif not (before.rate(i) == 1.0 and options.get("all_right")):
                    assert after.completions[i] == before.completions[i]
                    assert (new.whole, new.prefix) == (old.whole, old.prefix)
                    assert new.attempt == old.attempt
                    assert i not in after.asked
        assert formula is None or all(not a.asked for a in generation[1:])
        assert len(generation) <= (2 if formula else 4)
        assert method != "luffy" or len(generation) == 1
        if method != "luffy":
            last = generation[-1]
            for i, plan in enumerate(last.plans[::4]):
                if last.rate(4 * i) == 0.0 and dataset[plan.example]["demonstration"]:
                    assert plan.whole or (formula is None and len(generation) == 4)
    assert (placed > 0) == (method != "luffy")
    for record in recorder.records:
        if formula is not None:
            step = trl_run.update_of(record, record.weights, record.weights)
            loss = formula(step)
            assert record.loss == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
            assert relative_error(record.gradient, step.gradient(loss)) < 1e-5
    check_metrics(watch)
    check_files(tmp_path, watch)


def test_rows_without_reward_make_no_group_flat(tmp_path: Path) -> None:
    """All rows ungraded: neither wrong nor right, kept, without advantage, but counted. A group
    whose graded rows all fail is wrong."""
    _, recorder, watch = run(
        tmp_path,
        "grpo",
        trl_run.make_rewards(
            ["never", "patchy", "never", "mixed", "patchy", "patchy", "mixed", "wrong"]
        ),
        options={"all_wrong": "drop", "all_right": "resample"},
        max_steps=2,
        logging_steps=100,
        log_rollouts=True,
    )
    dataset, ungraded = watch.trainer.train_dataset, 0
    for record, generation in zip(recorder.records, watch.generations, strict=True):
        for number, attempt in enumerate(generation):
            for i, plan in enumerate(attempt.plans):
                if dataset[plan.example]["rule"] == "never":
                    ungraded += 1
                    assert math.isnan(attempt.rewards[i])
                    assert all(i not in a.asked for a in generation[number + 1 :])
                    assert not watch.trained[attempt.step]["row_dropped"][i]
        step = trl_run.update_of(trl_run.without(record, 0.0, 1.0), record.weights, record.weights)
        loss = formulas.grpo(step)
        assert record.loss == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
        assert relative_error(record.gradient, step.gradient(loss)) < 1e-5
    assert ungraded >= 8
    check_metrics(watch)
    check_files(tmp_path, watch)


@pytest.mark.parametrize("how", ["lengthen", "demonstration"])
def test_help_from_demonstrations_needs_some(tmp_path: Path, how: str) -> None:
    with pytest.raises(UserError, match="needs demonstrations"):
        run(
            tmp_path,
            "grpo",
            trl_run.make_rewards(["mixed"] * 4, missing=range(4)),
            options={"all_wrong": how},
        )


def test_a_generation_without_any_reward_trains_nothing(tmp_path: Path) -> None:
    _, recorder, watch = run(
        tmp_path,
        "grpo",
        trl_run.make_rewards(["never"] * 4),
        options={"all_wrong": "resample", "all_right": "drop"},
        max_steps=1,
        log_rollouts=True,
    )
    assert [len(g) for g in watch.generations] == [1]
    assert recorder.records[0].loss == 0.0
    assert not any(g.any() for g in recorder.records[0].gradient)
    assert not watch.trained[0]["row_dropped"].any()
    check_files(tmp_path, watch)


AGAIN = {"all_wrong": "resample", "num_demonstrations": 2}
TURNS = {"sizes": [2, 1, 1], "shares": [0, 0.5, 1], "below": [0, 1, 3]}


@pytest.mark.parametrize(
    ("backend", "method", "options"),
    rest_slow(
        [
            ("generate", "luffy", AGAIN),
            ("generate", "bread", {}),
            ("generate", "trapo", TURNS),
            ("colocate", "luffy", {}),
            ("colocate", "bread", {}),
            ("colocate", "trapo", TURNS),
            ("colocate", "dapo", {}),
            ("colocate", "relift", {"sft_prompts": 3}),
            ("server", "luffy", AGAIN),
            ("server", "dapo", {}),
            ("server", "trapo", TURNS),
            ("server", "grpo", {"all_wrong": "demonstration"}),
        ],
        # Rows that are kept and given; prefixes.
        lambda backend, method, options: (backend, method) == ("colocate", "bread"),
    ),
)
def test_other_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, options: dict, backend: str
) -> None:
    """An engine gets the rows that lack something, and no other. The sampler's log-probs of a kept
    row are kept, and those of a demonstration are not made up."""
    put_in_place(monkeypatch)
    vllm = {} if backend == "generate" else {"use_vllm": True, "vllm_mode": backend}
    trainer, _ = trl_run.start(
        PrefixRFTTrainer,
        tmp_path,
        method,
        trl_run.make_rewards(["wrong", "mixed", "hint:8", "wrong"] * 2, missing=(3,)),
        options=options,
        max_steps=3,
        fast_generation=False,
        **vllm,
    )
    asked: list[tuple[list[list[int]], list[list[int]]]] = []
    if backend == "generate":
        original = trainer.model.generate

        def listen(input_ids: Any, attention_mask: Any, **kwargs: Any) -> Any:
            made = original(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            rows = zip(input_ids, attention_mask.bool(), strict=True)
            contexts = [row[m].tolist() for row, m in rows]
            asked.append((contexts, made[:, input_ids.size(1) :].tolist()))
            return made

        trainer.model.generate = listen
    else:
        generate = trainer.vllm_generation.generate

        def hear(**kwargs: Any) -> Any:
            # One prompt for a group only where all of its rows are sent and begin alike.
            whole = len(kwargs["prompts"]) == 16 and not trainer.method.branches
            assert kwargs["num_generations"] == (4 if whole else 1)
            answer = generate(**kwargs)
            asked.append((kwargs["prompts"], answer[1]))
            return answer

        trainer.vllm_generation.generate = hear
    watch = Watch(trainer)
    windows: list[Any] = []
    opened = trainer._begin_update
    trainer._begin_update = lambda: (u := opened(), windows.append(u.batch))[0]
    trainer.train()

    attempts = [a for g in watch.generations for a in g]
    assert all(not a.asked for a in attempts)  # the library's own sampler was not used
    done, calls = 0, iter(asked)
    for attempt in attempts:
        lacks = any(not plan.done for plan in attempt.plans)
        sent = iter(zip(*next(calls), strict=True)) if lacks else iter(())
        for i, plan in enumerate(attempt.plans):
            completion = attempt.completions[i]
            if plan.done:
                done += 1
                assert completion == list(plan.known)
                continue
            context, ids = next(sent)
            k = len(plan.prefix)
            assert context == attempt.prompts[i] + completion[:k]
            assert completion[k:] == ids[: len(completion) - k]
        assert not list(sent)
    assert not list(calls)
    assert done > 0
    if backend == "generate":
        return
    for generation in watch.generations:
        for before, after in pairwise(generation):
            for i, plan in enumerate(after.plans):
                if plan.kept is not None:
                    assert after.completions[i] == before.completions[i]
                    assert same(after.logps[i], before.logps[i])
        last = generation[-1]
        for i, plan in enumerate(last.plans):
            k = len(plan.known) if plan.whole else len(plan.prefix)
            assert all(math.isnan(x) for x in last.logps[i][:k])
            sampled = [] if plan.filler else last.logps[i][k:]
            assert all(math.isfinite(x) and x < 0 for x in sampled)
    for batch in windows:
        given = batch.prefix_mask_BT | batch.demo_mask_BT
        assert (batch.weight_BT[given] == 1).all()
        assert batch.weight_BT[batch.response_mask_BT].isfinite().all()


def test_a_planner_does_not_learn_from_a_demonstration_put_in(tmp_path: Path) -> None:
    """All guided rows failed: the prefix must grow, whatever the demonstration was rewarded."""
    trainer, _ = trl_run.start(
        PrefixRFTTrainer,
        tmp_path,
        "pope",
        trl_run.make_rewards(["wrong"] * 4),
        options={"all_wrong": "demonstration", "first_ratio": 0.25, "ratio_step": 0.25},
        max_steps=1,
    )
    trainer.train()
    assert trainer.method_state.examples == {i: {"ratio": 0.5} for i in range(4)}
