"""Groups that are sampled again: which rows, how often, from what, and what becomes of the others."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import family_plain as plain
import pytest
import torch
from test_backends import FakeVLLM

from prefix_rft import PrefixRFTTrainer
from prefix_rft.engines.trl.plan import RowPlan
from tiny import make_tokenizer

TOKENIZER = make_tokenizer()
MIX = ["wrong", "mixed", "right", "mixed", "mixed", "patchy", "mixed", "right", "wrong", "mixed"]


def ids(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def demonstrations(dataset: Any, example: int) -> list[list[int]]:
    """Token ids of an example's demonstrations, EOS included."""
    return [[*ids(d), plain.EOS] for d in dataset[example]["demonstration"]]


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
            plain.Row([], [], reward=r)
            for p, r in zip(self.plans, self.rewards, strict=True)
            if p.group == group and not p.whole
        ]
        return plain.solve_rate(rows)


class Watch:
    """Every attempt of a trainer, by generation; and the rows that were trained in the end."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.generations: list[list[Attempt]] = []
        self.trained: list[dict[str, Any]] = []
        self.asked: list[int] = []
        self._score, self._sample = trainer.score, trainer._sample
        self._generate = trainer._generate_and_score_completions
        self._log = trainer.log
        self.logged: dict[str, list[float]] = {}
        trainer.score, trainer._sample = self.score, self.sample
        trainer._generate_and_score_completions, trainer.log = self.generate, self.log

    def generate(self, inputs: Any) -> Any:
        self.generations.append([])
        self.trained.append(self._generate(inputs))
        return self.trained[-1]

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Keeps the lists of which TRL logs the means."""
        self.logged = {k: list(v) for k, v in self.trainer._metrics["train"].items()}
        self._log(*args, **kwargs)

    def sample(self, prompts: Any, plans: Any) -> Any:
        self.asked = [i for i, p in enumerate(plans) if not p.done]
        return self._sample(prompts, plans)

    def score(self, inputs: Any, plans: list[RowPlan]) -> Any:
        self.asked = []
        rows = self._score(inputs, plans)

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
            self.trainer.outcomes.tolist(),
            lists(logps, "completion_mask") if logps in rows else None,
        )
        for plan, prompt in zip(plans, attempt.prompts, strict=True):
            assert prompt == ids(self.trainer.train_dataset[plan.example]["prompt"])
        self.generations[-1].append(attempt)
        return rows


def run(tmp_path: Path, method: str, rows: Any, **settings: Any) -> tuple[Any, Any, Watch]:
    trainer, recorder = plain.start(PrefixRFTTrainer, tmp_path, method, rows, **settings)
    watch = Watch(trainer)
    trainer.train()
    return trainer, recorder, watch


def same(a: list[float], b: list[float]) -> bool:
    """Equal, NaN to NaN."""
    return all(x == y or (x != x and y != y) for x, y in zip(a, b, strict=True))


def check_resampled(watch: Watch, wrong: bool, right: bool, attempts: int) -> int:
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
                else:
                    assert i not in later.asked
                    assert (new.example, new.attempt) == (old.example, old.attempt)
                    assert later.completions[i] == attempt.completions[i]
                    assert same([later.rewards[i]], [attempt.rewards[i]])
    return many


def grpo_with_entropy(u: plain.Update) -> torch.Tensor:
    return plain.grpo(u) + plain.row_means([0.01 * u.H[i] for i in u.of(*plain.ROLLOUT)])


@pytest.mark.parametrize(
    ("method", "options", "wrong", "right", "formula"),
    [
        ("grpo", {"all_wrong": "resample", "entropy_coef": 0.01}, 1, 0, grpo_with_entropy),
        ("grpo", {"all_right": "resample", "attempts": 1}, 0, 1, plain.grpo),
        ("luffy", {"all_wrong": "resample", "attempts": 2}, 1, 0, plain.luffy),
        (
            "prefix_rft",
            {"all_wrong": "resample", "all_right": "resample", "num_hybrid": 2, "attempts": 2},
            1,
            1,
            plain.prefix_rft,
        ),
        ("dapo", {"attempts": 4}, 1, 1, plain.dapo),
        ("bread", {"all_wrong": "resample", "attempts": 1}, 1, 0, plain.bread),
    ],
    ids=["grpo", "grpo-right", "luffy", "prefix_rft", "dapo", "bread"],
)
def test_flat_groups_give_way_to_other_prompts(
    tmp_path: Path,
    method: str,
    options: dict,
    wrong: int,
    right: int,
    formula: Callable[[plain.Update], torch.Tensor],
) -> None:
    """What is still flat in the end is in no sum and in no normaliser, and nothing is told of the
    attempts that were given up."""
    dataset = plain.make_fates(MIX * 2, missing=(3, 5))
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
    assert check_resampled(watch, bool(wrong), bool(right), attempts) > 0
    rates = ([0.0] if wrong else []) + ([1.0] if right else [])
    for n, (record, rows) in enumerate(zip(recorder.records, watch.trained, strict=True)):
        last = watch.generations[n][-1]
        flat = [last.rate(i) in rates for i in range(16)]
        assert rows["row_dropped"].tolist() == flat
        step = plain.Update(plain.without(record, *rates), record.weights, record.weights)
        loss = formula(step)
        assert record.loss == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
        assert plain.relative_error(record.gradient, step.gradient(loss)) < 1e-5
    check_metrics(watch)
    check_files(tmp_path, watch)
    assert list(trainer._logs["prompt"]) == [
        TOKENIZER.decode(p) for p in watch.generations[-1][-1].prompts
    ]


ONE_OF_THE_RUN = ("num_tokens",)
"""TRL keeps one number, not a list."""


def check_metrics(watch: Watch) -> None:
    """One entry for each generation, and it is of the last attempt."""
    lasts = [g[-1] for g in watch.generations]
    for name, values in watch.logged.items():
        assert len(values) == (1 if name in ONE_OF_THE_RUN else len(lasts)), name
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
    dropped = [rows["row_dropped"].float().mean().item() for rows in watch.trained]
    assert watch.logged["groups/dropped"] == pytest.approx(dropped)
    if "groups/resampled" in watch.logged:
        changed = [
            sum(p.attempt > 0 for p in (g[1] if len(g) > 1 else g[0]).plans) / len(g[0].plans)
            for g in watch.generations
        ]
        assert watch.logged["groups/resampled"] == pytest.approx(changed)


def check_files(folder: Path, watch: Watch) -> None:
    """Every line of the rollouts is what was trained."""
    dataset, streams = watch.trainer.train_dataset, watch.trainer.method.streams
    files = sorted((folder / "rollouts").glob("*.jsonl"))
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
            text = TOKENIZER.decode(last.completions[i], skip_special_tokens=True)
            example = dataset[plan.example]
            reward = plain.reward_of(text, example["demonstration"], example["fate"])
            assert line["reward"] == reward
            assert line["truncated"] == (last.completions[i][-1] != plain.EOS)
            origin = "demonstration" if plan.whole else "continuation" if plan.prefix else "policy"
            mine = [s for s, stream in enumerate(streams) if origin in stream.tokens]
            assert line["advantage"] == rows["row_advantages"][i, mine[0] if mine else 0].item()
