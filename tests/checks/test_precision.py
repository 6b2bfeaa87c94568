"""check names half precision where it is faster, and is silent where it is not or was chosen."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from prefix_rft.checks import precision
from prefix_rft.checks.findings import Findings
from prefix_rft.checks.report import run_check
from tiny import make_model, make_tokenizer

MANY = precision.PAYS_FROM


def cpu(monkeypatch: pytest.MonkeyPatch, avx: bool = False, amx: bool = False) -> None:
    """A machine with such a CPU and no accelerator."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


def advice(weights: Any = (MANY, MANY), runs_itself: bool = False, **trainer: Any) -> list[str]:
    dtype = trainer.pop("dtype", None)
    recipe = SimpleNamespace(trainer=trainer, model_options={"dtype": dtype} if dtype else {})
    setup: Any = SimpleNamespace(recipe=recipe, engine=SimpleNamespace(RUNS_ITSELF=runs_itself))
    findings = Findings()
    precision.advise_precision(setup, weights, findings)
    assert not findings.problems
    return [str(f) for f in findings.notes]


@pytest.mark.parametrize("units", [{"avx": True}, {"amx": True}])
def test_a_cpu_with_such_units(monkeypatch: pytest.MonkeyPatch, units: dict[str, bool]) -> None:
    cpu(monkeypatch, **units)
    [note] = advice()
    assert "a model of 10,000,000 parameters trains faster so" in note
    assert "Fix: set bf16: true, or bf16: false to leave it so" in note


def test_a_cpu_without(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu(monkeypatch)
    assert advice() == []


@pytest.mark.parametrize(
    "case",
    [
        {"bf16": True},
        {"bf16": False},
        {"fp16": True},
        {"dtype": "bfloat16"},
        {"weights": (MANY - 1, MANY - 1)},
        {"weights": "a mixture of experts"},
        {"runs_itself": True},
    ],
)
def test_where_there_is_nothing_to_say(
    monkeypatch: pytest.MonkeyPatch, case: dict[str, Any]
) -> None:
    cpu(monkeypatch, avx=True)
    assert advice(**case) == []


def test_an_accelerator_has_a_default_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu(monkeypatch, avx=True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert advice() == []


def test_check_prints_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu(monkeypatch, avx=True)
    monkeypatch.setattr(precision, "PAYS_FROM", 0)
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "train.jsonl").write_text(
        '{"prompt": "1+1", "demonstration": "2", "answer": "2"}\n'
    )
    recipe = {"model": "base", "train_data": "train.jsonl", "reward": "exact", "max_steps": 1}
    recipe |= {"prompts_per_step": 1, "max_completion_length": 8}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    for overrides, said in (([], 1), (["bf16=true"], 0)):
        with (console := Console(width=300)).capture() as printed:
            assert run_check("recipe.yaml", overrides, console)
        assert printed.get().count("this CPU multiplies in bfloat16") == said
