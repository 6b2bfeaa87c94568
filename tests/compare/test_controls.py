"""``controls`` of a comparison: which arms it adds, and what remains of a gain, by hand."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from compare_records import finish, make_board
from rich.console import Console

from prefix_rft.cli import main
from prefix_rft.compare.arm import ControlOf
from prefix_rft.compare.arms import read_comparison
from prefix_rft.compare.command import board_of
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.page import write_page
from prefix_rft.compare.remains import plain, remains, sentences
from prefix_rft.compare.results import arm_results
from prefix_rft.compare.view import as_markdown, show
from prefix_rft.core.teacher import Teacher
from prefix_rft.engines.setup import configure
from prefix_rft.evaluation.estimates import over_seeds, paired
from prefix_rft.support.errors import UserError
from prefix_rft.tasks.countdown import write

OPD = {"name": "opd", "path": "elsewhere"}


def arms_of(arms: dict[str, Any], controls: Any = True, **recipe: Any) -> Any:
    return read_comparison({**recipe, "compare": {"arms": arms, "controls": controls}})


# ---- which arms ----------------------------------------------------------------------------------


def test_an_arm_with_a_teacher_gets_its_controls_behind_it() -> None:
    found = arms_of(
        {
            "grpo": {"method": "grpo"},
            "a/rlsd": {"method": "rlsd", "learning_rate": 0.1, "sweep": {"beta": [1, 2]}},
            "b": {"start": "a/rlsd", "method": "grpo"},
        }
    )
    names = ["grpo", "a/rlsd", "a/rlsd, control: unrelated", "a/rlsd, control: none", "b"]
    assert [a.name for a in found.arms] == names
    arm, control = found.arms[1:3]
    assert control.keys == {**arm.keys, "method.control": "unrelated"}
    assert (control.sweep, control.start, control.group) == (arm.sweep, None, "a")
    assert control.control == ControlOf("a/rlsd", "unrelated", "column 'answer'")
    assert [a.control is None for a in found.arms] == [True, True, False, False, True]
    assert control.place == "a/rlsd, control=unrelated"
    assert found.arm("b").start == "a/rlsd"
    assert [a.name for a in arms_of({"grpo": {"method": "grpo"}, "r": {}}, False).arms] == [
        "grpo", "r"
    ]  # fmt: skip


def test_the_recipe_s_method_and_its_options_decide() -> None:
    teacher = {"context": "prefix", "column": None}
    found = arms_of({"a": {}, "b": {"method": "grpo"}}, ["wrong"], method={"name": "rlsd"})
    assert [a.name for a in found.arms] == ["a", "a, control: wrong", "b"]
    found = arms_of(
        {"a": {}}, ["none", "none"], method={"name": "rlsd", "teacher": teacher, "control": None}
    )
    assert [a.control and a.control.without for a in found.arms] == [
        None, "the demonstration's beginning"
    ]  # fmt: skip


def test_steps_of_a_control_cost_what_its_arm_s_do() -> None:
    found = arms_of({"a": {"method": "rlsd"}, "b": {"method": "rlsd", "match": "a"}})
    savings = [a.keys["savings"] for a in found.arms]
    assert savings == [["packing", "sampler_scores"]] * 6
    assert [a.match for a in found.arms] == [None, None, None, "a", "a", "a"]


def test_a_control_that_an_arm_cannot_have_is_said() -> None:
    arms = {
        "opd": {"method": OPD},
        "rlsd": {"method": "rlsd"},
        "own": {"method": {"name": "rlsd", "control": "none"}},
        "shown": {"method": {"name": "rlsd", "teacher": {"context": "wrong", "column": None}}},
    }
    found = arms_of(arms, ["unrelated", "wrong"])
    assert [a.name for a in found.arms] == [
        "opd", "rlsd", "rlsd, control: unrelated", "rlsd, control: wrong", "own", "shown",
        "shown, control: unrelated",
    ]  # fmt: skip
    assert found.arm("opd").lacks.keys() == {"unrelated", "wrong"}
    assert found.arm("shown").lacks == {"wrong": "its teacher is shown that already"}
    assert not found.arm("own").lacks


def test_teachers_of_which_one_sees_nothing_more() -> None:
    from prefix_rft.compare.controls import why_not

    both = [Teacher(), Teacher("other", context="none")]
    assert "one of its teachers sees no more" in why_not("unrelated", both)
    assert why_not("none", both) == ""


BAD: dict[str, tuple[dict[str, Any], Any]] = {
    "'controls' of 'compare' adds nothing: no arm has a method with a teacher": (
        {"a": {"method": "grpo"}}, True
    ),
    "adds nothing: arm 'a' has no control unrelated or none, since its teacher sees no more than "
    "the policy does": ({"a": {"method": OPD}}, True),
    "unknown control in 'controls' of 'compare' 'nune': did you mean 'none'?": (
        {"a": {"method": "rlsd"}}, ["nune"]
    ),
    "key of 'compare' 'controls' must be true or false or a list, got 'none'": (
        {"a": {"method": "rlsd"}}, "none"
    ),
    "arm 'a' sweeps 'method', so that it has no one method": (
        {"a": {"sweep": {"method": ["rlsd", "sdar"]}}}, True
    ),
    "arm 'a': unknown option of method rlsd 'credt'": (
        {"a": {"method": "rlsd", "method.credt": 1}}, True
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_refused(message: str) -> None:
    with pytest.raises(UserError) as refused:
        arms_of(*BAD[message])
    assert message in str(refused.value)


def test_a_control_reaches_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that comes with the task: what a control's run is told."""
    write(tmp_path, 10, 4, 0, 4)
    monkeypatch.chdir(tmp_path)
    block = json.dumps({"arms": {"a": {}}, "controls": ["unrelated"], "seeds": 1})
    board = board_of("recipes/rlsd.yaml", [f"compare={block}"], None, None, None, None)
    arm = board.comparison.arms[1]
    with_it, without = (board.keys(board.job(a, 0)) for a in board.comparison.arms)
    assert without == {**with_it, "method.control": "unrelated"}
    assert "control=unrelated" in str(board.job(arm, 0).folder)
    assert ":" not in str(board.job(arm, 0).folder)
    setup = configure("recipes/rlsd.yaml", ["method.control=unrelated"])
    setup.close()
    assert [t.shown for t in setup.method.teachers] == ["unrelated"]
    assert main(["compare", "recipe.yaml", "compare={controls: true}"]) == 2


