"""Rows that wait for others of their group: who is sampled when, from what, and at what cost."""

import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from test_family_rounds import Attempt, Watch, check_files, check_metrics, demonstrations, run, same

import prefix_rft.engines.trl.rollouts as module
from prefix_rft.engines.trl.forward import Forward
from prefix_rft.support.errors import UserError
from second.step import trl_run

TURNS = (0, 0, 0, 0, 1, 1, 2, 3)
RULES = ("mixed", "wrong", "patchy", "never", "wrong", "right", "mixed", "mixed")
SETTINGS = {"num_generations": 8, "max_steps": 4, "logging_steps": 100}


def before(attempt: Attempt, group: int, turn: int) -> float:
    """The sum of the rewards of a group's rows before a turn; those without one count as 0."""
    rewards = attempt.rewards[8 * group : 8 * group + 8]
    return sum(r for r, t in zip(rewards, TURNS, strict=True) if t < turn and r == r)


def share(turn: int, done: float) -> float:
    """Of the demonstration, by the three comparisons of the authors' code."""
    if turn == 1:
        return 0.25 if done < 2 else 0.0
    if turn == 2:
        return 0.5 if done < 4 else 0.0
    return 1.0 if turn == 3 and done < 7 else 0.0


def check_turns(watch: Watch) -> dict[tuple[int, bool], int]:
    """Every generation has four turns; how often the rows of each were helped, and were not."""
    dataset = watch.trainer.train_dataset
    seen: dict[tuple[int, bool], int] = {}
    for turns in watch.generations:
        assert len(turns) == 4
        for turn, attempt in enumerate(turns):
            for i, plan in enumerate(attempt.plans):
                group, row = divmod(i, 8)
                assert (plan.group, plan.row, plan.attempt) == (group, row, 0)
                assert plan.more == (turn < 3)
                if TURNS[row] > turn:  # it waits, and costs nothing
                    assert plan.filler
                    assert i not in attempt.asked
                    assert attempt.completions[i] == [trl_run.EOS]
                    continue
                assert not plan.filler
                if TURNS[row] < turn:  # it stays as it was
                    assert i not in attempt.asked
                    assert attempt.completions[i] == turns[turn - 1].completions[i]
                    assert same([attempt.rewards[i]], [turns[turn - 1].rewards[i]])
                    continue
                known = demonstrations(dataset, plan.example)
                done = before(turns[turn - 1], group, turn) if turn else 0.0
                asked = share(turn, done) if known else 0.0
                length = math.floor(asked * len(known[0])) if known else 0
                assert list(plan.prefix) == (known[0][:length] if known else [])
                assert plan.whole == (asked == 1.0)
                assert (i in attempt.asked) == (not plan.whole)
                assert attempt.completions[i][:length] == list(plan.prefix)
                assert plan.context == (row == 4 and length > 0)
                key = turn, asked > 0.0
                seen[key] = seen.get(key, 0) + 1
    return seen


def test_each_row_is_sampled_once_when_it_has_its_turn(tmp_path: Path) -> None:
    """Groups that are mixed, wrong, right, or hard to grade; one without a demonstration."""
    rows = trl_run.make_rewards(RULES, missing=(4,))
    _, recorder, watch = run(tmp_path, "trapo", rows, **SETTINGS, log_rollouts=True)
    seen = check_turns(watch)
    assert {(t, helped) for t in (1, 2, 3) for helped in (True, False)} <= seen.keys()
    for turns in watch.generations:
        sampled = [i for attempt in turns for i in attempt.asked]
        whole = [i for i, plan in enumerate(turns[-1].plans) if plan.whole]
        assert sorted(sampled + whole) == list(range(16))
    assert not any(r["row_dropped"].any() for r in watch.trained)
    check_metrics(watch)
    check_files(tmp_path, watch)
    assert "groups/resampled" not in watch.logged
    # The prefix of the first of two rows that start alike is kept nowhere.
    texts = [p.read_text() for p in tmp_path.glob("rollouts/kept_*")]
    kept = [json.loads(line) for text in texts for line in text.splitlines()]
    assert {row["row"] for row in kept if not row["kept"]} == {4}
    assert {row["row"] for row in kept if row["kept"]} == {5, 6}
    shares = []
    for record in recorder.records:
        if size := sum(r.prefix for r in record.rows):
            shares.append(sum(r.prefix for r in record.rows if r.place != 4) / size)
    assert watch.logged["prefix/kept"] == pytest.approx(shares)


@pytest.mark.parametrize(("settings", "passes"), [({}, 0), ({"num_iterations": 2}, 1)])
def test_turns_cost_no_forward(tmp_path: Path, settings: dict[str, Any], passes: int) -> None:
    """Log-probs of the old policy are those of all rows, once they are all there."""
    rows = trl_run.make_rewards(RULES)
    with mock.patch.object(module, "Forward", wraps=Forward) as forward:
        _, _, watch = run(tmp_path, "trapo", rows, **{**SETTINGS, "max_steps": 2}, **settings)
    assert forward.call_count == passes * len(watch.generations)
    assert [len(turns) for turns in watch.generations] == [4] * len(watch.generations)
    drawn = sum(
        len(attempt.completions[i]) - len(attempt.plans[i].prefix)
        for turns in watch.generations
        for attempt in turns
        for i in attempt.asked
    )
    assert sum(watch.logged["tokens/sampled"]) == drawn


def test_a_group_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="8 rows do not fill a group of 4"):
        run(tmp_path, "trapo", trl_run.make_rewards(RULES), max_steps=1)
