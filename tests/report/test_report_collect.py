"""Which groups are shown, which curves share a plot, which settings differ."""

from pathlib import Path

import pytest
from report_runs import metrics_of, rollout, row, write_run

from prefix_rft.report.chart import Line
from prefix_rft.report.collect import EXTREMES, collect
from prefix_rft.report.curves import place, plots, series_of
from prefix_rft.report.evaluation import scale_of, share
from prefix_rft.report.groups import SHORTEST, text_limit
from prefix_rft.report.samples import LONGEST, MOST_ROWS, group_of
from prefix_rft.report.settings import side_by_side
from prefix_rft.report.view import context
from prefix_rft.runs.evaluations import HeldOut, write_evaluations
from prefix_rft.runs.metric_names import OTHER, SCHEDULE, SPLIT, TRAINING
from prefix_rft.runs.reader import RunFolder, flatten
from prefix_rft.runs.rollouts import OLDER, mean_reward


def test_only_on_policy_rows_that_were_graded_rank_a_group() -> None:
    rows = [
        rollout(reward=1.0, prefix_length=2),
        rollout(reward=0.0),
        rollout(reward=1.0),
        rollout(reward=None),
        rollout(reward=None),
        rollout(reward=1.0, demonstration=True),
    ]
    assert mean_reward(rows, "on-policy") == 0.5
    assert mean_reward(rows, "hybrid") == 1.0
    assert mean_reward(rows[:1], "on-policy") is None
    assert [s.origin for s in group_of(rows, 0).samples] == [
        "hybrid",
        *["on-policy"] * 4,
        "demonstration",
    ]


def test_worst_and_best_groups_and_the_later_step_first(tmp_path: Path) -> None:
    # Rewards of the one on-policy row of groups 0 and 1; the hybrid row does not count.
    rewards = [(0.5, 0.0), (0.25, 1.0), (0.0, 1.0)]
    steps = [
        [
            r
            for g, x in enumerate(pair)
            for r in (row(g, 0, reward=x), row(g, 1, reward=1.0, prefix_length=1))
        ]
        for pair in rewards
    ]
    found = collect(RunFolder(write_run(tmp_path / "r", rollouts=steps)))
    order = [(2, 0), (0, 1), (1, 0), (0, 0), (2, 1), (1, 1)]
    assert [(g.step, g.number) for g in found.worst.values()] == order
    best = [(2, 1), (1, 1), (0, 0), (1, 0), (2, 0), (0, 1)]
    assert [(g.step, g.number) for g in found.best.values()] == best
    assert list(found.over_training) == [0, 1, 2]
    assert (found.generations, found.groups, found.rows) == (3, 6, 12)


def test_ten_groups_of_many_with_ties_by_later_step(tmp_path: Path) -> None:
    steps = [[row(g, reward=0.0) for g in range(3)] for _ in range(8)]
    found = collect(RunFolder(write_run(tmp_path / "r", rollouts=steps)))
    assert len(found.worst) == len(found.best) == EXTREMES
    expected = [(7, 0), (7, 1), (7, 2), (6, 0), (6, 1), (6, 2), (5, 0), (5, 1), (5, 2), (4, 0)]
    assert [(g.step, g.number) for g in found.worst.values()] == expected


def test_a_group_without_an_on_policy_row_has_no_rank(tmp_path: Path) -> None:
    rows = [row(0, prefix_length=1), row(1, reward=None)]
    found = collect(RunFolder(write_run(tmp_path / "r", rollouts=[rows])))
    assert found.worst == found.best == {}
    assert [g.policy_reward for g in found.over_training[0]] == [None, None]


def test_mean_lengths_by_origin(tmp_path: Path) -> None:
    rows = [
        row(0, 0, completion_ids=[0] * 6, prefix_length=4),
        row(0, 1, completion_ids=[0] * 8, prefix_length=2),
        row(0, 2, completion_ids=[0] * 3),
        row(0, 3, completion_ids=[0] * 9, demonstration=True),
    ]
    found = collect(RunFolder(write_run(tmp_path / "r", rollouts=[rows, rows[2:3]])))
    assert found.lengths == {
        "prefix": [(0, 7.0)],
        "continuation": [(0, 4.0)],
        "policy": [(0, 3.0), (1, 3.0)],
        "demonstration": [(0, 9.0)],
    }


def test_rows_of_an_older_version_are_read(tmp_path: Path) -> None:
    old = row(prefix_length=1)
    for name in OLDER:
        old.pop(name, None)  # a line leaves out what is not there
    found = collect(RunFolder(write_run(tmp_path / "r", rollouts=[[old]])))
    sample = found.over_training[0][0].samples[0]
    assert (sample.origin, sample.completion.kept, list(sample.verdicts)) == ("hybrid", None, [])
    assert not found.kept_known


def test_kept_tokens_come_from_their_file(tmp_path: Path) -> None:
    rows = [row(prefix_length=2, kept=[0])]
    found = collect(RunFolder(write_run(tmp_path / "r", rollouts=[rows])))
    assert found.kept_known
    assert found.over_training[0][0].samples[0].completion.kept == {0}


