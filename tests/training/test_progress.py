"""What a run says of itself while it goes on: no minute without a line, in no phase."""

import io
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.engines.sampling import SamplingSettings, sample
from prefix_rft.engines.trl import DemonstrationConfig
from prefix_rft.evaluation.samples import Request
from prefix_rft.evaluation.scores import evaluate
from prefix_rft.rewards import Graded
from prefix_rft.support.display import SILENCE, Display, by_job, clock
from prefix_rft.training.progress import Progress
from prefix_rft.training.train import train
from tiny import NO_RECOMPUTE, make_config, make_model, make_rows, make_tokenizer, shaped_reward


class Clock:
    """A clock that stands until it is moved; ``pace`` seconds pass with every look at it."""

    def __init__(self, pace: float = 0.0) -> None:
        self.time = 1000.0
        self.pace = pace

    def __call__(self) -> float:
        self.time += self.pace
        return self.time


class Lines(io.StringIO):
    """What was printed, and when."""

    def __init__(self, now: Clock) -> None:
        super().__init__()
        self.now = now
        self.at: list[float] = []

    def write(self, text: str) -> int:
        if text.strip():
            self.at.append(self.now.time)
        return super().write(text)

    @property
    def gaps(self) -> list[float]:
        """Seconds from each line to the next."""
        return [b - a for a, b in zip(self.at, self.at[1:], strict=False)]


def shown(pace: float = 0.0) -> tuple[Display, Lines, Clock]:
    """A display away from a terminal, on a clock of its own."""
    now = Clock(pace)
    lines = Lines(now)
    return Display(Console(file=lines, width=200), now, thread=False), lines, now


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.9, "1:01"), (3671, "1:01:11")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def event(step: int, steps: int = 60, main: bool = True) -> Any:
    return SimpleNamespace(global_step=step, max_steps=steps, is_world_process_zero=main)


@pytest.mark.parametrize(("first", "left"), [(0, "2:00 left"), (8, "10:00 left")])
def test_time_left_is_that_of_this_process(tmp_path: Path, first: int, left: str) -> None:
    """A resumed run has not made the steps before its checkpoint."""
    display, _, now = shown()
    progress = Progress(display, tmp_path)
    progress.on_train_begin(None, event(first, 40), None)
    assert "left" not in progress.line()  # nothing is known yet
    now.time += 40.0
    progress.on_step_end(None, event(10, 40), SimpleNamespace(should_log=True))
    assert left in progress.line()
    now.time += 30.0  # within the next step
    assert re.search(r"1:10 spent, (1:30|9:30) left", progress.line())


@pytest.mark.parametrize("logging", [1, 5, 60])
@pytest.mark.parametrize("seconds", [60, 7, 600])
def test_no_minute_without_a_line(tmp_path: Path, logging: int, seconds: int) -> None:
    """60 steps of a minute, logged every fifth one: nothing was seen for a quarter of an hour."""
    display, lines, now = shown()
    progress = Progress(display, tmp_path)
    with display:
        progress.on_train_begin(None, event(0), None)
        for step in range(1, 61):
            display.phases.begin("sampling", 128)
            for done in range(1, 11):
                now.time += seconds / 10
                display.phases.at(done)
            log = step % logging == 0
            progress.on_step_end(None, event(step), SimpleNamespace(should_log=log))
            if log:
                progress.on_log(None, event(step), None, {"loss": 0.5, "policy/reward": 0.25})
            if step == 1:
                first = display.console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
                assert f"step 1/60  {clock(seconds)} spent, {clock(59 * seconds)} left" in first
                assert "step 0/60  0:00 spent  sampling 0 of 128" in first.splitlines()[0]
        progress.on_train_end(None, event(60), None)
    assert max(lines.gaps) <= max(SILENCE, seconds / 10)
    text = lines.getvalue()
    assert len(text.splitlines()) <= 2 + 20 + 60 * seconds / SILENCE  # nor a flood
    assert f"step 60/60  {clock(60 * seconds)} spent, 0:00 left" in text.splitlines()[-1]
    assert ("loss 0.5000  on-policy reward 0.250" in text.splitlines()[-1]) == (60 % logging == 0)
    if seconds > 60:
        assert re.search(r"step 3/60  \S+ spent, \S+ left  sampling \d of 128", text)


