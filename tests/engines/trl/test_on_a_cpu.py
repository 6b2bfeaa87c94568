"""A configuration from Python works on a machine without an accelerator as it stands."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefix_rft import (
    DemonstrationConfig,
    DemonstrationTrainer,
    PrefixRFTConfig,
    PrefixRFTTrainer,
)
from prefix_rft.engines.trl import settings
from tiny import NO_RECOMPUTE, make_model, make_rows, make_tokenizer, shaped_reward

NO_ACCELERATOR = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="this machine has an accelerator"
)
QUIET: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "max_steps": 1, **NO_RECOMPUTE}


@NO_ACCELERATOR
@pytest.mark.parametrize("half", [{"bf16": True}, {"bf16": False}, {}])
def test_rollouts(tmp_path: Path, half: dict[str, bool]) -> None:
    args = PrefixRFTConfig(str(tmp_path), max_completion_length=24, **half, **QUIET)
    trainer = PrefixRFTTrainer(
        make_model(make_tokenizer()),
        shaped_reward,
        args,
        train_dataset=make_rows(8),
        processing_class=make_tokenizer(),
    )
    trainer.train()
    mixed = half.get("bf16", True)  # TRL's default
    assert trainer.accelerator.mixed_precision == ("bf16" if mixed else "no")
    assert trainer.accelerator.device.type == "cpu"
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


@NO_ACCELERATOR
def test_imitation(tmp_path: Path) -> None:
    args = DemonstrationConfig(str(tmp_path), bf16=True, **QUIET)
    trainer = DemonstrationTrainer(
        make_model(make_tokenizer()),
        args,
        train_dataset=make_rows(8),
        processing_class=make_tokenizer(),
    )
    trainer.train()
    assert trainer.accelerator.mixed_precision == "bf16"


@pytest.mark.parametrize(
    ("accelerator", "xla", "cpu"),
    [(False, False, True), (True, False, False), (False, True, False)],
)
def test_a_device_is_not_taken_away(
    monkeypatch: pytest.MonkeyPatch, accelerator: bool, xla: bool, cpu: bool
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setattr(settings, "is_torch_xla_available", lambda: xla)
    config = SimpleNamespace(use_cpu=False)
    settings.on_what_there_is(config)
    assert config.use_cpu == cpu
