"""DeepSpeed from 0.15.2 to 0.18.9 loses gradients that it is to add up: such a run is refused."""

from types import SimpleNamespace
from typing import Any

import pytest

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.engines.trl.safety import deepspeed
from prefix_rft.engines.trl.safety.watch import Watched
from prefix_rft.support.errors import UserError


def plugin(stage: int, device: str = "cpu", **zero: Any) -> Any:
    offload = {"offload_optimizer": {"device": device}}
    return SimpleNamespace(
        deepspeed_config={"zero_optimization": {"stage": stage, **offload, **zero}}
    )


@pytest.mark.parametrize(
    ("installed", "refused"),
    [
        ("0.15.1", False),
        ("0.15.2", True),
        ("0.18.9", True),
        ("0.19.0", False),
        ("0.18.9+cu1", True),
    ],
)
@pytest.mark.parametrize("stage", [1, 2])
def test_versions(installed: str, refused: bool, stage: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(deepspeed, "version", lambda name: installed)
    if not refused:
        deepspeed.refuse_lost_gradients(plugin(stage), 8)
        return
    words = rf"DeepSpeed {installed.partition('+')[0]}.*first of a step's 8.*ZeRO stage {stage}"
    with pytest.raises(UserError, match=words):
        deepspeed.refuse_lost_gradients(plugin(stage), 8)


@pytest.mark.parametrize(
    ("zero", "accumulation"),
    [(plugin(2), 1), (plugin(3), 8), (plugin(0), 8), (plugin(2, "none"), 8)],
    ids=["one micro-batch", "stage 3", "stage 0", "the optimizer is where the weights are"],
)
def test_what_loses_nothing(zero: Any, accumulation: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(deepspeed, "version", lambda name: "0.18.9")
    deepspeed.refuse_lost_gradients(zero, accumulation)


def test_older_names_and_other_devices(monkeypatch: Any) -> None:
    monkeypatch.setattr(deepspeed, "version", lambda name: "0.18.9")
    for zero in (plugin(2, "nvme"), plugin(2, "none", cpu_offload=True)):
        with pytest.raises(UserError, match=r"install deepspeed>=0\.19\.0"):
            deepspeed.refuse_lost_gradients(zero, 2)


class Base:
    """What TRL's trainers are when DeepSpeed makes the updates; DeepSpeed is not installed."""

    is_deepspeed_enabled = True

    def __init__(self) -> None:
        self.args = SimpleNamespace(gradient_accumulation_steps=2)
        self.accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin(2)))


class Trainer(Watched, Base):
    """A trainer of ours."""


def test_both_trainers_ask_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed, "version", lambda name: "0.18.9")
    assert issubclass(PrefixRFTTrainer, Watched)
    assert issubclass(DemonstrationTrainer, Watched)
    with pytest.raises(UserError, match="all but the first of a step's 2 micro-batches"):
        Trainer()