# ---- what remains --------------------------------------------------------------------------------


def board_with(folder: Path, **more: Any) -> Board:
    arms = {"grpo": {"method": "grpo"}, "rlsd": {"method": "rlsd"}, "opd": {"method": OPD}}
    settings = {"arms": arms, "controls": True, "seeds": 2, "samples": 4, **more}
    return make_board(folder, settings)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """Three problems, four samples of each; one control lacks its second seed."""
    board = board_with(tmp_path)
    correct = {
        "grpo": ([2, 2, 2], [1, 2, 1]),
        "rlsd": ([3, 4, 3], [3, 4, 4]),
        "rlsd, control: unrelated": ([3, 3, 3], [2, 3, 3]),
        "rlsd, control: none": ([1, 1, 1], None),
        "opd": ([2, 2, 2], [2, 2, 2]),
    }
    finish(board, board.base, [1, 1, 0])
    for name, runs in correct.items():
        for seed, values in enumerate(runs):
            if values is not None:
                finish(board, board.job(board.comparison.arm(name), seed), values)
    return board


def test_gain_and_remainder_by_hand(board: Board) -> None:
    found = {(x.control.kind, x.over): x for x in remains(board, 1.0)}
    assert list(found) == [
        ("unrelated", "base"), ("none", "base"), ("unrelated", "grpo"), ("none", "grpo")
    ]  # fmt: skip
    one = found["unrelated", "base"]
    # Of 4: rlsd 21 of 24, its control 17, the base 2 of 12 at both seeds.
    assert one.gain.mean == pytest.approx(21 / 24 - 2 / 12)
    assert one.remains.mean == pytest.approx(17 / 24 - 2 / 12)
    assert one.difference.mean == pytest.approx(4 / 24)
    rlsd, control = [[0.75, 1, 0.75], [0.75, 1, 1]], [[0.75, 0.75, 0.75], [0.5, 0.75, 0.75]]
    base = [[0.25, 0.25, 0]] * 2
    assert one.gain == paired(rlsd, base)
    assert one.remains == paired(control, base)
    assert one.difference == paired(rlsd, control) == over_seeds([[0, 0.25, 0], [0.25, 0.25, 0.25]])
    other = found["unrelated", "grpo"]
    assert other.gain.mean == pytest.approx(21 / 24 - 10 / 24)
    assert other.difference == one.difference
    assert (one.seeds, found["none", "base"].seeds) == (2, 1)
    # Of the one seed that both have.
    assert found["none", "base"].gain.mean == pytest.approx(10 / 12 - 2 / 12)
    assert found["none", "grpo"].remains.mean == pytest.approx(3 / 12 - 6 / 12)


