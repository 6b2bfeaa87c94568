"""Teachers where an adapter is trained: its base without it, an average of it, and what is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from prefix_rft import PrefixRFTTrainer
from second.step import trl_run
from tiny import make_config, make_tokenizer, shaped_reward

TEMPLATE = "a:{context};{prompt}"


def run(folder: Path, method: str, **teacher: Any) -> Any:
    from tiny import make_rows

    shown = {"context": "demonstration", "column": None, "template": TEMPLATE}
    options: dict[str, Any] = {"teacher": {**shown, **teacher}}
    torch.manual_seed(0)
    trainer = PrefixRFTTrainer(
        trl_run.attentive_model(),
        shaped_reward,
        make_config(
            folder, method=method, method_options=options, max_steps=4, learning_rate=0.05,
            lr_scheduler_type="constant", max_grad_norm=0.0,
        ),
        train_dataset=make_rows(8),
        processing_class=make_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )  # fmt: skip
    trainer.train()
    return trainer


def said(trainer: Any, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


@pytest.mark.parametrize("method", ["opd", "rlsd", "opsd", "sdpo"])
def test_without_its_adapter_the_policy_is_what_it_began_as(tmp_path: Path, method: str) -> None:
    """A new adapter is 0 at first: ``frozen`` and ``adapter_off`` are the same teacher."""
    kinds = ("frozen", "adapter_off", "live")
    off, kept, live = (run(tmp_path / k, method, weights=k) for k in (kinds[1], *kinds[::2]))
    assert said(off, "loss") == pytest.approx(said(kept, "loss"), rel=1e-4, abs=1e-6)
    assert said(off, "teacher/gap_abs") == pytest.approx(said(kept, "teacher/gap_abs"), rel=1e-4)
    for (name, a), b in zip(
        off.model.state_dict().items(), kept.model.state_dict().values(), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5), name
    # The policy moves away from it, and not from itself.
    assert said(off, "teacher/gap_abs")[-1] != pytest.approx(
        said(live, "teacher/gap_abs")[-1], rel=1e-2
    )


def test_of_an_adapter_only_its_weights_are_kept(tmp_path: Path) -> None:
    trainer = run(tmp_path, "sdpo", weights="ema", rate=0.5)
    kept = trainer.own_state.teachers["teacher"].weights
    assert kept
    assert all("lora" in name for name in kept)
    trained = dict(trainer.model.named_parameters())
    assert all(w.shape == trained[name].shape for name, w in kept.items())
    moved = [name for name, w in kept.items() if not torch.equal(w, trained[name].detach())]
    assert moved  # an average of what it was lags behind
