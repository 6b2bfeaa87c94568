"""The steps that check counts are the steps that the trainers take."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.cli import main
from prefix_rft.data import load_rows
from prefix_rft.engines.setup import configure
from prefix_rft.recipe.batches import plan_batches
from tables import rest_slow
from tiny import make_chat_tokenizer, make_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, shared_math: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    tokenizer = make_chat_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> None:
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    recipe = {
        "model": "base",
        "train_data": "train.jsonl",
        "reward": "math",
        "name": "tiny",
        "method": "prefix_rft",
        "prompts_per_step": 4,
        "max_completion_length": 24,
        "save_strategy": "no",
        **changes,
    }
    if recipe["method"] != "sft":
        recipe["num_generations"] = 2
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def row(a: int, **changes: Any) -> dict[str, Any]:
    return {
        "problem": f"{a}+{a}?",
        "solution": f"\\boxed{{{2 * a}}}",
        "answer": str(2 * a),
        **changes,
    }


GRID = [
    # method, rows, overrides, steps worked out by hand
    ("sft", 15, "num_train_epochs=1", 4),  # 4, 4, 4 and 3 rows
    ("sft", 15, "num_train_epochs=2", 8),
    ("sft", 16, "num_train_epochs=1", 4),
    ("sft", 15, "num_train_epochs=0.5", 2),
    ("sft", 15, "num_train_epochs=1.3", 6),  # 5.2
    ("sft", 3, "num_train_epochs=3", 3),
    ("sft", 15, "num_train_epochs=1 micro_batch_size=2", 4),  # 8 batches, two a step
    ("sft", 17, "num_train_epochs=1 micro_batch_size=2", 5),  # 9 batches
    ("sft", 5, "num_train_epochs=1 micro_batch_size=1", 2),
    ("sft", 15, "num_train_epochs=1 dataloader_drop_last=true", 3),
    ("sft", 17, "num_train_epochs=1 dataloader_drop_last=true micro_batch_size=2", 4),
    ("sft", 15, "max_steps=7", 7),
    ("prefix_rft", 15, "num_train_epochs=1", 3),  # the last three rows fill no generation
    ("prefix_rft", 16, "num_train_epochs=1", 4),
    ("prefix_rft", 15, "num_train_epochs=1.5", 5),  # 4.5
    ("prefix_rft", 15, "num_train_epochs=2 micro_batch_size=2", 6),
    ("prefix_rft", 15, "num_train_epochs=1 num_iterations=2", 6),
    # Two steps for each generation, which then takes 8 prompts.
    ("prefix_rft", 15, "num_train_epochs=1 steps_per_generation=2", 2),
    ("prefix_rft", 23, "num_train_epochs=1 steps_per_generation=2 num_iterations=3", 12),
    ("prefix_rft", 23, "num_train_epochs=1 micro_batch_size=4 steps_per_generation=4", 4),
    ("prefix_rft", 15, "max_steps=7", 7),
]


@pytest.mark.parametrize(("method", "rows", "overrides", "steps"), GRID)
def test_steps_are_those_of_the_trainer(
    folder: Path, method: str, rows: int, overrides: str, steps: int
) -> None:
    """By hand, and as the trainer itself works them out."""
    write(folder, [row(a) for a in range(rows)], method=method)
    setup = configure("recipe.yaml", overrides.split())
    tokenizer = make_chat_tokenizer()
    shared: dict[str, Any] = {
        "train_dataset": load_rows("train.jsonl"),
        "processing_class": tokenizer,
    }
    model = make_model(tokenizer)
    if method == "sft":
        trainer: Any = DemonstrationTrainer(model, setup.args, **shared)
    else:
        trainer = PrefixRFTTrainer(model, setup.rewards, setup.args, **shared)
    theirs = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    setup.close()
    assert theirs[-1] == steps
    assert setup.total_steps(rows) == steps


def shown(out: str) -> int:
    found = re.search(r"(\d+) optimizer steps", out)
    assert found
    return int(found[1])


def taken(folder: Path) -> int:
    path = max(folder.glob("runs/*/metrics.jsonl"))
    return max(json.loads(line)["step"] for line in path.read_text().splitlines())


SHORT = {"max_completion_length": 24}
RUNS = [
    # rows, overrides, steps by hand, what is said
    ([row(a) for a in range(15)], "method=sft", 4, "1.00 passes"),
    # Of 8 golds 4 cannot be read: two generations of two prompts.
    (
        [row(a, **({"answer": "N/A"} if a % 2 else {})) for a in range(8)],
        "prompts_per_step=2",
        2,
        "4 rows are trained on; 4 dropped: unreadable gold answer",
    ),
    # The same rows imitated: golds are not asked.
    ([row(a, **({"answer": "N/A"} if a % 2 else {})) for a in range(8)], "method=sft", 2, ""),
    # 3 of 8 demonstrations are right, and one row has two.
    (
        [row(a, solution="\\boxed{1}") for a in range(5)] + [row(a) for a in range(5, 8)],
        "method=sft prompts_per_step=2 only_correct_demonstrations=true",
        2,
        "3 demonstrations are used; 5 dropped: not correct",
    ),
    # Two demonstrations a row, of which one is too long: 8 in 4 rows, two steps of 4.
    (
        [
            {**row(a), "demonstration": [f"\\boxed{{{2 * a}}}", "so", "1" * 30], "solution": None}
            for a in range(4)
        ],
        "method=sft",
        2,
        "8 demonstrations in 4 rows; 4 dropped",
    ),
    # Rows without any demonstration take no part in imitation, but in RL.
    ([row(a, **({"solution": None} if a < 4 else {})) for a in range(8)], "method=sft", 1, ""),
    ([row(a, **({"solution": None} if a < 4 else {})) for a in range(8)], "", 2, ""),
]


@pytest.mark.parametrize(
    ("rows", "overrides", "steps", "said"),
    rest_slow(RUNS, lambda rows, overrides, steps, said: said),
)
def test_a_run_takes_the_steps_that_check_shows(
    folder: Path, capfd: Capture, rows: list[dict[str, Any]], overrides: str, steps: int, said: str
) -> None:
    given = [o for o in overrides.split() if o != "method=sft"]
    method = "sft" if "method=sft" in overrides else "prefix_rft"
    write(folder, rows, num_train_epochs=1, method=method)
    main(["check", "recipe.yaml", *given])
    out = capfd.readouterr().out
    assert shown(out) == steps
    assert said in out
    assert main(["train", "recipe.yaml", *given]) == 0
    assert taken(folder) == steps


def test_steps_that_cannot_be_known_are_not_promised(folder: Path, capfd: Capture) -> None:
    write(folder, [row(a) for a in range(8)], num_train_epochs=1, rif={})
    main(["check", "recipe.yaml"])
    out = capfd.readouterr().out
    assert "2 optimizer steps" in out
    assert "at most: rif leaves out prompts before" in out
    main(["check", "recipe.yaml", "--limit", "4"])
    out = capfd.readouterr().out
    assert "1 optimizer steps" in out
    assert "of these 4 rows alone" in out
    main(["check", "recipe.yaml", "--limit", "8", "max_steps=3", "~rif"])
    out = capfd.readouterr().out
    assert "3 optimizer steps" in out
    assert "alone" not in out


def test_too_few_readable_rows_are_a_problem(folder: Path, capfd: Capture) -> None:
    """As in training, which then refuses them."""
    write(folder, [row(a, **({"answer": "N/A"} if a else {})) for a in range(4)], max_steps=1)
    assert main(["check", "recipe.yaml"]) == 1
    assert "1 rows, but one generation takes 4 prompts" in capfd.readouterr().out
    assert main(["train", "recipe.yaml"]) == 2
    assert "the dataset has 1 rows, but one generation takes 4" in capfd.readouterr().err


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 15, 16, 17, 24])
def test_several_processes_share_the_batches(folder: Path, rows: int, drop: bool) -> None:
    """As accelerate shares them: batches of 2 on two processes, two of them in a step."""
    write(folder, [row(0)], method="sft", num_train_epochs=1, dataloader_drop_last=drop)
    setup = configure("recipe.yaml", ["prompts_per_step=4", "micro_batch_size=2"])
    setup.close()
    setup.args.gradient_accumulation_steps = 2
    setup = replace(setup, plan=plan_batches(8, 1, 2, processes=2))
    batches = BatchSampler(range(rows), 2, drop)
    own = len(list(BatchSamplerShard(batches, num_processes=2, process_index=0)))
    assert setup.total_steps(rows) == (own + 1) // 2
