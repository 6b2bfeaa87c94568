"""Samples are functions of seed, problem and sample; an evaluation goes on where it was cut off."""

import datetime
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from prefix_rft.evaluation import run as eval_run
from prefix_rft.evaluation.run import EvalPlan, read_problems, run_eval
from prefix_rft.evaluation.samples import Request
from prefix_rft.evaluation.sets import EvalSet
from prefix_rft.support.errors import UserError
from tables import rest_slow
from tiny import CHAT_TEMPLATE, make_chat_tokenizer, make_model, make_rows, make_tokenizer

REWARD = "tiny_rewards:holds"
CODE = """
def holds(completions, answer, **kwargs):
    return [float(a in c) for c, a in zip(completions, answer)]
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, two files of rows and a reward."""
    folder = tmp_path_factory.mktemp("eval")
    tokenizer = make_tokenizer()
    for name, seed in (("old", 0), ("new", 1)):
        make_model(tokenizer, seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    make_rows(7).to_json(folder / "a.jsonl")
    make_rows(3, seed=1).to_json(folder / "b.jsonl")
    (folder / "tiny_rewards.py").write_text(CODE)
    return folder


def plan(
    task: Path, batch_size: int = 8, models: Sequence[str] = ("new",), **rest: Any
) -> EvalPlan:
    roles = {{"new": "model", "old": "base"}[m]: str(task / m) for m in models}
    sets = [EvalSet(name, f"{name}.jsonl", REWARD, folder=task) for name in ("a", "b")]
    request = Request(samples=3, max_completion_length=6, batch_size=batch_size)
    return replace(EvalPlan(roles, sets, (1.0, 0.0), request), **rest)


def nothing(*_: Any) -> None:
    pass


def files(folder: Path) -> dict[str, bytes]:
    """What an evaluation has written, by place."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(task: Path) -> Path:
    """An evaluation of the new model, not interrupted."""
    run_eval(plan(task), task / "whole", nothing)
    return task / "whole"


def test_result_says_what_was_done(whole: Path) -> None:
    result = json.loads((whole / "result.json").read_text())
    assert [(r["set"], r["temperature"]) for r in result["results"]] == [
        ("a", 1.0), ("a", 0.0), ("b", 1.0), ("b", 0.0)
    ]  # fmt: skip
    assert [r["problems"] for r in result["results"]] == [7, 7, 3, 3]
    assert [r["samples"] for r in result["results"]] == [3, 1, 3, 1]  # greedy takes one
    assert result["settings"]["models"]["model"]["sha256"]
    assert result["settings"]["samples"] == 3
    assert result["engine"] == "transformers"
    assert "torch" in json.dumps(result["machine"])
    first = json.loads((whole.parent / "a.jsonl").read_text().splitlines()[0])
    assert result["prompts"]["model"]["a"] == {
        "chat_template_sha256": None,
        "first_prompt": first["prompt"],
    }


def test_result_says_which_template_was_used(task: Path, tmp_path: Path) -> None:
    tokenizer = make_chat_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    row = {"prompt": [{"role": "user", "content": "1+1?"}], "answer": "2"}
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n")
    chat = replace(
        plan(task, sets=[EvalSet("c", str(tmp_path / "c.jsonl"), REWARD, folder=task)]),
        models={"model": str(tmp_path / "chat")},
    )
    found = run_eval(chat, tmp_path / "eval", nothing)["prompts"]["model"]["c"]
    assert found == {
        "chat_template_sha256": hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest(),
        "first_prompt": "<|user|>1+1?<|end|><|assistant|>",
    }


@pytest.mark.slow
def test_an_interrupted_evaluation_tells_the_date_of_its_start(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock(year: int) -> None:
        class Stopped(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.datetime(year, 1, 2)

        monkeypatch.setattr(chat_template_utils, "datetime", Stopped)

    tokenizer = make_chat_tokenizer("{{ strftime_now('%Y') }}" + CHAT_TEMPLATE)
    make_model(tokenizer).save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    rows = [{"prompt": [{"role": "user", "content": f"{i}+1?"}], "answer": "2"} for i in range(6)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = replace(
        plan(task, sets=[EvalSet("c", str(tmp_path / "c.jsonl"), REWARD, folder=task)]),
        models={"model": str(tmp_path / "chat")},
    )
    clock(2026)
    run_eval(chat, tmp_path / "whole", nothing)
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    path = cut / "samples/model/c-T1.jsonl"
    path.with_suffix(".done").unlink()
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    clock(2031)
    found = run_eval(chat, cut, nothing)
    assert found["prompts"]["model"]["c"]["first_prompt"].startswith("2026<|user|>")
    assert files(cut / "samples") == files(tmp_path / "whole/samples")
    run_eval(chat, tmp_path / "later", nothing)
    assert files(tmp_path / "later/samples") != files(cut / "samples")


def test_an_evaluation_goes_on_with_the_reward_it_began_with(
    task: Path, whole: Path, tmp_path: Path
) -> None:
    folder, here = shutil.copytree(whole, tmp_path / "eval"), shutil.copytree(task, tmp_path / "t")
    (folder / "samples/model/b-T1.done").unlink()
    (here / "tiny_rewards.py").write_text(CODE.replace("a in c", "a not in c"))
    sets = [replace(s, folder=here) for s in plan(task).sets]
    with pytest.raises(UserError, match=r"b-reward.json' is of another evaluation.*'sha256'"):
        run_eval(plan(task, sets=sets), folder, nothing)


@pytest.mark.parametrize("batch_size", rest_slow([1, 2, 64], lambda batch_size: batch_size == 2))
def test_samples_do_not_depend_on_the_batch(task: Path, whole: Path, batch_size: int) -> None:
    folder = task / f"batch-{batch_size}"
    run_eval(plan(task, batch_size), folder, nothing)
    assert files(folder / "samples") == files(whole / "samples")


def test_samples_differ(whole: Path) -> None:
    texts = [s.text for p in read_problems(whole / "samples/model/a-T1.jsonl") for s in p.samples]
    assert len(set(texts)) == 21


def test_another_seed_draws_other_samples(task: Path, whole: Path) -> None:
    other = plan(task)
    run_eval(replace(other, request=replace(other.request, seed=1)), task / "seed", nothing)
    at = "model/a-T1.jsonl"
    assert files(task / "seed/samples")[at] != files(whole / "samples")[at]


def test_a_limit_leaves_the_first_problems_as_they_are(task: Path, whole: Path) -> None:
    first = EvalSet("a", "a.jsonl", REWARD, folder=task, limit=2)
    run_eval(plan(task, sets=[first]), task / "limit", nothing)
    at = "samples/model/a-T1.jsonl"
    assert read_problems(task / "limit" / at) == read_problems(whole / at)[:2]


@pytest.mark.parametrize("cut", rest_slow([0, 1, 900, 1500], lambda cut: cut in (1, 900)))
def test_goes_on_after_a_cut(
    task: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """A process that died in the middle of a write: none is lost, and of the problems that are
    sampled together (two, of three samples in a batch of eight) all are drawn again or none."""
    folder = tmp_path / "eval"
    shutil.copytree(whole, folder)
    (folder / "result.json").unlink()
    path = folder / "samples/model/b-T1.jsonl"
    path.with_suffix(".done").unlink()
    path.write_bytes(path.read_bytes()[:cut])
    drawn: list[int] = []
    draw = eval_run.sample_and_grade

    def counted(model: Any, tokenizer: Any, rows: Any, *rest: Any) -> Any:
        drawn.append(len(rows))
        return draw(model, tokenizer, rows, *rest)

    left = 3 - path.read_bytes().count(b"\n") // 2 * 2
    monkeypatch.setattr(eval_run, "sample_and_grade", counted)
    run_eval(plan(task), folder, nothing)
    assert drawn == [left]
    assert files(folder / "samples") == files(whole / "samples")
    known = json.loads((whole / "result.json").read_text())
    assert json.loads((folder / "result.json").read_text())["results"] == known["results"]


def test_a_second_evaluation_draws_nothing(
    task: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(eval_run, "load_model", fail)
    assert run_eval(plan(task), whole, nothing)["results"]


def test_more_temperatures_are_added(task: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    shutil.copytree(whole, folder)
    result = run_eval(plan(task, temperatures=(1.0, 0.0, 0.6)), folder, nothing)
    assert len(result["results"]) == 6
    assert (folder / "samples/model/a-T0.6.jsonl").is_file()


def test_before_and_after(task: Path, whole: Path, tmp_path: Path) -> None:
    result = run_eval(plan(task, models=("old", "new")), tmp_path / "eval", nothing)
    found = {(d["set"], d["temperature"]): d for d in result["differences"]}
    means = {(r["model"], r["set"], r["temperature"]): r["avg"]["mean"] for r in result["results"]}
    assert len(found) == 4
    for (one, t), d in found.items():
        assert d["mean"] == pytest.approx(means["model", one, t] - means["base", one, t])
    # The same model before and after: the same draws, a difference of exactly 0.
    both = replace(plan(task), models={"base": str(task / "new"), "model": str(task / "new")})
    result = run_eval(both, tmp_path / "same", nothing)
    assert [(d["mean"], d["low"], d["high"]) for d in result["differences"]] == [(0, 0, 0)] * 4


# ---- what is refused ----------------------------------------------------------------------------


def test_other_settings_are_refused(task: Path, whole: Path) -> None:
    before = files(whole)
    first = plan(task)
    more = replace(first, request=replace(first.request, samples=4))
    for other, what in (
        (more, "samples"),
        (replace(first, request=replace(first.request, seed=1)), "seed"),
        (replace(first, models={"model": str(task / "old")}), "models"),
        (replace(first, sets=first.sets[:1]), "sets"),
    ):
        with pytest.raises(UserError, match=f"another '{what}'"):
            run_eval(other, whole, nothing)
    assert files(whole) == before


def test_other_rows_under_the_same_name_are_refused(
    task: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "eval")
    for name in ("a.jsonl", "b.jsonl", "tiny_rewards.py"):
        shutil.copy(task / name, tmp_path / name)
    moved = [replace(s, folder=tmp_path) for s in plan(task).sets]
    assert run_eval(plan(task, sets=moved), tmp_path / "eval", nothing)["results"]
    make_rows(7, seed=5).to_json(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="another 'sets'"):
        run_eval(plan(task, sets=moved), tmp_path / "eval", nothing)


def test_a_folder_of_something_else_is_refused(task: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no evaluation"):
        run_eval(plan(task), tmp_path, nothing)
    assert files(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    "line", ["{}", "[]", "nonsense", '{"problem": 5, "columns": {}, "samples": []}']
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "s.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"s\.jsonl', line 1 is damaged"):
        read_problems(tmp_path / "s.jsonl")


def test_nothing_to_grade_with(task: Path, tmp_path: Path) -> None:
    bare = [EvalSet("a", "a.jsonl", None, folder=task)]
    with pytest.raises(UserError, match="set 'a' has no reward"):
        run_eval(plan(task, sets=bare), tmp_path / "eval", nothing)
