"""The page that trains Prefix-RFT with torch alone takes the steps that the library takes."""

import ast
import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from prefix_rft import PrefixRFTTrainer
from prefix_rft.core.prefix import PrefixSampler, prefix_length
from prefix_rft.core.select import keep_fraction
from prefix_rft.tasks.countdown.files import write
from prefix_rft.tasks.countdown.grade import grade
from second.step.trl_run import Record, Recorder
from second.step.update import relative_error
from tiny import make_config, make_model, make_rows, make_tokenizer, shaped_reward

PAGE = Path(__file__).parents[3] / "examples" / "from_scratch.py"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("from_scratch", PAGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "from_scratch", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Four updates of the trainer on two generations, in double precision."""
    tokenizer = make_tokenizer()
    recorder = Recorder()
    trainer = PrefixRFTTrainer(
        make_model(tokenizer, layers=2).double(),
        shaped_reward,
        make_config(
            tmp_path_factory.mktemp("run"),
            max_steps=4,
            num_iterations=2,
            gradient_accumulation_steps=2,
            learning_rate=3e-2,
        ),
        train_dataset=make_rows(),
        processing_class=tokenizer,
        callbacks=[recorder],
    )
    recorder.watch(trainer)
    trainer.train()
    return recorder.records


def step_of_page(page: Any, record: Record, at_rollout: Record) -> Any:
    """Loss and gradient that the page computes for the rows of a trainer's update."""
    rows = [page.Rollout(r.prompt, r.completion, r.prefix, r.group, r.reward) for r in record.rows]
    model = make_model(make_tokenizer(), layers=2).double()
    model.load_state_dict(at_rollout.weights)
    with torch.no_grad():
        old_logp_BT, _ = page.logp_and_entropy(model, rows)
    model.load_state_dict(record.weights)
    value = page.loss(model, rows, old_logp_BT)
    value.backward()
    return value.item(), [p.grad for p in model.parameters()]


def test_a_step_equals_the_librarys(
    page: Any, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "BUDGET", 24)
    assert len(records) == 4
    for number, record in enumerate(records):
        assert sum(r.prefix > 0 for r in record.rows) == 4
        loss, gradient = step_of_page(page, record, records[number - number % 2])
        # Advantages add up to nothing, so the loss is small beside its terms: these are about 0.1.
        assert record.loss == pytest.approx(loss, rel=1e-6, abs=1e-8)
        assert relative_error(record.gradient, gradient) < 1e-6


@pytest.mark.parametrize(
    ("name", "value"),
    [("KEEP", 0.25), ("CLIP", 0.1), ("advantages", lambda rows: torch.ones(len(rows)))],
)
def test_a_mistake_on_the_page_is_seen(
    page: Any,
    records: list[Record],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: Any,
) -> None:
    monkeypatch.setattr(page, "BUDGET", 24)
    monkeypatch.setattr(page, name, value)
    errors = []
    for number, record in enumerate(records):
        _, gradient = step_of_page(page, record, records[number - number % 2])
        errors.append(relative_error(record.gradient, gradient))
    assert max(errors) > 1e-3


def test_prefix_lengths_equal_the_librarys(page: Any) -> None:
    sampler = PrefixSampler()
    rng = random.Random(0)
    for _ in range(500):
        steps = rng.randint(1, 500)
        step, length, uniform = rng.randrange(steps), rng.randint(1, 40), rng.random()
        low, high = sampler.interval(step, steps)
        expected = prefix_length(low + (high - low) * uniform, length)
        assert page.prefix_length(uniform, step, steps, length) == expected


def test_the_selection_equals_the_librarys(page: Any) -> None:
    torch.manual_seed(0)
    for share in (0.0, 0.2, 0.5, 1.0):
        entropy_BT, prefix_BT = torch.rand(5, 7), torch.rand(5, 7) < 0.6
        expected = keep_fraction(entropy_BT, prefix_BT, share)
        assert torch.equal(page.keep_highest(entropy_BT, prefix_BT, share), expected)


@pytest.mark.parametrize(
    "text",
    [
        "7 * 3 = 21 ; 21 + 5 = 26",
        "3 * 7 = 21 ; 5 + 21 = 26",
        "7 * 3 = 21",
        "7 * 3 = 22 ; 22 + 4 = 26",
        "7 * 3 = 21 ; 21 + 6 = 27",
        "7 * 3 = 21 ; 21 + 5 = 26 ; 26 / 1 = 26",
        "21 + 5 = 26",
        "7 * 3 = 21 ; 21 + 5 = 26 ;",
        "7 - 5 = 2 ; 2 + 3 = 5",
        "7 / 0 = 0 ; 0 + 26 = 26",
        "",
    ],
)
def test_the_verifier_equals_the_tasks(page: Any, text: str) -> None:
    assert page.reward(text, [3, 5, 7], 26) == float(grade(text, [3, 5, 7], 26))


def test_the_page_runs_and_imports_nothing_of_ours(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "countdown")
    monkeypatch.setattr(page, "PROMPTS", 4)
    solved = page.main(tmp_path / "countdown", steps=2, seed=0)
    assert 0.1 < solved < 0.5
    assert "held-out puzzles" in capsys.readouterr().out
    tree = ast.parse(PAGE.read_text(encoding="utf-8"))
    imported = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    imported += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert "torch" in imported
    assert not [name for name in imported if name.startswith("prefix_rft")]
