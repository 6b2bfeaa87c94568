"""A run's lines and files tell of every step once: evaluated, stopped, resumed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from trainers import imitation_trainer, rollout_trainer

from prefix_rft.runs.rollouts import cut_rollouts
from prefix_rft.support.errors import UserError
from second.step import measured

CLOCKS = ("time", "_per_second", "total_flos", "train_loss")


def start(folder: Path, **overrides: Any) -> Any:
    """Two updates on each generation of 16 rows."""
    settings = {
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "log_rollouts": True,
        "max_steps": 6,
    }
    return rollout_trainer(folder, eval_rows=8, **{**settings, **overrides})


def imitate(folder: Path, **overrides: Any) -> Any:
    """Two micro-batches a step."""
    settings = {"save_strategy": "no", "max_steps": 6}
    return imitation_trainer(folder, eval_rows=4, **{**settings, **overrides})


def totals(history: list[dict[str, float]]) -> dict[str, float]:
    """Each count of a run, added up from its log: values times the steps that they span."""
    found: dict[str, float] = {}
    last = 0.0
    for line in history:
        counts = {k.removeprefix("tokens/"): v for k, v in line.items() if k.startswith("tokens/")}
        for kind, n in counts.items():
            found[kind] = found.get(kind, 0.0) + n * (line["step"] - last)
        last = line["step"] if counts else last
    return {k: round(n, 6) for k, n in found.items()}


def lines_of(trainer: Any) -> list[dict[str, float]]:
    """The log without the times."""
    return [
        {k: v for k, v in line.items() if not any(c in k for c in CLOCKS)}
        for line in trainer.state.log_history
    ]


def files(folder: Path) -> dict[str, str]:
    """All files of rollouts."""
    return {p.name: p.read_text() for p in (folder / "rollouts").iterdir()}


@pytest.mark.slow
def test_evaluation_changes_no_count(tmp_path: Path) -> None:
    """In the middle and after the last step, where the log has no line of its own."""
    trainer = start(
        tmp_path,
        method_options={"prefix_loss": "all"},  # no entropies
        savings="none",
        logging_steps=4,
        eval_strategy="steps",
        eval_steps=3,
        per_device_eval_batch_size=8,
    )
    trainer.train()
    history = trainer.state.log_history
    assert [x["step"] for x in history if "loss" in x] == [3, 4, 6]
    assert [x["step"] for x in history if "eval_loss" in x] == [3, 6]
    made = measured.read(tmp_path, "step")
    rows = [x for lines in made.values() for x in lines]
    through = sum(len(x["prompt_ids"]) + len(x["completion_ids"]) for x in rows)
    prompts = [{tuple(x["prompt_ids"]) for x in lines} for lines in made.values()]
    assert totals(history) == {
        "sampled": sum(len(x["completion_ids"]) - x["prefix_length"] for x in rows),
        "prefilled": sum(len(p) for ps in prompts for p in ps)
        + sum(x["prefix_length"] for x in rows),
        "forward": through,  # log-probs of the old policy
        "trained": through,
    }


def test_steps_of_imitation_after_the_last_line_count(tmp_path: Path) -> None:
    every = imitate(tmp_path / "every", max_steps=5, logging_steps=1)
    few = imitate(
        tmp_path / "few", max_steps=5, logging_steps=2, eval_strategy="steps", eval_steps=5
    )
    for trainer in (every, few):
        trainer.train()
    assert totals(few.state.log_history) == totals(every.state.log_history)
    tail = imitate(tmp_path / "tail", max_steps=3, logging_steps=2)
    tail.train()
    assert [x["step"] for x in tail.state.log_history if "loss" in x] == [2, 3]
    silent = imitate(tmp_path / "silent", max_steps=1, logging_strategy="no")
    silent.train()
    assert not any("loss" in line for line in silent.state.log_history)


@pytest.mark.parametrize("make", [start, imitate])
def test_a_resumed_run_logs_the_lines_of_the_run(tmp_path: Path, make: Any) -> None:
    """From a checkpoint between two lines of the log, too."""
    more = {"gradient_shares_every": 3} if make is start else {}
    settings = {"save_strategy": "steps", "save_steps": 4, "logging_steps": 3, **more}
    whole = make(tmp_path / "whole", **settings)
    whole.train()
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    again = make(tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "again/checkpoint-4"))
    assert lines_of(again) == lines_of(whole)
    assert [x["step"] for x in lines_of(whole) if "loss" in x] == [3, 6]
    if make is start:
        assert files(tmp_path / "again") == files(tmp_path / "whole")


def test_rollouts_that_a_resumed_run_makes_anew_go(tmp_path: Path) -> None:
    """From the middle of a generation its rollouts stay, without the updates that come again."""
    settings = {"save_strategy": "steps", "save_steps": 3, "seed": 8}
    start(tmp_path, **settings).train()
    before = files(tmp_path)
    assert set(measured.read(tmp_path, "step")) == {0, 2, 4}
    assert {x["step"] for x in measured.read(tmp_path, "kept")[2]} == {2, 3}
    own = tmp_path / "rollouts/step_000004_notes.jsonl"
    own.write_text("mine\n")
    start(tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    own.unlink()
    assert files(tmp_path) == before


def test_half_a_line_goes_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "kept_000000.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"st')
    cut_rollouts(tmp_path, 1)
    assert path.read_text() == '{"step": 0}\n'
    path.write_text("[]\n")
    with pytest.raises(UserError, match=r"kept_000000\.jsonl' is damaged: TypeError"):
        cut_rollouts(tmp_path, 1)
    cut_rollouts(tmp_path, 0)
    assert not path.exists()
