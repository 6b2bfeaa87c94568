"""Evaluations along the way: what they measure, what they cost the run (nothing), and mistakes."""

import io
import json
import math
import random
import re
import sys
from pathlib import Path
from typing import Any

import killed_runs as killed
import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefix_rft.engines.setup import configure
from prefix_rft.evaluation.along import metrics_along, same_random_state, seed_along
from prefix_rft.evaluation.samples import Sample
from prefix_rft.evaluation.scores import Problem
from prefix_rft.rewards.verdict import CORRECT, NO_ANSWER, TIMEOUT, WRONG, Verdict
from prefix_rft.support.errors import UserError
from prefix_rft.training import held_out
from prefix_rft.training.train import train
from tiny import make_rows

DRAWING = '''
import random, numpy, torch
def drawing(completions, answer, **kwargs):
    """A grader that takes from every random state."""
    random.random(), numpy.random.rand(), torch.rand(1)
    return [0.1 * sum(x.isdigit() for x in c) for c in completions]
'''
SFT = ["method=sft", "~num_generations", "micro_batch_size=2"]
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = killed.write_task(tmp_path_factory.mktemp("task"))
    make_rows(5, seed=1).to_json(path.parent / "valid.jsonl")
    (path.parent / "draws.py").write_text(DRAWING)
    more = "eval_data: valid.jsonl\neval_samples: 2\nmax_steps: 4\nlogging_steps: 1\n"
    path.write_text(path.read_text().replace("logging_steps: 2\n", more))
    return path


def run(recipe: Path, folder: Path, *overrides: str) -> tuple[Path, str]:
    """The folder of a finished run, and what it said."""
    console = Console(width=200, file=io.StringIO(), record=True)
    made = train(str(recipe), [*overrides, f"runs={folder}"], console)
    return made, console.export_text()


def lines(folder: Path) -> tuple[Lines, Lines]:
    """The lines of a run's log, less clocks: of training, and of evaluations."""
    all_lines = killed.evidence(folder)["metrics"]
    along = [x for x in all_lines if "eval_avg" in x]
    return [x for x in all_lines if x not in along], along


@pytest.mark.parametrize(
    "more", [pytest.param([], marks=pytest.mark.slow), SFT], ids=["prefix_rft", "sft"]
)
def test_a_run_with_evaluations_ends_with_the_bits_of_one_without(
    recipe: Path, tmp_path: Path, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # where a grader of this process is looked for
    more = [*more, "reward={name: draws:drawing, whole_batch: true}"]
    without, _ = run(recipe, tmp_path / "without", *more)
    with_them, said = run(recipe, tmp_path / "with", *more, "eval_every=1")
    assert [x["step"] for x in lines(with_them)[1]] == [1, 2, 3, 4]
    assert lines(with_them)[0] == lines(without)[0]
    expected, found = killed.evidence(without), killed.evidence(with_them)
    assert found["files"] == expected["files"]  # weights, optimizer, rollouts
    states = [(x / "checkpoint-4/rng_state.pth").read_bytes() for x in (without, with_them)]
    assert states[0] == states[1]
    assert found["names"] == expected["names"]
    assert (with_them / "eval.json").read_text() == (without / "eval.json").read_text()
    value = lines(with_them)[1][1]["eval_avg"]
    assert f"step 2/4  held-out {value:.3f}\n" in said


def test_it_is_what_another_sampler_and_the_reward_by_hand_say(
    recipe: Path, tmp_path: Path
) -> None:
    """Greedily, of the weights of that very step, behind the bare prompt."""
    folder, _ = run(recipe, tmp_path / "runs", "eval_every=2", "eval_temperature=0")
    rows, expected = make_rows(5, seed=1), []
    for step in (2, 4):
        model: Any = AutoModelForCausalLM.from_pretrained(folder / f"checkpoint-{step}")
        tokenizer: Any = AutoTokenizer.from_pretrained(folder / f"checkpoint-{step}")
        rewards, cut, tokens = [], 0, 0
        for row in rows:
            ids = tokenizer(row["prompt"], return_tensors="pt").input_ids
            written = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.size(1) :]
            text = tokenizer.decode(written, skip_special_tokens=True)
            digits = sum(x.isdigit() for x in text[:20])
            rewards.append(float(text.split("#")[-1].strip() == row["answer"]) + 0.01 * digits)
            cut += tokenizer.eos_token_id not in written.tolist()
            tokens += len(written)
        expected.append((step, sum(rewards) / 5, cut / 5, tokens / 5))
    found = [
        tuple(x[k] for k in ("step", "eval_avg", "eval_truncated", "eval_tokens"))
        for x in lines(folder)[1]
    ]
    assert found == [pytest.approx(x) for x in expected]
    assert found[0] != found[1]
    # And what transformers hands to its callbacks, trackers among them.
    state = json.loads((folder / "checkpoint-4/trainer_state.json").read_text())
    seen = [(x["step"], x["eval_avg"]) for x in state["log_history"] if "eval_avg" in x]
    assert seen == [x[:2] for x in found]