def test_every_phase_of_a_step_is_named(tmp_path: Path) -> None:
    """TRL logs only at the end: all lines but the last are of our own phases."""
    display, lines, _ = shown(pace=40.0)
    hear, heard = display.phases.hear, []

    def record() -> None:
        heard.append(str(display.phases))
        hear()

    display.phases.hear = record
    tokenizer = make_tokenizer()
    config = make_config(
        tmp_path,
        max_steps=2,
        logging_steps=2,
        save_strategy="steps",
        save_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
    )
    trainer = PrefixRFTTrainer(
        make_model(tokenizer),
        shaped_reward,
        config,
        train_dataset=make_rows(8),
        processing_class=tokenizer,
        phases=display.phases,
    )
    trainer.add_callback(Progress(display, tmp_path))
    with display:
        trainer.train()
    order = [re.sub(r" \d+ of", " of", x) for x in heard]
    order = [x for i, x in enumerate(order) if i == 0 or x != order[i - 1]]
    generation = ["sampling of 16", "scoring", "grading of 16", "scoring"]
    assert order == ["starting", *(2 * [*generation, "updating of 4", "saving"])]
    text = lines.getvalue()
    for phase in (r"sampling \d+ of 16", r"updating [1-4] of 4"):
        assert re.search(rf"step [01]/2 .* spent.*  {phase}", text), phase


def test_imitation_names_its_updates(tmp_path: Path) -> None:
    display, _, _ = shown()
    heard: list[str] = []
    display.phases.hear = lambda: heard.append(str(display.phases))
    tokenizer = make_tokenizer()
    config = DemonstrationConfig(
        str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        **NO_RECOMPUTE,
        disable_tqdm=True,
    )
    DemonstrationTrainer(
        make_model(tokenizer),
        config,
        train_dataset=make_rows(8),
        processing_class=tokenizer,
        phases=display.phases,
    ).train()
    assert heard == [f"updating {n} of 3" for n in range(4)]


GRADER = """
def graded(completions, answer, **kwargs):
    return [float(c == a) for c, a in zip(completions, answer)]
"""


def test_graders_tell_of_each_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While they grade a step, and not while an evaluation counts its problems."""
    (tmp_path / "one_by_one.py").write_text(GRADER)
    reward = Graded("one_by_one:graded", folder=tmp_path, workers=1)
    display, _, _ = shown()
    heard: list[str] = []
    tokenizer = make_tokenizer()
    trainer = PrefixRFTTrainer(
        make_model(tokenizer),
        reward,
        make_config(tmp_path, max_steps=1),
        train_dataset=make_rows(8),
        processing_class=tokenizer,
        phases=display.phases,
    )
    display.phases.hear = lambda: heard.append(str(display.phases))
    try:
        trainer.train()
        grading = [int(x.split()[1]) for x in heard if x.startswith("grading")]
        assert grading[0] == 0
        assert grading[-1] == 16
        assert grading == sorted(grading)
        assert len(set(grading)) > 2
        heard.clear()
        reward(completions=["1"] * 4, answer=["1"] * 4)
        assert heard == []
    finally:
        reward.close()


def test_the_sampler_tells_of_rows_that_have_ended() -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer).eval()
    heard: list[int] = []
    settings = SamplingSettings((tokenizer.eos_token_id,), tokenizer.pad_token_id, 0.0)
    sample(model, [[5, 6]] * 3, [2, 4, 1], settings, tick=heard.append)
    assert heard == [0, 1, 2, 2]


@pytest.mark.parametrize("batch_size", [3, 8, 64])
def test_an_evaluation_counts_its_problems(batch_size: int) -> None:
    """Ends of samples, in problems' worth of them; never back."""
    tokenizer = make_tokenizer()
    heard: list[int] = []
    request = Request(samples=4, max_completion_length=6, batch_size=batch_size)
    model, rows = make_model(tokenizer), make_rows(5)
    evaluate(model, tokenizer, rows, shaped_reward, request, heard.append)
    assert heard[0] == 0
    assert heard[-1] == 5
    assert heard == sorted(heard)


