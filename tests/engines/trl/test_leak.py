"""The guard against prefixes that give the answer away: what is graded, and where rows start."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from prefix_rft import PrefixRFTTrainer
from prefix_rft.data.demonstrations import EXAMPLE, IDS
from prefix_rft.data.render import Renderer
from prefix_rft.engines.trl import DemonstrationConfig
from prefix_rft.engines.trl.rollout.leak import Leaks
from prefix_rft.rewards import checked
from prefix_rft.support.phases import Phases
from tiny import make_config, make_model, make_tokenizer

EARLY, LATE = "#12" + ";" * 17, ";" * 17 + "#12"
"""With EOS 21 tokens: of one the first 3 are correct alone, of the other the first 20."""
HALF = {"prefix_low": 0.5, "prefix_high": 0.5}


class Spy:
    """A reward for what holds an answer, that notes what it is given."""

    __name__ = "spy"

    def __init__(self, answer: str = "#12") -> None:
        self.answer = answer
        self.seen: list[str] = []

    def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
        self.seen += completions
        return [float(self.answer in c) for c in completions]


def train(folder: Path, spy: Spy, **settings: Any) -> tuple[Any, list[list[dict[str, Any]]]]:
    """A run on one row of either kind, and the rollouts of its steps."""
    rows = Dataset.from_dict({"prompt": ["a", "b"], "demonstration": [EARLY, LATE]})
    how = {"log_prefix_leak": True, "log_rollouts": True, "max_steps": 1, **settings}
    trainer = PrefixRFTTrainer(
        make_model(make_tokenizer()),
        spy,
        make_config(folder, **how),
        train_dataset=rows,
        processing_class=make_tokenizer(),
    )
    trainer.train()
    steps = sorted((folder / "rollouts").glob("step_*.jsonl"))
    return trainer, [[json.loads(x) for x in p.read_text().splitlines()] for p in steps]


def lengths_of(rollouts: list[dict[str, Any]]) -> dict[int, set[int]]:
    """Of each example, the lengths of the prefixes of its rows."""
    found: dict[int, set[int]] = {}
    for row in rollouts:
        if row["prefix_length"]:
            found.setdefault(row["example"], set()).add(row["prefix_length"])
    return found


@pytest.mark.parametrize(
    ("method", "options", "free", "guarded"),
    [
        ("prefix_rft", HALF, {0: {10}, 1: {10}}, {0: {2}, 1: {10}}),
        ("control", {"plain": 0.0}, {0: {18}, 1: {18}}, {0: {2}, 1: {18}}),
        ("control", {"plain": 0.0, "first": 0.97}, {0: {20}, 1: {20}}, {0: {2}, 1: {19}}),
    ],
)
def test_a_prefix_ends_before_it_is_correct(
    tmp_path: Path, method: str, options: dict, free: dict, guarded: dict
) -> None:
    how: dict[str, Any] = {"method": method, "method_options": options}
    leaking = sum(free[e] != guarded[e] for e in (0, 1)) / 2
    for name, guard, expected, leak in (
        ("free", False, free, leaking),
        ("guarded", True, guarded, 0.0),
    ):
        trainer, steps = train(tmp_path / name, Spy(), guard_prefix_leak=guard, **how)
        assert lengths_of(steps[0]) == expected
        line = trainer.state.log_history[0]
        assert line["prefix/leak"] == leak
        assert line.get("prefix/guarded") == (leaking if guard else None)


def test_a_controller_learns_from_where_its_rows_began(tmp_path: Path) -> None:
    """All of the rows are wrong, so its share goes from 2/21 to .1 more."""
    how: dict[str, Any] = {"method": "control", "method_options": {"plain": 0.0}}
    trainer, _ = train(tmp_path, Spy(), guard_prefix_leak=True, **how)
    assert trainer.method_state.examples[0]["u"] == pytest.approx(2 / 21 + 0.1)


def test_each_source_is_graded_once(tmp_path: Path) -> None:
    """In four steps of both examples: 20 prefixes of each, and the 64 rows."""
    spy = Spy()
    how: dict[str, Any] = {"max_steps": 4, "method_options": HALF, "log_prefix_leak": False}
    train(tmp_path, spy, guard_prefix_leak=True, **how)
    assert len(spy.seen) == 2 * 20 + 4 * 16
    assert spy.seen[:40] == [d[:n] for d in (EARLY, LATE) for n in range(1, 21)] or spy.seen[
        :40
    ] == [d[:n] for d in (LATE, EARLY) for n in range(1, 21)]


def test_own_rollouts_are_guarded(tmp_path: Path) -> None:
    """What is right holds a 1, soon or late, and so does most of what is given of it again."""
    how: dict[str, Any] = {"method": "pass_rate", "max_steps": 4}
    options = {"method_options": {"hard_below": 1.0, "easy_above": 0.0}}
    leaks = []
    for name, guard in (("free", False), ("guarded", True)):
        folder = tmp_path / name
        trainer, _ = train(folder, Spy("1"), guard_prefix_leak=guard, **how, **options)
        lines = trainer.state.log_history
        leaks.append([line["prefix/leak"] for line in lines if "prefix/leak" in line])
        assert any(line.get("prefix/guarded", 0.0) > 0.0 for line in lines) == guard
    assert max(leaks[0]) > 0.0
    assert set(leaks[1]) == {0.0}


def test_another_example_has_its_own_limits(tmp_path: Path) -> None:
    """No row is right, so every group is resampled, for an example of either kind."""
    options = {**HALF, "all_wrong": "resample", "attempts": 3}
    how: dict[str, Any] = {"method_options": options, "num_generations": 4, "max_steps": 3}
    trainer, steps = train(
        tmp_path, Spy(), guard_prefix_leak=True, per_device_train_batch_size=4, **how
    )
    rows = [row for rollouts in steps for row in rollouts]
    assert any(row["attempt"] for row in rows)
    assert lengths_of(rows) == {0: {2}, 1: {10}}
    assert all(line.get("prefix/leak", 0.0) == 0.0 for line in trainer.state.log_history)


def test_prefixes_grow_up_to_their_limits(tmp_path: Path) -> None:
    """Of 21 tokens a half, then three quarters: 15."""
    options = {**HALF, "all_wrong": "lengthen", "attempts": 1}
    _, steps = train(tmp_path, Spy(), method_options=options, guard_prefix_leak=True)
    assert lengths_of(steps[0]) == {0: {2}, 1: {15}}
    again = {row["example"]: row["attempt"] for row in steps[0] if row["prefix_length"]}
    assert again == {0: 0, 1: 1}


class Others:
    """This process's part of a run whose other process says this of the same examples."""

    def __init__(self, said: list[Any]) -> None:
        self.said = said

    def gather_list(self, xs: list[Any]) -> list[Any]:
        said, self.said = self.said, []
        return [*xs, *said]


