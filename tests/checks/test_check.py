"""check, inspect and convert: what they print is true, and nothing of it is markup or control."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from prefix_rft.checks.report import quantile
from prefix_rft.cli import main
from prefix_rft.recipe.recipe import recompute_key
from tiny import RECOMPUTE, make_chat_tokenizer, make_model

ROWS = [
    {"problem": f"{a}+{a}?", "solution": f"{a}+{a} is \\boxed{{{2 * a}}}", "answer": str(2 * a)}
    for a in range(1, 10)
]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, shared_math: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    tokenizer = make_chat_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    write(tmp_path, ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> None:
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    recipe = {
        "model": "base",
        "train_data": "train.jsonl",
        "reward": "math",
        "name": "tiny",
        "prompts_per_step": 4,
        "max_completion_length": 32,
        "max_steps": 5,
        "seed": 3,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | changes))


def table(out: str, title: str) -> dict[str, list[str]]:
    """Rows of the table whose first heading is ``title``, by their first cell."""
    found: dict[str, list[str]] = {}
    inside = False
    for line in out.splitlines():
        cells = [c.strip() for c in re.split(r"[│┃|]", line)[1:-1]]
        if cells and cells[0] == title:
            inside = True
        elif inside and cells:
            found[cells[0]] = cells[1:]
        elif inside and line.startswith("└"):
            break
    return found


def test_check_says_what_is_true(folder: Path, capfd: Capture) -> None:
    """Lengths, batches and the prefix schedule, by hand."""
    assert main(["check", "recipe.yaml"]) == 0
    out = capfd.readouterr().out
    assert (
        "9 rows read as problem rows: prompt from 'problem', demonstrations from 'solution'" in out
    )
    assert "9 demonstrations in 9 rows" in out
    # <|user|>1+1?<|end|><|assistant|> are 7 tokens; "1+1 is \boxed{2}<|end|>" 17 with EOS, from
    # 5+5 on one more.
    assert table(out, "tokens") == {
        "prompt": ["7", "7", "7"],
        "demonstration with EOS": ["18", "18", "18"],
    }
    assert table(out, "demonstrations to") == {"math": ["9"]}
    assert "4 prompts x 8 rows = 32 rows a step, in 1 micro-batch of 32 on 1 process" in out
    assert "about 4.0 of the 32 rows of a step start from a demonstration (1 of 8" in out
    assert "5 optimizer steps, 1 for each generation of rollouts; 2.22 passes over the data" in out
    # low_t = 0.05 + 0.9 (1 + cos(pi t / 5)) / 2; the mean ratio is half-way to 0.95; the mean
    # demonstration has (4 * 17 + 5 * 18) / 9 = 17.6 tokens.
    assert table(out, "step") == {
        "0": ["95%", "95%", "95%", "17"],
        "1": ["86%", "95%", "91%", "16"],
        "2": ["64%", "95%", "79%", "14"],
        "3": ["36%", "95%", "66%", "12"],
        "4": ["14%", "95%", "54%", "10"],
    }
    memory = table(out, "memory of one process")
    assert {"weights", "activations", "logits", "together while training"} <= memory.keys()
    assert "ready: prefix-rft train recipe.yaml" in out


def test_quantile_is_a_value_that_occurs() -> None:
    assert [quantile([3, 1, 2, 10], q) for q in (0.25, 0.5, 0.75, 0.9, 1.0)] == [1, 2, 3, 10, 10]
    assert quantile([7], 0.5) == 7


def test_check_names_rows_and_fixes(folder: Path, capfd: Capture) -> None:
    rows: list[dict[str, Any]] = [dict(r) for r in ROWS]
    rows[1]["answer"] = "12:00"
    rows[3]["solution"] = "\\boxed{5}"
    rows[5]["solution"] = "[red]no box[/red]\x1b[31m"
    rows[6]["solution"] = "1" * 32
    rows[7]["problem"] = None
    write(folder, rows)
    assert main(["check", "recipe.yaml"]) == 1
    out = capfd.readouterr().out
    assert "\x1b" not in out
    assert "row 2: 'math' cannot read the gold answer (gold '12:00'). Fix: mend the answer" in out
    assert "row 4: a demonstration is 'wrong' to its own grader 'math' (answer 5)" in out
    assert (
        "row 6: a demonstration is 'no answer' to its own grader 'math'. Fix: mend the row" in out
    )
    assert (
        "row 7: a demonstration is dropped: longer than the budget (33 tokens). Fix: raise" in out
    )
    assert "row 8: column 'problem': the prompt is missing or empty" in out
    assert "row 6: the tokenizer does not know a character of a demonstration" in out
    assert r"in its place ('\x1b')" in out
    assert "5 problems: training would waste time" in out
    notes, problems = out.split("problems in data file")
    assert "is dropped" in notes.split("notes on data file")[1]
    assert "is dropped" not in problems


def test_check_groups_rows(folder: Path, capfd: Capture) -> None:
    write(folder, [{**r, "answer": "1:0"} for r in ROWS])
    assert main(["check", "recipe.yaml"]) == 1
    assert "rows 1, 2, 3, 4, 5 and 4 more: 'math' cannot read the gold" in capfd.readouterr().out
    assert main(["check", "recipe.yaml", "--limit", "2", "prompts_per_step=2"]) == 1
    assert "rows 1, 2: 'math' cannot read" in capfd.readouterr().out
    assert main(["check", "recipe.yaml", "--limit", "0"]) == 2


def test_check_sees_evaluation_prompts_in_training(folder: Path, capfd: Capture) -> None:
    (folder / "test.jsonl").write_text(
        json.dumps(ROWS[2]) + "\n" + json.dumps({**ROWS[2], "problem": "?"})
    )
    write(folder, ROWS, eval_data="test.jsonl")
    assert main(["check", "recipe.yaml"]) == 0
    assert "1 of its prompts are also in train_data" in capfd.readouterr().out


def test_good_data_train_without_a_warning(folder: Path, capfd: Capture) -> None:
    """Also fewer rows to evaluate on than a step takes, and none of them with a demonstration."""
    rows = [{"problem": "7+9?", "answer": "16"}]
    (folder / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    write(folder, ROWS, eval_data="test.jsonl", max_steps=1)
    assert main(["check", "recipe.yaml"]) == 0
    assert main(["train", "recipe.yaml"]) == 0
    assert "warning" not in capfd.readouterr().out


def test_the_fix_that_check_names_helps(folder: Path, capfd: Capture) -> None:
    write(folder, [*ROWS, {**ROWS[0], "solution": "no"}])
    assert main(["check", "recipe.yaml"]) == 1
    assert "set only_correct_demonstrations: true" in capfd.readouterr().out
    assert main(["check", "recipe.yaml", "only_correct_demonstrations=true"]) == 0
    assert "row 10: a demonstration is 'no answer'" in capfd.readouterr().out


def test_train_drops_and_counts_what_check_reports(folder: Path, capfd: Capture) -> None:
    rows: list[dict[str, Any]] = [dict(r) for r in ROWS]
    rows[1]["answer"] = "12:00"
    rows[3]["solution"] = "\\boxed{5}"
    write(folder, rows, only_correct_demonstrations=True, max_steps=1)
    assert main(["train", "recipe.yaml"]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "1 of 9 rows have a gold answer that 'math' cannot read; dropped: data" in out
    assert "dropped: data file 'train.jsonl', row 2" in out
    assert "1 of 8 demonstrations dropped: not correct to 'math'" in out
    assert "7 demonstrations in 7 of 8 rows" in out


@pytest.mark.parametrize("step", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_inspect_shows_the_prefix_that_training_uses(
    step: int, folder: Path, capfd: Capture
) -> None:
    # Over all lengths at every step, so that another step has another prefix.
    method = "method={name: prefix_rft, prefix_low: 0.05}"
    assert main(["train", "recipe.yaml", "max_steps=2", method]) == 0
    assert "warning" not in capfd.readouterr().out
    lines = (folder / f"runs/tiny/rollouts/step_00000{step}.jsonl").read_text().splitlines()
    hybrid = [r for r in map(json.loads, lines) if r["prefix_length"]]
    assert len(hybrid) == 4
    for row in hybrid:
        capfd.readouterr()
        number = str(row["example"] + 1)
        place = ["--row", number, "--step", str(step), "--ids"]
        assert main(["inspect", "recipe.yaml", "max_steps=2", method, *place]) == 0
        out = capfd.readouterr().out
        prompt, prefix = row["prompt_ids"], row["completion_ids"][: row["prefix_length"]]
        joined = out.replace("\n", "")
        assert f"{prompt}" in joined
        assert f"{prefix}" in joined
        assert f" prompt  {len(prompt)} tokens, not trained" in out
        assert re.search(rf" prefix  {len(prefix)} tokens?,", out)
        assert "demonstration 1 is 'correct' to 'math'" in out


def test_check_measures_prompts_with_their_hints(folder: Path, capfd: Capture) -> None:
    template = f"{'x' * 600}{{hint}}{{prompt}}"
    method = f"method={{name: control, where: prompt, template: '{template}'}}"
    assert main(["check", "recipe.yaml", method]) == 1
    assert "do not fit into the model's 512 positions" in capfd.readouterr().out
    # One that training drops for its length is no hint.
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    rows[0]["demonstration"] = "1" * 600
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["check", "recipe.yaml", "method={name: control, where: prompt}"])
    out = capfd.readouterr().out
    assert "longer than" in out
    assert "do not fit" not in out


def test_inspect_shows_the_hint_that_training_uses(folder: Path, capfd: Capture) -> None:
    method = "method={name: control, law: fixed, first: 0.5, plain: 0, where: prompt}"
    assert main(["train", "recipe.yaml", "max_steps=1", method]) == 0
    row = json.loads((folder / "runs/tiny/rollouts/step_000000.jsonl").read_text().splitlines()[0])
    assert row["hint_length"] > 0
    capfd.readouterr()
    place = ["--row", str(row["example"] + 1), "--ids"]
    assert main(["inspect", "recipe.yaml", "max_steps=1", method, *place]) == 0
    assert f"{row['prompt_ids']}" in capfd.readouterr().out.replace("\n", "")


def test_inspect_with_a_model_marks_the_selection(folder: Path, capfd: Capture) -> None:
    """20 % of the prefix, rounded up, and it is the part of highest entropy."""
    from prefix_rft.checks.inspect import chosen
    from prefix_rft.engines.models import load_model
    from prefix_rft.engines.setup import configure

    assert main(["inspect", "recipe.yaml", "--row", "2", "--model", "base"]) == 0
    out = capfd.readouterr().out
    count = re.search(r"prefix, of highest entropy  (\d+) token", out)
    rest = re.search(r" prefix  (\d+) tokens, not trained", out)
    assert count
    assert rest
    kept, total = int(count[1]), int(count[1]) + int(rest[1])
    assert kept == -(-total // 5)
    assert out.count("«") == out.count("»") >= 1
    assert re.search(r" continuation  \d+ token", out)

    setup = configure("recipe.yaml", [])
    model, _ = load_model("base")
    prompt, prefix = [5, 8, 9], list(range(7, 17))
    found = chosen(setup, model, (prompt, {}), prefix)
    setup.close()
    entropies = []
    for i in range(len(prefix)):  # one forward for each position
        import torch

        logits = model(torch.tensor([[*prompt, *prefix[:i]]])).logits[0, -1]
        p = torch.softmax(logits.double(), 0)
        entropies.append(-(p * p.log()).sum().item())
    best = sorted(range(len(prefix)), key=lambda i: -entropies[i])[:2]
    assert [i for i, k in enumerate(found) if k] == sorted(best)


def test_inspect_does_not_trust_the_data(folder: Path, capfd: Capture) -> None:
    write(folder, [{**ROWS[0], "problem": "[bold]a[/bold]\x1b[2J\x07"}] * 4)
    assert main(["inspect", "recipe.yaml"]) == 0
    out = capfd.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--row", "0"], "--row counts from 1, got 0"),
        (["--row", "10"], "has no row 10"),
        (["--step", "5"], "--step must be from 0 to 4, got 5"),
        (["--model", "nowhere"], "model 'nowhere' cannot be loaded"),
    ],
)
def test_inspect_refuses(arguments: list[str], sentence: str, folder: Path, capfd: Capture) -> None:
    assert main(["inspect", "recipe.yaml", *arguments]) == 2
    assert sentence in capfd.readouterr().err


def test_inspect_of_an_imitation_method(folder: Path, capfd: Capture) -> None:
    assert main(["inspect", "recipe.yaml", "method=sft"]) == 0
    assert "EOS  1 token" in capfd.readouterr().out


def test_convert_writes_rows_that_train(folder: Path, capfd: Capture) -> None:
    source = [{"question": "2+2?", "answer": "2+2 is <<2+2=4>>4.\n#### 4"}] * 4
    (folder / "gsm.jsonl").write_text("".join(json.dumps(r) + "\n" for r in source))
    assert main(["convert", "gsm8k", "gsm.jsonl", "out.jsonl"]) == 0
    assert "wrote 4 rows to out.jsonl" in capfd.readouterr().out
    row = json.loads((folder / "out.jsonl").read_text().splitlines()[0])
    assert row["answer"] == "4"
    assert row["prompt"] == [{"role": "user", "content": "2+2?"}]
    assert main(["check", "recipe.yaml", "train_data=out.jsonl", "max_completion_length=64"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gsm9k", "gsm.jsonl", "out.jsonl"], "unknown converter 'gsm9k': did you mean 'gsm8k'?"),
        (["gsm8k", "gsm.jsonl", "train.jsonl"], "'train.jsonl' exists already"),
        (["gsm8k", "gsm.jsonl", "out.parquet"], "must end in .jsonl"),
        (["gsm8k", "gsm.jsonl", "no/out.jsonl"], "the folder of 'no/out.jsonl' does not exist"),
        (["gsm8k", "none.jsonl", "out.jsonl"], "data file 'none.jsonl' does not exist"),
        (["gsm8k", "gsm.jsonl", "out.jsonl"], "gsm.jsonl', row 2, column 'answer'"),
        (["math", "gsm.jsonl", "out.jsonl"], "gsm.jsonl', row 1"),
    ],
)
def test_convert_refuses_and_leaves_nothing(
    arguments: list[str], sentence: str, folder: Path, capfd: Capture
) -> None:
    rows = [{"question": "2+2?", "answer": "4\n#### 4"}, {"question": "2+2?", "answer": "4"}]
    (folder / "gsm.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    before = sorted(folder.iterdir())
    assert main(["convert", *arguments]) == 2
    assert sentence in capfd.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_the_hint_to_recompute_is_a_key_that_there_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """transformers has two names for it, of which a recipe may give what its version knows."""
    assert recompute_key(("gradient_checkpointing", "seed")) == "gradient_checkpointing"
    both = ("gradient_checkpointing", "activation_checkpointing")
    assert recompute_key(both) == "activation_checkpointing"
    device = SimpleNamespace(total_memory=1)
    cuda = SimpleNamespace(is_available=lambda: True, get_device_properties=lambda number: device)
    monkeypatch.setattr("prefix_rft.checks.report.torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["check", "recipe.yaml"]) == 1
    words = f"or set {RECOMPUTE}: true"
    assert words in " ".join(capsys.readouterr().out.split())
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    main(["check", "recipe.yaml", f"{RECOMPUTE}=true"])
    assert words not in " ".join(capsys.readouterr().out.split())
