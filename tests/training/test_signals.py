"""Ctrl-C, SIGTERM and a scheduler's notice: the step is finished and saved, and the run goes on."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import killed_runs as killed
import pytest

from prefix_rft.engines.tripwires import WIRES, Tripwire
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.safety.interrupt import StopOnSignal
from prefix_rft.runs.checkpoints import checkpoints, fault
from prefix_rft.support.errors import Interrupted, RunError
from prefix_rft.training.train import train

OVERRIDES = ["max_steps=9", "save_steps=100", "logging_steps=3", "num_iterations=2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return killed.write_task(tmp_path_factory.mktemp("task"))


def run(recipe: Path, runs: Path, *signals: int) -> int:
    """Run in a process that sends itself signals in its fifth optimizer step."""
    return killed.run(recipe, runs, OVERRIDES, killed.Tells(4, signals))


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("whole") / "runs"
    assert killed.run(recipe, runs, OVERRIDES) == 0
    return runs / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGINT, signal.SIGTERM],  # as torchrun passes Ctrl-C on
        [signal.SIGINT],
        [signal.SIGTERM],
        [signal.SIGUSR1],
    ],
)
def test_the_step_is_finished_and_the_run_goes_on(
    recipe: Path, whole: Path, tmp_path: Path, signals: list[int]
) -> None:
    again = tmp_path / "again"
    assert run(recipe, again, *signals) == 1
    said = again.with_suffix(".error.txt").read_text().splitlines()[-1]
    assert "Interrupted: stopped after step 5, which is saved; go on with: prefix-rft train" in said
    assert said.endswith("--resume")
    folder = again / "run"
    assert list(checkpoints(folder)) == [5]
    assert fault(folder / "checkpoint-5") is None
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "loss" in x] == [3]  # the next line is due after step 6
    assert not (folder / "model").exists()
    assert killed.run(recipe, again, OVERRIDES) == 0
    expected, found = killed.evidence(whole), killed.evidence(folder)
    # The checkpoint of step 5 is one more than the other run has.
    for name in [n for n in found["files"] if n.startswith("checkpoint-5/")]:
        del found["files"][name]
    found["names"].remove("checkpoint-5")
    assert found == expected


@pytest.mark.slow
def test_a_signal_in_the_last_step(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """All that is left is the model."""
    again = tmp_path / "again"
    killed.run(recipe, again, OVERRIDES, killed.Tells(8, [signal.SIGTERM]))
    said = again.with_suffix(".error.txt").read_text()
    assert "stopped after step 9, which is saved" in said
    assert not (again / "run/model").exists()
    assert killed.run(recipe, again, OVERRIDES) == 0
    assert killed.evidence(again / "run") == killed.evidence(whole)


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(recipe: Path, tmp_path: Path) -> None:
    status = run(recipe, tmp_path / "runs", signal.SIGTERM, signal.SIGTERM)
    assert status == -signal.SIGTERM
    assert not checkpoints(tmp_path / "runs/run")


def test_handlers_are_there_for_training_only(recipe: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    train(str(recipe), ["max_steps=1", f"runs={tmp_path}"], killed.QUIET)
    after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    assert after == before


def test_the_command_says_how_to_go_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from prefix_rft import cli

    def stopped(*args: object, **kwargs: object) -> None:
        raise Interrupted("stopped; go on with: x --resume", signal.SIGTERM)

    monkeypatch.setattr("prefix_rft.training.train.train", stopped)
    assert cli.main(["train", str(recipe)]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "prefix-rft: stopped; go on with: x --resume\n"


@pytest.mark.parametrize("launched", [False, True])
def test_a_launcher_passes_the_same_signal_on(
    monkeypatch: pytest.MonkeyPatch, launched: bool
) -> None:
    """torchrun does, to processes that a scheduler has told already."""
    sent: list[int] = []
    alone = Processes(SimpleNamespace(num_processes=1, device="cpu"))
    record: Any = SimpleNamespace(open=False)
    monkeypatch.setattr("os.kill", lambda pid, number: sent.append(number))
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    former = signal.getsignal(signal.SIGTERM)
    try:
        stop = StopOnSignal(alone, record, lambda words: None)
        stop._handle(signal.SIGTERM, None)
        stop._handle(signal.SIGTERM, None)
        assert sent == ([] if launched else [signal.SIGTERM])
        stop.at -= 6.0
        stop._handle(signal.SIGTERM, None)
        assert sent[-1] == signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, former)


def test_a_reader_that_has_left_stops_nothing() -> None:
    """``prefix-rft train ... | tee log`` and Ctrl-C: tee is gone first."""
    code = (
        "import sys, time\n"
        "from prefix_rft.support.display import Steadfast\n"
        "console = Steadfast()\n"
        "console.print('first')\n"
        "sys.stdin.readline()\n"
        "for _ in range(3): console.print('more')\n"
        "print('trained', file=sys.stderr)\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr.read() == "trained\n"
        assert process.wait() == 0


def test_the_line_that_a_tripwire_stops_at_is_written(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WIRES, "zero_gradient", Tripwire(lambda line, last: True, "seen"))
    given = ["max_steps=3", "tripwires={zero_gradient: stop}", "tripwire_steps=2"]
    given.append("logging_steps=1")
    with pytest.raises(RunError, match="stopped at step 2 by the tripwire zero_gradient"):
        train(str(recipe), [*given, f"runs={tmp_path}"], killed.QUIET)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(x)["step"] for x in lines] == [1, 2]
