"""A run goes on with the answers, rewards, model and template it began with; and with a folder."""

import io
import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import killed_runs as killed
import pytest
import yaml
from rich.console import Console

from prefix_rft.engines.verl import from_recipe
from prefix_rft.runs.folder import begun, taken
from prefix_rft.support.errors import UserError
from prefix_rft.training.resume import changes
from prefix_rft.training.run import remove_empty
from prefix_rft.training.train import train
from tables import rest_slow
from tiny import CHAT_TEMPLATE, make_chat_tokenizer, make_model

OVERRIDES = ["max_steps=2", "save_steps=1", "reward.workers=1"]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, all that it names, and its run, which lacks its last step."""
    folder = tmp_path_factory.mktemp("task")
    recipe = killed.write_task(folder)
    tokenizer = make_chat_tokenizer()
    make_model(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [json.loads(x) for x in (folder / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "spread.py").write_text(
        "from scale import SCALE\n"
        "def shaped(completions, answer, bonus=0.0, **kwargs):\n"
        "    return [bonus + SCALE * sum(x.isdigit() for x in c[0]['content'][:20])\n"
        "            + float(a in c[0]['content']) for c, a in zip(completions, answer)]\n"
    )
    (folder / "scale.py").write_text("SCALE = 0.01\n")
    data = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**data, "reward": {"name": "spread:shaped"}}))
    train(str(recipe), [*OVERRIDES, f"runs={folder}/runs"], QUIET)
    for name in ("model", "checkpoint-2"):
        shutil.rmtree(folder / "runs/run" / name)
    return folder


def rewritten(name: str, old: str, new: str) -> Any:
    def change(folder: Path) -> list[str]:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
        return []

    return change


def another_answer(folder: Path) -> list[str]:
    """Of the last row alone."""
    rows = [json.loads(x) for x in (folder / "train.jsonl").read_text().splitlines()]
    rows[-1]["answer"] = "99"
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return []


def another_template(folder: Path) -> list[str]:
    tokenizer = make_chat_tokenizer(CHAT_TEMPLATE.replace("<|end|>", "<|end|>\n"))
    tokenizer.save_pretrained(folder / "base")
    return []


def another_model(folder: Path) -> list[str]:
    shutil.copytree(folder / "base", folder / "other")
    return ["model=other"]


CHANGES: dict[str, tuple[Any, str]] = {
    "nothing": (lambda folder: [], ""),
    "answers": (another_answer, "other values in column 'answer', which the rewards are given"),
    "reward": (rewritten("spread.py", "[:20]", "[:10]"), r"another reward 'shaped' \(its source"),
    "beside it": (rewritten("scale.py", "0.01", "0.02"), r"another reward 'shaped' \(its source"),
    "option": (lambda folder: ["reward.bonus=0.5"], r"another reward 'shaped' \(its source or its"),
    "no answer": (lambda folder: ["reward.no_answer=exclude"], "another reward 'shaped'"),
    "one more": (
        lambda folder: ["reward=[{name: spread:shaped, workers: 1}, format]"],
        "another reward|reward_weights",
    ),
    "template": (another_template, "another chat template"),
    "kwargs": (lambda folder: ["chat_template_kwargs={a: 1}"], "chat_template_kwargs None"),
    "prompts": (lambda folder: ["system_prompt=Add!"], "was made with other rows"),
    "model": (another_model, "began with model base, and this recipe has other"),
    "weights": (lambda folder: ["model_init_kwargs={dtype: bfloat16}"], "began with model_init_"),
}


@pytest.mark.parametrize(
    ("what", "named"),
    rest_slow(
        [*product(CHANGES, [False]), ("answers", True), ("model", True)],
        lambda what, named: named or what in ("nothing", "beside it", "template", "prompts"),
    ),
)
def test_what_a_run_is_made_of_cannot_change(
    task: Path, tmp_path: Path, what: str, named: bool
) -> None:
    folder = shutil.copytree(task, tmp_path / "task")
    change, words = CHANGES[what]
    more = change(folder)
    run = folder / "runs/run"
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.name != ".lock" and p.is_file()}
    where = [f"resume_from_checkpoint={run}/checkpoint-1"] if named else []
    where = [*OVERRIDES, f"runs={folder}/runs", *where, *more]
    if what == "nothing":
        train(str(folder / "recipe.yaml"), where, QUIET, resume=True)
        assert (run / "checkpoint-2").is_dir()
        return
    with pytest.raises(UserError, match=words):
        train(str(folder / "recipe.yaml"), where, QUIET, resume=not named)
    after = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.name != ".lock" and p.is_file()}
    assert before == after


def test_a_changed_rate_is_said_and_trained(task: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(task, tmp_path / "task")
    console = Console(record=True, width=200, file=io.StringIO())
    more = [*OVERRIDES, f"runs={folder}/runs", "learning_rate=4e-3", "lr_scheduler_type=linear"]
    run = train(str(folder / "recipe.yaml"), more, console, resume=True)
    assert "changed since the run began: trainer.learning_rate: 0.01 -> 0.004" in (
        console.export_text()
    )
    rates = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert rates[-2]["step"] == 2
    assert rates[-2]["learning_rate"] == pytest.approx(4e-3 / 2, rel=1e-12)  # linear, 1 of 2 done


@pytest.mark.slow
def test_trl_may_write_into_the_folder_before_the_run_begins(task: Path, tmp_path: Path) -> None:
    """``log_completions`` makes a folder when the trainer is made."""
    more = [*OVERRIDES, "max_steps=1", f"runs={tmp_path}", "log_completions=true"]
    for name in ("run", "run-2"):
        assert train(str(task / "recipe.yaml"), more, QUIET) == tmp_path / name
        assert list((tmp_path / name / "completions").iterdir())


@pytest.mark.slow
def test_so_may_a_tracker(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As codecarbon, which makes its files when the trainer is made."""
    from prefix_rft.engines.trl import PrefixRFTTrainer

    init = PrefixRFTTrainer.__init__

    def tracked(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        (Path(self.args.output_dir) / "emissions.csv").write_text("0")

    monkeypatch.setattr("prefix_rft.training.run.PrefixRFTTrainer.__init__", tracked)
    more = [*OVERRIDES, "max_steps=1", f"runs={tmp_path}"]
    for name in ("run", "run-2"):
        assert train(str(task / "recipe.yaml"), more, QUIET) == tmp_path / name


def test_another_run_that_began_meanwhile_is_left_alone(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefix_rft.engines.trl import PrefixRFTTrainer

    init = PrefixRFTTrainer.__init__

    def slow(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        (tmp_path / "run/recipe.yaml").write_text("name: run\n")

    monkeypatch.setattr("prefix_rft.training.run.PrefixRFTTrainer.__init__", slow)
    with pytest.raises(UserError, match="another run has taken the folder"):
        train(str(task / "recipe.yaml"), [*OVERRIDES, f"runs={tmp_path}"], QUIET)
    assert [p.name for p in (tmp_path / "run").iterdir() if p.name != ".lock"] == ["recipe.yaml"]


def test_folders_without_a_file_are_free_and_taken_back(tmp_path: Path) -> None:
    (tmp_path / "run/completions").mkdir(parents=True)
    (tmp_path / "run/.lock").touch()
    assert not taken(tmp_path / "run")
    assert not taken(tmp_path / "none")
    (tmp_path / "run/.lock").unlink()
    (tmp_path / "other/a").mkdir(parents=True)
    (tmp_path / "other/a/b").touch()
    assert taken(tmp_path / "other")
    remove_empty([tmp_path / "run", tmp_path / "other"])
    assert [p.name for p in tmp_path.iterdir()] == ["other"]
    assert not begun(tmp_path / "other")


def refused(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """What verl refuses of a run that began as ``before`` and is to go on as ``now``."""
    from_recipe.refuse_changes(folder, changes(before, now), now)


@pytest.mark.parametrize(
    ("key", "value", "acts"),
    [
        ("learning_rate", 1e-5, False),
        ("weight_decay", 0.1, False),
        ("seed", 5, False),
        ("temperature", 0.5, True),
        ("max_steps", 9, True),
        ("save_steps", 3, True),
    ],
)
def test_what_verl_does_not_do_on_going_on_is_refused(
    tmp_path: Path, key: str, value: Any, acts: bool
) -> None:
    """verl restores the optimizer and its schedule as they were."""
    before = {"reward": "math", "trainer": {"lr_scheduler_type": "constant", "max_steps": 5}}
    now = {**before, "trainer": {**before["trainer"], key: value}}
    if acts:
        refused(tmp_path, before, now)
        return
    with pytest.raises(UserError, match=f"with trainer.{key} .* does not act when verl goes on"):
        refused(tmp_path, before, now)


@pytest.mark.parametrize("change", [{"reward": "exact"}, {"model": "b"}, {"verl": {"a": 1}}])
def test_nor_does_verl_go_on_with_another_run(tmp_path: Path, change: dict[str, Any]) -> None:
    before: dict[str, Any] = {"reward": "math", "model": "a", "trainer": {}}
    with pytest.raises(UserError, match="which does not act when verl goes on"):
        refused(tmp_path, before, {**before, **change})
    cosine = {"lr_scheduler_type": "cosine", "max_steps": 5}
    with pytest.raises(UserError, match=r"with trainer.max_steps 5"):
        refused(tmp_path, {"trainer": cosine}, {"trainer": {**cosine, "max_steps": 9}})
