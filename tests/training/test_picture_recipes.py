"""A recipe on rows with pictures, from the command: checked, trained, killed, shown, evaluated."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file

from prefix_rft.checks.inspect import run_inspect
from prefix_rft.checks.report import run_check
from prefix_rft.engines.models import load_model
from prefix_rft.runs.reader import RunFolder
from tiny_vision import make_llava, picture

GRADE = """
from zlib import crc32

def reward(completions, answer, **kwargs):
    texts = [c[-1]["content"] for c in completions]
    return [float(a in t or crc32(t.encode()) % 2) for a, t in zip(answer, texts)]
"""
RECIPE = {
    "name": "seen",
    "model": "model",
    "train_data": "train.jsonl",
    "eval_data": "test.jsonl",
    "reward": "grade:reward",
    "prompts_per_step": 4,
    "max_completion_length": 10,
    "max_steps": 4,
    "eval_samples": 1,
    "learning_rate": 1e-3,
}
ROLLOUTS = {"num_generations": 4, "micro_batch_size": 8}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    model, processor = make_llava()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    lines = []
    for i in range(12):
        files = [f"{i}-{j}.png" for j in range(i % 3)]
        for j, name in enumerate(files):
            picture(10 * i + j).save(folder / name)
        asks = [{"role": "user", "content": f"what is {i}?"}]
        row = {"prompt": asks, "images": files, "demonstration": f"it is {i % 4}"}
        lines.append(json.dumps({**row, "answer": str(i % 4)}) + "\n")
    (folder / "train.jsonl").write_text("".join(lines[:8]))
    first = json.loads(lines[10])  # with two pictures, in places of its own
    places = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
    first["prompt"][0]["content"] = [*places, {"type": "text", "text": "what is 10?"}]
    assert len(first["images"]) == 1
    first["images"] *= 2
    held_out = [json.dumps(first) + "\n", *lines[8:10], lines[11]]
    (folder / "test.jsonl").write_text("".join(held_out))
    (folder / "grade.py").write_text(GRADE)
    return folder


def recipe(task: Path, name: str, **keys: object) -> Path:
    path = task / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "name": name, **keys}))
    return path


def command(task: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefix_rft", *arguments]


def run(task: Path, *arguments: str) -> str:
    done = subprocess.run(
        command(task, *arguments), cwd=task, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("method", ["luffy", "sft", "prefix_rft", "grpo"])
def test_a_recipe_trains(task: Path, method: str) -> None:
    more = {} if method == "sft" else ROLLOUTS
    path = recipe(task, f"train-{method}", method=method, **more)
    out = run(task, "train", str(path))
    assert "held-out problems" in out
    folder = task / "runs" / f"train-{method}"
    before, after = (load_file(x / "model.safetensors") for x in (task / "model", folder / "model"))
    assert before.keys() == after.keys()
    assert any(not before[n].equal(after[n]) for n in before if n.startswith("vision_tower"))
    trained, processor = load_model(str(folder / "model"))
    assert type(trained).__name__ == "LlavaForConditionalGeneration"
    assert processor.tokenizer.padding_side == "left"


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(task: Path) -> None:
    keys = {"method": "prefix_rft", "max_steps": 24, "save_steps": 2, **ROLLOUTS}
    whole, killed = (recipe(task, name, **keys) for name in ("whole", "killed"))
    run(task, "train", str(whole))
    with subprocess.Popen(
        command(task, "train", str(killed)), cwd=task, stdout=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 200
        while not (task / "runs/killed/checkpoint-6").is_dir():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert not (task / "runs/killed/model").exists()
    run(task, "train", str(killed), "--resume")
    for name in ("model/model.safetensors", "rollouts/step_000023.jsonl"):
        a, b = (task / "runs" / x / name for x in ("whole", "killed"))
        assert a.read_bytes() == b.read_bytes(), name
    rollouts = RunFolder(task / "runs/killed").rollouts(23)
    assert {len(r.images) for r in rollouts} <= {0, 1, 2}
    assert "images[0]" in (task / "runs/killed/report.html").read_text()


def test_rows_are_checked_and_shown(task: Path) -> None:
    path = recipe(task, "checked", method="prefix_rft", **ROLLOUTS)
    console = Console(file=io.StringIO(), width=200)
    assert run_check(str(path), [], console)
    told = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "8 demonstrations in 8 rows" in told
    assert "ready" in told
    # "what is 2?" with its marks is 13 tokens, a picture 4.
    assert "longest" in told
    for model in (None, str(task / "model")):
        console = Console(file=io.StringIO(), width=200)
        run_inspect(str(path), [], console, number=3, model=model)
        told = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        assert "with images[0], images[1]" in told
        assert "21 tokens, not trained" in told
        assert "<image>" * 8 + "what is 2?" in told


def test_a_check_opens_every_picture(task: Path) -> None:
    rows = (task / "train.jsonl").read_text().splitlines()
    spoilt = [json.loads(row) for row in rows]
    (task / "short.png").write_bytes((task / "1-0.png").read_bytes()[:150])
    spoilt[4]["images"] = ["short.png"]
    spoilt[6]["demonstration"] = "<image>"
    (task / "spoilt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in spoilt))
    path = recipe(task, "spoilt", method="prefix_rft", train_data="spoilt.jsonl", **ROLLOUTS)
    console = Console(file=io.StringIO(), width=300)
    assert not run_check(str(path), [], console)
    told = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "row 5: 'images[0]', file" in told
    assert "cannot be read as a picture" in told
    assert "a token inside that stands for a picture" in told
