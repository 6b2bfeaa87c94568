"""A model in which nothing can be trained is refused when the trainer is made."""

from pathlib import Path
from typing import Any

import pytest
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model

from prefix_rft import DemonstrationConfig, DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.support.errors import UserError
from tiny import (
    NO_RECOMPUTE,
    RECOMPUTE,
    make_config,
    make_model,
    make_rows,
    make_tokenizer,
    shaped_reward,
)

TOKENIZER = make_tokenizer()


def saved_adapter(folder: Path) -> str:
    config = LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM")
    get_peft_model(make_model(TOKENIZER), config).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    return str(folder)


def frozen(tmp_path: Path, kind: str) -> Any:
    if kind == "adapter":  # as PeftModel.from_pretrained loads it unless it is told otherwise
        return PeftModel.from_pretrained(make_model(TOKENIZER), saved_adapter(tmp_path / "a"))
    if kind == "ia3":
        config = IA3Config(
            target_modules=["k_proj"],
            feedforward_modules=[],
            inference_mode=True,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(make_model(TOKENIZER), config)
    if kind == "idle adapter":  # what could be trained takes no part in the forward
        model: Any = PeftModel.from_pretrained(make_model(TOKENIZER), saved_adapter(tmp_path / "a"))
        model.load_adapter(str(tmp_path / "a"), "other", is_trainable=True)
        for name, p in model.named_parameters():
            p.requires_grad_(".other." in name)
        return model
    model = make_model(TOKENIZER)
    model.save_pretrained(tmp_path / "whole")  # a reference model is loaded from there
    model.config._name_or_path = str(tmp_path / "whole")
    for p in model.parameters():
        p.requires_grad_(False)
    return model


def rl(tmp_path: Path, model: Any, **settings: Any) -> Any:
    config = make_config(tmp_path / "run", **settings)
    return PrefixRFTTrainer(model, shaped_reward, config, make_rows(8), processing_class=TOKENIZER)


def imitation(tmp_path: Path, model: Any, **settings: Any) -> Any:
    plain: dict[str, Any] = {"use_cpu": True, "bf16": False, **NO_RECOMPUTE}
    plain |= {"report_to": "none", "max_steps": 1}
    config = DemonstrationConfig(str(tmp_path / "run"), **{**plain, **settings})
    return DemonstrationTrainer(model, config, None, make_rows(8), processing_class=TOKENIZER)


SETTINGS: list[Any] = [
    (rl, {}),
    (rl, {"beta": 0.1, RECOMPUTE: True}),
    (imitation, {}),
    (imitation, {"method": "iw_sft"}),
]


@pytest.mark.parametrize(("make", "settings"), SETTINGS)
@pytest.mark.parametrize("kind", ["adapter", "ia3", "idle adapter", "whole"])
def test_nothing_to_train(tmp_path: Path, kind: str, make: Any, settings: Any) -> None:
    fix = "requires_grad" if kind == "whole" else "is_trainable=True"
    with pytest.raises(UserError, match=f"has no weight that can be trained: .*{fix}"):
        make(tmp_path, frozen(tmp_path, kind), **settings)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_one_weight_is_enough(tmp_path: Path, beta: float) -> None:
    name = saved_adapter(tmp_path / "a")
    model: Any = PeftModel.from_pretrained(make_model(TOKENIZER), name, is_trainable=True)
    rl(tmp_path, model, beta=beta, max_steps=1).train()
    whole = frozen(tmp_path, "whole")
    whole.model.norm.weight.requires_grad_(True)
    before = whole.model.norm.weight.detach().clone()
    rl(tmp_path, whole, max_steps=1).train()
    assert not whole.model.norm.weight.equal(before)


@pytest.mark.parametrize("make", [rl, imitation])
def test_a_mask_that_keeps_nothing(tmp_path: Path, make: Any) -> None:
    """Of 16 weights, 0.98 are all: known once the retain set has been looked at."""
    model = frozen(tmp_path, "whole")
    norm = model.model.layers[0].self_attn.q_norm.weight
    norm.requires_grad_(True)
    assert norm.numel() == 16
    make_rows(4).to_json(tmp_path / "retain.jsonl")
    mask = {"kind": "retain", "data": str(tmp_path / "retain.jsonl"), "fraction": 0.98}
    trainer = make(tmp_path, model, parameter_mask=mask)
    with pytest.raises(UserError, match=r"fraction=0\.98 freezes all weights"):
        trainer.train()
