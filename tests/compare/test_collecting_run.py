"""Own answers within a comparison: the real thing, counted again from what it has stored."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from test_compare_run import WAIT_SECONDS, compare, records
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefix_rft.cli import main
from prefix_rft.compare.collection import ROWS
from prefix_rft.compare.command import board_of
from prefix_rft.compare.orders import order_of
from prefix_rft.compare.work import DONE
from prefix_rft.compare.work import main as run_job
from prefix_rft.support.writing import write_json
from prefix_rft.tasks.countdown import write

TRAIN_ROWS, SAMPLES, STEPS = 24, 16, 16
RECIPE = f"""
model: base
train_data: train.jsonl
eval_data: test.jsonl
reward: prefix_rft.tasks.countdown:reward
num_generations: 8
prompts_per_step: 2
max_completion_length: 12
max_steps: {STEPS}
learning_rate: 1e-3
compare:
  seeds: 1
  samples: 2
  temperatures: [1.0]
  reference: rl
  arms:
    rl: {{method: dr_grpo}}
    own: {{method: prefixrl, collect: {{samples: {SAMPLES}, keep: 2}}, match: rl}}
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    write(folder, TRAIN_ROWS - 1, 6, 0, 2)
    rows = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(rows + rows.splitlines(True)[0])  # one stands there twice
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def carry_out(task: Path, output: Path, *overrides: str) -> tuple[int, Path]:
    """Collect for ``own`` at the second seed, in this process; exit status and folder."""
    recipe = str(task / "recipe.yaml")
    board = board_of(recipe, list(overrides), None, None, None, str(output))
    job = board.collection(board.comparison.arm("own"), 1)
    order = job.folder.with_suffix(".job.json")
    order.parent.mkdir(parents=True, exist_ok=True)
    write_json(order, order_of(board, job))
    return run_job(str(order)), job.folder


def test_costs_are_those_of_the_stored_samples(task: Path, tmp_path: Path) -> None:
    status, folder = carry_out(task, tmp_path / "out")
    assert status == 0
    tokenizer: Any = AutoTokenizer.from_pretrained(task / "base")
    model = AutoModelForCausalLM.from_pretrained(task / "base")
    weights = sum(p.numel() for p in model.parameters())
    if not model.config.tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.numel()
    problems = lines(folder / "rows/samples/model/train-T1.jsonl")
    samples = [s for p in problems for s in p["samples"]]
    assert len(samples) == TRAIN_ROWS * SAMPLES
    tokens = sum(s["tokens"] for s in samples)
    # 16 rows in a batch of 256, so two batches: the first row's prompt is read again in the second.
    prompts = [row["prompt"] for row in lines(task / "train.jsonl")]
    read = sum(len(tokenizer(p)["input_ids"]) for p in prompts)
    record = json.loads((folder / DONE).read_text())
    costs = record["costs"]
    assert (costs["collected"], costs["prefilled"]) == (tokens, read)
    assert costs["flops"] == 2 * weights * (tokens + read)
    assert (costs["sampled"], costs["trained"], costs["forward"]) == (0, 0, 0)
    assert costs["seconds"] > 0
    # They are the rows that the command of that name writes.
    other = tmp_path / "own.jsonl"
    command = ["collect", str(task / "recipe.yaml"), "--output", str(other)]
    more = ["--samples", str(SAMPLES), "--keep", "2", "--seed", "1", "--batch-size", "256"]
    assert main([*command, *more]) == 0
    assert (folder / ROWS).read_text() == other.read_text()
    assert record["found"]["answers"] > record["found"]["solved"]  # two of some row
    assert 2 <= record["found"]["solved"] == len(lines(folder / ROWS)) < TRAIN_ROWS


@pytest.mark.slow
def test_it_goes_on_with_the_samples_that_are_there(task: Path, tmp_path: Path) -> None:
    _, folder = carry_out(task, tmp_path / "out")
    rows, record = (folder / ROWS).read_bytes(), json.loads((folder / DONE).read_text())
    for left in (None, 5):  # killed before its record was written, and while it sampled
        (folder / DONE).unlink()
        (folder / ROWS).unlink()
        if left is not None:
            samples = folder / "rows/samples/model/train-T1.jsonl"
            samples.with_suffix(".done").unlink()
            samples.write_text("".join(samples.read_text().splitlines(True)[:left])[:-9])
        assert carry_out(task, tmp_path / "out")[0] == 0
        again = json.loads((folder / DONE).read_text())
        assert (folder / ROWS).read_bytes() == rows
        assert again["found"] == record["found"]
        assert {**again["costs"], "seconds": 0} == {**record["costs"], "seconds": 0}


def test_nothing_right_is_a_sentence(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, folder = carry_out(task, tmp_path / "out", "max_completion_length=1")
    assert status == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: none of {TRAIN_ROWS} rows was solved in {SAMPLES} samples: sample more, or train "
        "on demonstrations first"
    )
    assert not (folder / DONE).exists()


def test_an_arm_without_a_reward_collects_nothing(
    task: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arms = '{a: {method: sft, "~reward": null, "~num_generations": null, collect: 3}, b: {}}'
    command = ["compare", str(task / "recipe.yaml"), "--output", str(tmp_path / "out")]
    assert main([*command, f"compare={{arms: {arms}}}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "arm 'a': the recipe has no reward, so nothing says which answers are right" in said


def wait_for(process: Any, reached: Any) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not reached():
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) != 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_while_it_samples_and_before_it_trains(task: Path) -> None:
    assert compare(task, "whole").wait(WAIT_SECONDS) == 0
    folder = task / "killed"
    samples = folder / "collected/own/seed-0/rows/samples/model/train-T1.jsonl"
    wait_for(compare(task, "killed"), samples.parent.exists)
    assert not (folder / "collected/own/seed-0" / DONE).exists()
    wait_for(compare(task, "killed"), (folder / "collected/own/seed-0" / DONE).exists)
    rows = (folder / "collected/own/seed-0" / ROWS).read_bytes()
    assert not (folder / "arms/own/seed-0/costs.json").exists()
    assert compare(task, "killed").wait(WAIT_SECONDS) == 0
    assert (folder / "collected/own/seed-0" / ROWS).read_bytes() == rows
    found = records(folder)
    assert found == records(task / "whole")
    assert len(found) == 4  # base, two arms, a collection
    whole, own = found["arms/rl/seed-0/done.json"], found["arms/own/seed-0/done.json"]
    before = found["collected/own/seed-0/done.json"]["costs"]["flops"]
    step = whole["costs"]["flops"] / STEPS
    assert own["spec"]["steps"] == int((whole["costs"]["flops"] - before) / step)
    assert 1 <= own["spec"]["steps"] < STEPS
    assert own["spec"]["collect"] == {"samples": SAMPLES, "keep": 2}
    assert "own answers to" in (folder / "comparison.html").read_text()
    assert ",collected\n" in (folder / "comparison.csv").read_text()
