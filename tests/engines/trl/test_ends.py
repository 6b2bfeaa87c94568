"""Which token ends a demonstration: one answer, however a model reaches whichever trainer."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefix_rft import DemonstrationConfig, DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.data.demonstrations import IDS
from prefix_rft.training import run
from prefix_rft.training.train import train
from tables import rest_slow
from tiny import NO_RECOMPUTE, make_chat_tokenizer, make_config, make_model, shaped_reward

END, EOS, OTHER = 1, 3, 4
"""Ids of ``<|end|>``, which ends a turn of the template, of the tokenizer's EOS, and another."""
ROWS = [
    {
        "prompt": [{"role": "user", "content": f"{n}+1?"}],
        "demonstration": f"it is {n + 1}",
        "answer": str(n + 1),
    }
    for n in range(8)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose tokenizer ends a text with another token than its template a turn."""
    tokenizer = make_chat_tokenizer()
    tokenizer.eos_token = "<s>"  # noqa: S105
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    assert (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")) == (EOS, END)
    model = make_model(tokenizer)
    for name, saved in (("model", model), ("adapter", None)):
        (saved or adapted(tmp_path)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


def adapted(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM"))


def set_eos(folder: Path, eos: Any, where: str) -> None:
    """Write the model's own ids, into its generation config or where there is none."""
    path = folder / "model" / "generation_config.json"
    if where == "generation_config":
        path.write_text(json.dumps({"eos_token_id": eos, "pad_token_id": 0}))
        return
    path.unlink()
    path = path.with_name("config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": eos}))


def given(folder: Path, kind: str) -> Any:
    if kind == "folder":
        return str(folder / "model")
    if kind == "adapter folder":
        return str(folder / "adapter")
    if kind == "adapter":
        return adapted(folder)
    return AutoModelForCausalLM.from_pretrained(folder / "model")


def imitation(folder: Path, model: Any, **settings: Any) -> Any:
    plain: dict[str, Any] = {"use_cpu": True, "bf16": False, **NO_RECOMPUTE}
    config = DemonstrationConfig(
        str(folder / "run"), report_to="none", max_steps=1, **plain, **settings
    )
    return DemonstrationTrainer(model, config, None, Dataset.from_list(ROWS))


def rl(folder: Path, model: Any) -> Any:
    config = make_config(folder / "run", max_completion_length=40)
    return PrefixRFTTrainer(model, shaped_reward, config, Dataset.from_list(ROWS))


def recipe(folder: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    (folder / "recipe.yaml").write_text(
        f"name: x\nmodel: model\ntrain_data: rows.jsonl\nmethod: {method}\nreward: exact\n"
        f"runs: {folder}/runs\nmax_steps: 1\nmax_completion_length: 40\nprompts_per_step: 2\n"
    )
    made: list[Any] = []
    monkeypatch.setattr(run, "work", lambda *parts: made.append(parts[2]) or folder)
    train(str(folder / "recipe.yaml"), [], Console(quiet=True))
    return made[0]


def ends(trainer: Any) -> set[int]:
    """The last ids of the demonstrations that a trainer trains on."""
    rows: Any = trainer.train_dataset
    if isinstance(trainer, DemonstrationTrainer):
        return {row["labels"][-1] for row in rows}
    return {ids[-1] for row in rows for ids in row[IDS]}


CASES = [
    ([EOS, END], "generation_config", END),
    (END, "generation_config", END),
    ([OTHER, END, EOS], "generation_config", END),
    ([EOS, OTHER], "generation_config", EOS),
    (None, "generation_config", EOS),
    ([EOS, END], "config", END),
]


def found(folder: Path, kinds: tuple[str, ...]) -> dict[Any, set[int]]:
    return {
        (m.__name__, k): ends(m(folder, given(folder, k))) for m in (imitation, rl) for k in kinds
    }


@pytest.mark.parametrize(
    ("eos", "where", "wanted"),
    rest_slow(CASES, lambda eos, where, wanted: where == "config" or wanted == EOS),
)
def test_one_end(folder: Path, eos: Any, where: str, wanted: int) -> None:
    set_eos(folder, eos, where)
    trained = found(folder, ("folder", "model"))
    assert trained == {key: {wanted} for key in trained}


def test_the_same_end_with_adapters(folder: Path) -> None:
    set_eos(folder, [EOS, END], "generation_config")
    trained = found(folder, ("adapter folder", "adapter"))
    assert trained == {key: {END} for key in trained}


@pytest.mark.parametrize("method", ["sft", "dr_grpo"])
def test_the_same_end_in_a_recipe(
    folder: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_eos(folder, [EOS, END], "generation_config")
    assert ends(recipe(folder, method, monkeypatch)) == {END}


def test_an_end_that_would_come_too_late_is_refused(folder: Path) -> None:
    """TRL sets ``eos_token`` of its ``SFTConfig`` when the rows have been made."""
    with pytest.raises(ValueError, match=r"eos_token='<\|end\|>' has no effect here"):
        imitation(folder, given(folder, "folder"), eos_token="<|end|>")


def test_a_template_that_would_come_too_late_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="chat_template_path='other' has no effect here"):
        imitation(folder, given(folder, "folder"), chat_template_path="other")


def test_a_model_without_a_place_needs_a_tokenizer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    with pytest.raises(ValueError, match="give processing_class"):
        imitation(folder, make_model(tokenizer))