def test_a_share_has_the_interval_of_the_difference(board: Board) -> None:
    one = next(x for x in remains(board, 1.0) if x.control.kind == "none" and x.over == "base")
    assert one.gain.low > 0
    assert one.share is not None
    assert one.share.mean == pytest.approx((3 - 2) / (10 - 2))
    assert one.share.low == pytest.approx(1 - one.difference.high / one.gain.mean)
    assert one.share.high == pytest.approx(1 - one.difference.low / one.gain.mean)
    assert one.share.low < one.share.mean < one.share.high
    text = one.words
    assert text.startswith("of the gain of rlsd over base, +66.7 [")
    assert "], +8.3 remains without column 'answer' (control: none), 12 % [" in text
    assert text.endswith(f"; it adds {one.difference.signed}")


def test_without_a_gain_nothing_is_said_of_it(board: Board) -> None:
    """With two seeds that differ the gain's interval holds 0."""
    found = {(x.control.kind, x.over): x for x in remains(board, 1.0)}
    one = found["unrelated", "grpo"]
    assert one.gain.mean > 0.4
    assert one.gain.low < 0
    assert one.share is None
    assert one.words == f"no gain of rlsd over grpo is shown: {one.gain.signed}"
    assert sentences(board).count(one.words) == 1
    assert sentences(board)[-1] == (
        "arm 'opd' has no control unrelated or none, since its teacher sees no more than the "
        "policy does"
    )


def test_a_seed_that_the_reference_lacks_is_paired_with_nothing(tmp_path: Path) -> None:
    board = board_with(tmp_path)
    grpo, rlsd, *controls = board.comparison.arms[:4]
    finish(board, board.base, [1, 1, 0])
    finish(board, board.job(grpo, 1), [2, 2, 2])
    for seed in (0, 1):
        for arm in (rlsd, *controls):
            finish(board, board.job(arm, seed), [2 + seed, 2, 2])
    found = remains(board, 1.0)
    assert [(x.over, x.seeds) for x in found] == [("base", 2)] * 2 + [("grpo", 1)] * 2
    assert found[-1].gain.mean == pytest.approx(1 / 12)
    # Both controls say the same of a gain that is not shown: it is said once.
    assert [found[i].share for i in (2, 3)] == [None, None]
    assert sentences(board).count(found[-1].words) == 1


def test_what_a_difference_that_holds_zero_says(tmp_path: Path) -> None:
    board = board_with(tmp_path, controls=["none"], seeds=1)
    finish(board, board.base, [0, 0, 0, 1])
    rlsd, control = (board.comparison.arm(x) for x in ("rlsd", "rlsd, control: none"))
    finish(board, board.job(rlsd, 0), [3, 3, 3, 4])
    finish(board, board.job(control, 0), [4, 2, 3, 4])
    [one] = remains(board, 1.0)  # of the reference nothing is done yet
    assert one.share is not None
    assert one.share.mean == pytest.approx(1.0)
    assert one.share.low < 1 < one.share.high
    assert one.words.endswith(f"that it adds anything is not shown: {one.difference.signed}")