@pytest.mark.slow
def test_more_samples_are_drawn_where_they_are_asked_for(recipe: Path, tmp_path: Path) -> None:
    one, _ = run(recipe, tmp_path / "one", "eval_every=4")
    more, _ = run(recipe, tmp_path / "more", "eval_every=4", "eval_every_samples=3")
    assert lines(one)[1] != lines(more)[1]


def graded(word: str) -> list[Sample]:
    """``+`` right, ``-`` wrong, ``0`` no answer, ``~`` cut off, ``?`` not graded."""
    status = {"+": CORRECT, "-": WRONG, "0": NO_ANSWER, "?": TIMEOUT, "~": WRONG}
    return [Sample(c, 3, c == "~", Verdict(status[c])) for c in word]


def test_numbers_by_hand() -> None:
    problems = [Problem(i, {}, graded(w)) for i, w in enumerate(["++", "+-", "0~", "?+"])]
    # Means of the problems 1, 1/2, 0, and 1 of the one sample that was graded.
    assert metrics_along(problems) == {
        "eval_avg": pytest.approx(2.5 / 4),
        "eval_pass": pytest.approx(2 / 3),  # where both samples were graded
        "eval_no_answer": 1 / 8,
        "eval_truncated": 1 / 8,
        "eval_ungraded": 1 / 8,
        "eval_tokens": 3.0,
    }


def test_what_nobody_could_grade_has_no_value_and_stops_nothing() -> None:
    found = metrics_along([Problem(0, {}, graded("??"))])
    assert math.isnan(found["eval_avg"])
    assert math.isnan(found["eval_pass"])
    assert found["eval_ungraded"] == 1.0