def test_jobs_of_an_evaluation_have_lines(tmp_path: Path) -> None:
    display, lines, now = shown()
    with display:
        progress = by_job(display)
        for job in ("model on a at T=1", "model on a at T=0"):
            for done in range(61):
                progress(job, done, 60)
                now.time += 30.0
    text = lines.getvalue().splitlines()
    assert text[0] == "0:00 spent  model on a at T=1: problem 0 of 60"
    assert text[1] == "1:00 spent  model on a at T=1: problem 2 of 60"
    assert "30:30 spent  model on a at T=0: problem 0 of 60" in text
    assert max(lines.gaps) <= SILENCE


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_a_phase_that_cannot_tick_has_lines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call into vLLM may take ten minutes; and behind the run nothing is printed."""
    monkeypatch.setattr("prefix_rft.support.display.LOOK_SECONDS", 0.002)
    now = Clock()
    lines = Lines(now)
    with Display(Console(file=lines, width=200), now) as display:
        thread = display.thread
        display.phases.begin("sampling")
        assert thread is not None
        assert thread.daemon
        for minute in range(1, 4):
            now.time += SILENCE
            until(lambda minute=minute: len(lines.at) == minute)
        time.sleep(0.02)
        assert len(lines.at) == 3  # once each
        now.time += SILENCE / 2
    assert not thread.is_alive()
    now.time += 10 * SILENCE
    display.phases.begin("later")
    assert len(lines.at) == 3
    assert lines.getvalue().splitlines()[-1] == "3:00 spent  sampling"


def test_one_process_speaks(tmp_path: Path) -> None:
    """The others have quiet consoles; a trainer's own word counts as well."""
    threads = threading.active_count()
    lines = Lines(Clock())
    with Display(Console(file=lines, quiet=True), lines.now) as display:
        assert threading.active_count() == threads
        assert display.live is None
        display.soon()
        display.phases.begin("sampling", 3)
    assert lines.getvalue() == ""
    display, lines, _ = shown()
    progress = Progress(display, tmp_path)
    progress.on_train_begin(None, event(0, main=False), None)
    progress.on_step_end(None, event(1, main=False), SimpleNamespace(should_log=False))
    progress.on_log(None, event(1, main=False), None, {"loss": 1.0})
    progress.on_train_end(None, event(60, main=False), None)
    assert lines.getvalue() == ""
    assert list(tmp_path.iterdir()) == []


def test_in_a_terminal_one_line_moves(tmp_path: Path) -> None:
    """It is never longer than the terminal is wide, and only the last one of training stays."""
    now = Clock()
    lines = Lines(now)
    console = Console(file=lines, force_terminal=True, width=50, color_system=None)
    progress = Progress(display := Display(console, now, thread=False), tmp_path)
    with display:
        assert display.live is not None
        progress.on_train_begin(None, event(0), None)
        progress.on_log(None, event(1), None, {"loss": 0.5, "policy/reward": 0.25})
        progress.on_step_end(None, event(1), SimpleNamespace(should_log=False))
        display.phases.begin("sampling", 128)
        display.phases.at(7)
        now.time += 70
        display.live.refresh()
        progress.on_train_end(None, event(1), None)
        display.phases.begin("evaluating the trained model", 60)
        display.live.refresh()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", lines.getvalue())
    frames = [x.strip() for x in plain.splitlines() if x.strip()]
    moving = [x for x in frames if x[0] in "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"]
    assert any("step 1/60  1:10 spent, 0:00 left  sampling 7" in x for x in moving)
    assert all(len(x) <= 50 for x in moving)
    assert any("1:10 spent  evaluating the trained model 0 of 60" in x for x in moving)
    [stays] = [x for x in frames if x not in moving]
    assert stays.endswith("loss 0.5000  on-policy reward 0.250")


def test_a_run_names_what_comes_before_its_first_step(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    make_rows(4).to_json(tmp_path / "train.jsonl")
    (tmp_path / "recipe.yaml").write_text(
        "model: base\ntrain_data: train.jsonl\neval_data: train.jsonl\nreward: exact\n"
        "max_completion_length: 24\nnum_generations: 4\nprompts_per_step: 2\nmax_steps: 2\n"
        "logging_steps: 2\neval_samples: 1\nrif: {min_solved: 0, samples: 2}\nsave_strategy: 'no'\n"
    )
    lines = io.StringIO()
    console = Console(file=lines, width=200)
    train(str(tmp_path / "recipe.yaml"), [f"runs={tmp_path}/runs"], console)
    text = lines.getvalue().splitlines()
    wanted = (
        r"\d:\d\d spent  sampling every prompt, to leave out those that teach nothing: 0 of 4",
        r"\d:\d\d spent  evaluating the base model 0 of 4",
        r"step 0/2  0:0\d spent  sampling 0 of 8",
        r"step 1/2  0:0\d spent, 0:0\d left",
        r"step 2/2  0:0\d spent, 0:00 left  loss .*",
        r"\d:\d\d spent  evaluating the trained model 0 of 4",
    )
    places = [next(i for i, x in enumerate(text) if re.fullmatch(form, x)) for form in wanted]
    assert places == sorted(places)
    assert not [t for t in threading.enumerate() if "_watch" in t.name]