def leaks(spy: Spy, said: list[Any]) -> Leaks:
    args: Any = make_config("unused", guard_prefix_leak=True)
    processes: Any = Others(said)
    return Leaks(args, [checked(spy)], Renderer(make_tokenizer(), (1,)), processes, Phases())


def example(number: int, *texts: str) -> dict[str, Any]:
    ids = [[*make_tokenizer()(t)["input_ids"], 1] for t in texts]
    return {EXAMPLE: number, IDS: ids, "prompt": "a"}


def test_limits_by_hand() -> None:
    """The shortest prefix that is right counts, whether or not a longer one is wrong again."""
    spy = Spy()
    found = leaks(spy, [])
    rows = [example(4, EARLY, "no"), example(5), example(6, "#12", LATE), example(4, EARLY, "no")]
    assert found.limits(rows) == {4: (2, 2), 5: (), 6: (2, 19)}
    count = len(spy.seen)
    assert count == 20 + 2 + 3 + 20
    assert found.limits([example(6, LATE, "#1;#12")]) == {6: (19, 5)}
    assert len(spy.seen) == count + 6  # what is known is not graded again

    class Exact(Spy):
        def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
            return [float(c == "#12") for c in completions]

    assert leaks(Exact(), []).limits([example(4, "#125;")]) == {4: (2,)}


def test_all_processes_take_the_shortest_limit_that_any_found() -> None:
    """A grader that differs, say by its time limit, does not tear a group apart."""
    spy, rows = Spy(), [example(4, EARLY, LATE)]
    leaks(spy, []).limits(rows)
    mine = leaks(spy, [])
    mine.limits(rows)
    (key,) = mine._known.values()
    early, late = key
    found = leaks(spy, [(4, {early: 7, late: 5}), (9, {early: 2})])
    assert found.limits(rows) == {4: (2, 5)}
    count = len(spy.seen)
    assert found.limits([example(9, EARLY)]) == {9: (2,)}  # the other one has graded it
    assert len(spy.seen) == count


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["grpo", "luffy", "relift"])
def test_without_prefixes_there_is_nothing_to_guard(tmp_path: Path, method: str) -> None:
    with pytest.raises(ValueError, match="starts no row from a prefix: leave it out"):
        make_config(tmp_path, method=method, guard_prefix_leak=True)
    how: dict[str, Any] = {"all_wrong": "lengthen"}
    if method == "grpo":
        make_config(tmp_path, method=method, method_options=how, guard_prefix_leak=True)


def test_imitation_has_no_such_setting(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"guard_prefix_leak": True}
    with pytest.raises(TypeError, match="guard_prefix_leak"):
        DemonstrationConfig(output_dir=str(tmp_path), **settings)