def test_random_states_are_put_back() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    with same_random_state(torch.device("cpu")):
        first = draw()
    assert draw() == first


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["eval_every=2", "~eval_data"], "'eval_every' has no rows to evaluate: give eval_data"),
        (["eval_every=2", *SFT, "~reward"], "has no reward to grade them with: give reward"),
        (["eval_every=0"], "'eval_every' must be at least 1, got 0"),
        (["eval_every=0.1"], "'eval_every' must be a whole number, got 0.1"),
        (["eval_every_samples=2"], "'eval_every_samples' has no effect without eval_every"),
        (["eval_every=5"], "'eval_every' is 5, and the run has 4 steps"),
        (["eval_evry=5"], "unknown recipe key 'eval_evry': did you mean 'eval_every'?"),
        (["eval_steps=5"], "'eval_steps' cannot be set: give eval_every, a number of steps"),
    ],
)
def test_mistakes_are_told_in_a_sentence(recipe: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        configure(recipe, overrides).close()
    assert len(str(refused.value).splitlines()) == 1


def test_one_that_is_never_reached_is_refused_where_epochs_count_the_steps(
    recipe: Path, tmp_path: Path
) -> None:
    # 8 rows, 2 prompts a step: 4 steps.
    more = ["~max_steps", "num_train_epochs=1", "eval_every=5", "save_steps=2"]
    with pytest.raises(UserError, match="'eval_every' is 5, and the run has 4 steps"):
        run(recipe, tmp_path / "runs", *more)


def test_check_says_what_they_cost(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from prefix_rft.cli import main

    def checked(*more: str) -> str:
        main(["check", str(recipe), *more])
        return " ".join(capsys.readouterr().out.split())

    assert (
        "2 evaluations along the way x 5 problems x 1 = 10 samples, beside 32 rows of training"
        in checked("eval_every=2")
    )
    more = ["eval_every=3", "eval_problems=4", "eval_every_samples=2"]
    assert "1 evaluation along the way x 4 problems x 2 = 8 samples" in checked(*more)
    assert "along the way" not in checked()
    said = checked("~max_steps", "num_train_epochs=1", "eval_every=5", "save_steps=2")
    assert "eval_every is 5, and the run has 4 steps" in said


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3])
def test_a_run_that_goes_on_has_the_same_evaluations(
    recipe: Path, tmp_path: Path, step: int
) -> None:
    """From a checkpoint behind an evaluation, and from one between two."""
    more = ["eval_every=2", "save_steps=1", "save_total_limit=null"]
    folder, _ = run(recipe, tmp_path / "runs", *more)
    expected = killed.evidence(folder)
    assert [x["step"] for x in lines(folder)[1]] == [2, 4]
    run(recipe, tmp_path / "runs", *more, f"resume_from_checkpoint={folder}/checkpoint-{step}")
    found = killed.evidence(folder)
    for part in expected:
        assert found[part] == expected[part], part


@pytest.mark.parametrize(
    ("logging", "trained"), [("logging_steps=3", [2, 3, 4]), ("logging_strategy='no'", [])]
)
def test_metrics_of_training_stand_in_lines_of_their_own(
    recipe: Path, tmp_path: Path, logging: str, trained: list[int]
) -> None:
    """One is due before each evaluation; where none is wanted, an evaluation's line has none."""
    more = ["eval_every=2", "save_strategy='no'", "eval_problems=1", logging]
    folder, _ = run(recipe, tmp_path / "runs", *more)
    text = (folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(x) for x in text if "train_runtime" not in x]
    assert [x["step"] for x in found if "eval_avg" not in x] == trained
    along = [x for x in found if "eval_avg" in x]
    assert [x["step"] for x in along] == [2, 4]
    assert all(k.startswith("eval_") or k in ("step", "epoch") for x in along for k in x)


def test_what_chooses_is_sampled_by_seeds_of_which_no_run_has_one() -> None:
    """Else the best would be evaluated on the very samples by which it was chosen."""
    seeds = {seed_along(seed) for seed in range(100)}
    assert len(seeds) == 100
    assert seeds.isdisjoint(range(100))


@pytest.mark.slow
def test_every_evaluation_of_a_run_is_in_the_precision_of_its_training(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base was sampled in float32 and the trained model with products in half precision."""
    seen = []

    def spy(name: str) -> Any:
        function = getattr(held_out, name)

        def spied(*args: Any, **kwargs: Any) -> Any:
            seen.append((name, torch.is_autocast_enabled("cpu")))
            return function(*args, **kwargs)

        return spied

    for name in ("evaluate", "sampled"):
        monkeypatch.setattr(held_out, name, spy(name))
    for half in (True, False):
        seen.clear()
        keep = ["eval_every=1", "keep=best", "max_steps=2", f"name=half-{half}"]
        run(recipe, tmp_path, *keep, f"bf16={str(half).lower()}")
        names = ["evaluate", "sampled", "sampled", "evaluate"]
        assert seen[:4] == [(name, half) for name in names]
        assert {enabled for _, enabled in seen} == {half}