def test_only_problems_that_all_were_graded_on_count(tmp_path: Path) -> None:
    board = board_with(tmp_path, controls=["none"], seeds=1)
    rlsd, control = (board.comparison.arm(x) for x in ("rlsd", "rlsd, control: none"))
    finish(board, board.base, [0, 1, 2])
    finish(board, board.job(rlsd, 0), [3, 3, 4])
    finish(board, board.job(control, 0), [2, 2, 2])
    path = board.job(control, 0).folder / "done.json"
    record = json.loads(path.read_text())
    record["sets"]["held-out"]["1"]["graded"] = [4, 4, 0]
    path.write_text(json.dumps(record))
    board.records.clear()
    [one] = remains(board, 1.0)
    assert one.gain.mean == pytest.approx((3 / 4 + 2 / 4) / 2)  # not (3 + 2 + 2) / 12
    assert one.remains.mean + one.difference.mean == pytest.approx(one.gain.mean)


def test_a_reference_with_a_teacher_is_nothing_to_gain_over(tmp_path: Path) -> None:
    for reference in ("rlsd", "rlsd, control: none", "opd"):
        board = board_with(tmp_path, controls=["none"], seeds=1, reference=reference)
        for arm in board.comparison.arms:
            finish(board, board.job(arm, 0), [3, 3, 4])
        finish(board, board.base, [0, 0, 1])
        assert [x.over for x in remains(board, 1.0)] == ["base"]


def test_everything_that_is_shown_says_it(board: Board) -> None:
    arms = arm_results(board)
    console = Console(width=80, file=io.StringIO())
    show(console, board, arms)
    said = console.file.getvalue()  # pyright: ignore
    lines = [line for line in said.splitlines() if "remains without" not in line]
    assert "  control: unrelated" in said
    assert "…" not in said
    assert max(len(line) for line in lines if "no control" not in line) <= 80
    words = sentences(board)
    assert all(x in said for x in words)
    assert all(x in as_markdown(board, arms) for x in words)
    row = next(x for x in remains(board, 1.0) if x.control.kind == "none")
    assert f"| rlsd (1 of 2 seeds) | base | {row.gain.signed} | none |" in as_markdown(board, arms)
    page = write_page(board, arms).read_text(encoding="utf-8")
    assert "<h2>Controls</h2>" in page
    assert "rlsd, over base" in page
    assert "recipe: grpo, rlsd, opd" in page
    assert page.count("<li>") >= len(words)
    assert "+8.3 remains without column" in page
    left = json.loads(json.dumps(plain(board)))
    assert left["lacking"] == {"opd": dict(board.comparison.arm("opd").lacks)}
    numbers = {(x["control"]["kind"], x["over"]): x for x in left["controls"]}
    assert numbers["none", "base"]["share"]["mean"] == pytest.approx(1 / 8)
    assert numbers["unrelated", "grpo"]["share"] is None


def test_without_controls_nothing_is_said(tmp_path: Path) -> None:
    board = make_board(tmp_path, {"arms": {"grpo": {"method": "grpo"}}, "seeds": 1, "samples": 4})
    finish(board, board.base, [1, 1])
    finish(board, board.job(board.comparison.arms[0], 0), [1, 2])
    arms = arm_results(board)
    assert sentences(board) == []
    assert "remains" not in as_markdown(board, arms)
    assert "<h2>Controls</h2>" not in write_page(board, arms).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_comparison_with_controls_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 24, 8, 0, 4)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipes/rlsd.yaml"
    recipe = yaml.safe_load(path.read_text()) | {
        "prompts_per_step": 2, "micro_batch_size": 16, "max_steps": 2,
        "compare": {"arms": {"rlsd": {}}, "seeds": 1, "samples": 2, "temperatures": [1.0],
                    "controls": True},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(recipe))
    assert main(["compare", str(path), "--output", "out"]) == 0
    said = capsys.readouterr().out
    assert "over base" in said
    found = json.loads((tmp_path / "out/controls.json").read_text())
    assert [x["control"]["kind"] for x in found["controls"]] == ["unrelated", "none"]
    text = (tmp_path / "out/arms/rlsd, control=unrelated/seed-0/recipe.yaml").read_text()
    assert "control: unrelated" in text