def test_long_rows_and_large_groups_are_not_held() -> None:
    rows = [rollout(0, i, text="x" * 9000, completion_ids=[1] * 9000) for i in range(40)]
    group = group_of(rows, 0)
    assert (group.rows, len(group.samples)) == (40, MOST_ROWS)
    completion = group.samples[0].completion
    assert (len(completion.text), completion.characters) == (LONGEST, 9000)
    assert (len(completion.ids), completion.tokens) == (LONGEST, 9000)


def test_texts_get_shorter_where_there_are_many(tmp_path: Path) -> None:
    few = collect(RunFolder(write_run(tmp_path / "a", rollouts=[[row()]])))
    rows = [row(g, i) for g in range(20) for i in range(16)]
    many = collect(RunFolder(write_run(tmp_path / "b", rollouts=[rows])))
    assert text_limit([few]) == LONGEST
    # 10 worst, 10 best and 3 of the only step, each of 16 rows and a prompt: 391 texts.
    assert text_limit([many]) == 500_000 // 391
    assert text_limit([many] * 8) == SHORTEST


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("policy/reward", (SPLIT, "reward", "policy")),
        ("prefix/reward", (SPLIT, "reward", "prefix")),
        ("continuation/logp", (SPLIT, "logp", "continuation")),
        ("gradient/prefix", (SPLIT, "gradient", "prefix")),
        ("tokens/demonstration", (SPLIT, "tokens", "demonstration")),
        ("prefix/low", (SCHEDULE, "bounds", "low")),
        ("prefix/length", (SCHEDULE, "prefix/length", "policy")),
        ("reward", (TRAINING, "reward", "policy")),
        ("loss", (TRAINING, "loss", "policy")),
        ("anything/else", (OTHER, "anything/else", "policy")),
        ("prefix", (OTHER, "prefix", "policy")),
    ],
)
def test_where_a_metric_is_drawn(name: str, expected: tuple[str, str, str]) -> None:
    assert place(name) == expected


def test_hybrid_and_on_policy_share_a_plot_and_runs_have_colours() -> None:
    first = series_of(metrics_of(3))
    second = {"policy/reward": [(1.0, 0.5), (2.0, 0.75)]}
    found = plots([("a", first), ("b", second)])
    assert list(found.sections) == [SPLIT, SCHEDULE, TRAINING]
    reward = found.sections[SPLIT][0]
    assert [(line.label, line.colour, line.dash) for line in reward.lines] == [
        ("a, on-policy", 0, "policy"),
        ("b, on-policy", 1, "policy"),
        ("a, hybrid", 0, "prefix"),
    ]
    assert reward.lines[1].points == [(1.0, 0.5), (2.0, 0.75)]
    assert [c.title for c in found.sections[SPLIT]] == ["Reward", "Entropy", "gradient"]
    # The upper bound never moves, but belongs to the plot of the lower one.
    bounds = found.sections[SCHEDULE][0]
    assert [line.label for line in bounds.lines] == ["a, low bound", "a, high bound"]
    assert not bounds.smooth
    assert found.constant == [("learning_rate", [1e-6, None])]


def test_metrics_without_a_curve() -> None:
    lines = [
        {"step": 1, "loss": 1.0, "x": None, "y": 2.0},
        {"step": 2, "loss": None, "x": None, "y": 2.0},
        {"step": 2, "train_runtime": 60.5},
    ]
    found = plots([("a", series_of(lines))])
    assert found.single == [("train_runtime", [60.5])]
    assert found.constant == [("x", [None]), ("y", [2.0])]
    assert found.sections[TRAINING][0].lines == [Line("a", [(1, 1.0), (2, None)])]
    assert plots([("a", {})]).sections == {}


def test_evaluations_and_their_scale() -> None:
    good = {"mean": 0.5, "low": 0.25, "high": 0.75, "problems": 4, "samples": 2}
    found = [HeldOut.read(good), HeldOut.read({**good, "truncated": 0.125})]
    assert [e.truncated for e in found] == [None, 0.125]
    assert scale_of(found) == (0.0, 1.0)
    assert share(0.256, (0.0, 1.0)) == "25.6 %"
    assert scale_of([HeldOut.read({**good, "low": -2.0})]) == (-2.0, 0.75)
    assert share(0.256, (-2.0, 0.75)) == "0.256"
    with pytest.raises(TypeError):
        HeldOut.read({**good, "mean": None})
    with pytest.raises(TypeError):
        HeldOut.read({**good, "per_problem": [1.0, None]})


def test_evaluations_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = HeldOut(2, 4, 0.625, 0.25, 1.0, 0.125, 0.0, 1, [0.25, 1.0])
    folder = write_run(tmp_path / "r")
    write_evaluations(folder, {"base": found, "trained": found})
    assert RunFolder(folder).evaluations() == {"base": found, "trained": found}


def test_settings_side_by_side() -> None:
    runs = [{"m": {"name": "x", "k": None}, "lr": 1e-6}, {"m": {"name": "y"}, "lr": 1e-6, "z": [1]}]
    assert flatten(runs[0]) == {"m.name": "x", "m.k": "null", "lr": "1e-06"}
    found = side_by_side(runs)
    assert [(s.key, list(s.values), s.differs) for s in found] == [
        ("m.name", ["x", "y"], True),
        ("m.k", ["null", None], True),
        ("lr", ["1e-06", "1e-06"], False),
        ("z", [None, "[1]"], True),
    ]


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / folder / "r") for folder in ("a", "b")]
    assert context([str(p) for p in paths])["labels"] == ["a/r", "b/r"]
