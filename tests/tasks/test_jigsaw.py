"""The jigsaw task: reward by hand, pictures restored, recipes that train, a base that sees."""

import importlib.util
import json
import random
from importlib.resources import files
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from prefix_rft.cli import main
from prefix_rft.engines.models import load_model
from prefix_rft.rewards import load_rewards
from prefix_rft.support import imports
from prefix_rft.support.errors import UserError
from prefix_rft.tasks.jigsaw import accuracy, form, hits, write
from prefix_rft.tasks.jigsaw.base_model import make_base, make_base_processor, text
from prefix_rft.tasks.jigsaw.grade import LONGEST, parse
from prefix_rft.tasks.jigsaw.picture import Cut, cut, draw, laid
from prefix_rft.tasks.jigsaw.puzzle import inverse, jigsaw, row, shuffled
from prefix_rft.training.train import train

PACKAGE = Path(str(files("prefix_rft.tasks.jigsaw")))
CUTS = [Cut(m, n) for m in (1, 2, 3) for n in (1, 2, 3) if m * n > 1]
NINE = "3 1 2 6 5 4 9 7 8"
NAMES = ["recipe.yaml", *sorted(f"recipes/{p.name}" for p in PACKAGE.glob("recipes/*.yaml"))]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pixels_of(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture)


def in_form(numbers: str, thought: str = "hm") -> str:
    return f"<think>{thought}</think><answer>{numbers}</answer>"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task") / "jigsaw"
    write(folder, 32, 8, 0, 4)
    return folder


SUM = ["prefix_rft.tasks.jigsaw:accuracy", "prefix_rft.tasks.jigsaw:hits"]
SUM += ["prefix_rft.tasks.jigsaw:form"]


@pytest.mark.parametrize(
    ("completion", "status", "parts"),
    [
        (in_form(NINE), "correct", (1, 1, 1)),
        (in_form("1 3 2 6 5 4 9 7 8"), "wrong", (0, 7 / 9, 1)),  # two swapped
        (in_form(NINE + " 1"), "wrong", (0, 0, 1)),
        (in_form("3 1 2"), "wrong", (0, 0, 1)),
        (in_form(""), "wrong", (0, 0, 1)),
        (in_form("all in place"), "wrong", (0, 0, 1)),
        # Out of form, what is right counts nevertheless.
        (f"<answer>{NINE}</answer>", "correct", (1, 1, 0)),
        ("well " + in_form(NINE), "correct", (1, 1, 0)),
        (in_form(NINE) + " done", "correct", (1, 1, 0)),
        (in_form(NINE, "<answer>1</answer>"), "correct", (1, 1, 0)),
        (f"<answer>{NINE}</answer><think>hm</think>", "correct", (1, 1, 0)),
        (f"<think>a</think><think>b</think><answer>{NINE}</answer>", "correct", (1, 1, 0)),
        # The last answer counts; here one of its places is right.
        (in_form(NINE) + "<answer>1 2 3 4 5 7 6 8 9</answer>", "wrong", (0, 1 / 9, 0)),
        # Other ways to write the same.
        (f" <think>\n a </think>\n<answer> {NINE} </answer>\n", "correct", (1, 1, 1)),
        (in_form(NINE.replace(" ", ", ")), "correct", (1, 1, 1)),
        (in_form(f"[{NINE.replace(' ', ',')}]"), "correct", (1, 1, 1)),
        (NINE, "no answer", (None, None, 0)),
        (f"<think>a</think><answer>{NINE}", "no answer", (None, None, 0)),
        (in_form("9" * 10**6), "wrong", (0, 0, 1)),
        (in_form(" 1" * 10**6), "wrong", (0, 0, 1)),
        ("<think>" * 10**5 + "<answer>" * 10**5, "no answer", (None, None, 0)),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_the_reward_by_hand(completion: str, status: str, parts: Any) -> None:
    for given in (completion, [{"role": "assistant", "content": completion}]):
        found = [*accuracy([given], [NINE]), *hits([given], [NINE]), *form([given])]
        assert found[0].status == found[1].status == status
        assert tuple(v.reward for v in found) == pytest.approx(parts)


def test_the_sum_as_a_recipe_has_it() -> None:
    """3.0, 1.777778 and 1.0; and from 1.0 on a plain sum would be called correct."""
    texts = [in_form(NINE), in_form("1 3 2 6 5 4 9 7 8"), in_form("3 1 2")]
    parts, weights = load_rewards([{"name": name, "workers": 1} for name in SUM])
    assert weights == [1.0, 1.0, 1.0]
    found = [part(completions=texts, answer=[NINE] * 3) for part in parts]
    assert [sum(x) for x in zip(*found, strict=True)] == pytest.approx([3.0, 1.777778, 1.0])
    solved = [v.status for v in parts[0].verdicts]
    assert solved == ["correct", "wrong", "wrong"]
    for part in parts:
        part.close()
    for name in ("recipe.yaml", "recipes/grpo.yaml"):
        assert yaml.safe_load((PACKAGE / name).read_text())["reward"] == SUM


def test_other_columns_of_the_reward() -> None:
    """A prompt that opens the thinking, and answers that are none."""
    opened = f"a</think><answer>{NINE}</answer>"
    for prompt, value in (("x <think>\n", 1.0), ("x", 0.0)):
        assert form([opened], prompts=[prompt])[0].reward == value
    golds = [None, "", "one two"]
    for grade in (accuracy, hits):
        assert {v.status for v in grade([in_form(NINE)] * 3, golds)} == {"gold unparseable"}
    assert parse("1 " * (LONGEST // 2)) == [1] * (LONGEST // 2)
    assert parse("1 " * (LONGEST // 2) + "1") is None
    assert [parse(x) for x in ("1,2", "[1 2]", "1, 2,", "-1 2", "\u0661 2", "12345")] == [
        [1, 2], [1, 2], None, None, None, None
    ]  # fmt: skip


@pytest.mark.parametrize("grid", CUTS, ids=lambda g: f"{g.rows}x{g.columns}")
def test_the_answer_restores_the_picture(grid: Cut) -> None:
    """Pixel for pixel, with pieces that are cut and put together by other means."""
    rng = random.Random(3)
    for _ in range(5):
        state = rng.getstate()
        puzzle = jigsaw(grid, rng)
        rng.setstate(state)
        whole, disc = draw(np.random.default_rng(rng.getrandbits(64)), grid)
        tall, wide = whole.shape[0] // grid.rows, whole.shape[1] // grid.columns
        restored = np.zeros_like(whole)
        for place, number in enumerate(puzzle.order):
            (a, b), (c, d) = divmod(place, grid.columns), divmod(number - 1, grid.columns)
            piece = puzzle.pixels[c * tall : (c + 1) * tall, d * wide : (d + 1) * wide]
            restored[a * tall : (a + 1) * tall, b * wide : (b + 1) * wide] = piece
        assert np.array_equal(restored, whole)
        assert np.array_equal(laid(puzzle.pixels, grid, puzzle.order), whole)
        assert puzzle.order[disc] == puzzle.disc
        assert inverse(puzzle.order) == puzzle.homes
        assert len({piece.tobytes() for piece in cut(whole, grid)}) == grid.pieces


def test_files(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write(tmp_path / name, 12, 6, seed, 3, 1, 3)
    a, b = (
        {p.relative_to(tmp_path / x): p.read_bytes() for p in (tmp_path / x).rglob("*.*")}
        for x in "ab"
    )
    assert a == b
    pictures, prompts = [], set()
    for name, count in (("train", 12), ("valid", 3), ("test", 6)):
        assert a[Path(f"{name}.jsonl")] != (tmp_path / f"c/{name}.jsonl").read_bytes()
        rows = rows_of(tmp_path / f"a/{name}.jsonl")
        assert len(rows) == count
        for line in rows:
            shown = pixels_of(tmp_path / "a" / line["image"])
            order = [int(number) for number in line["answer"].split()]
            pictures.append(laid(shown, Cut(1, 3), order).tobytes())
            prompts |= {line["prompt"][0]["content"]}
            shown_at = " ".join(str(order.index(number) + 1) for number in (1, 2, 3))
            last = f"<answer> {line['answer']} </answer>"
            assert line["demonstration"] == f"<think> {shown_at} </think> {last}"
    # No picture is in two rows, however its pieces lie.
    assert len(set(pictures)) == 21
    assert prompts == {"restore the picture from 1 x 3 pieces"}
    pair = (rows_of(tmp_path / f"a/{x}.jsonl") for x in ("train", "answers"))
    for line, alone in zip(*pair, strict=True):
        assert alone == {**line, "demonstration": f"<answer> {line['answer']} </answer>"}
    discs = rows_of(tmp_path / "a/discs.jsonl")
    assert [line["image"] for line in discs] == [line["image"] for line in rows]
    assert {line["answer"] for line in discs} <= {"1", "2", "3"}
    assert "max_completion_length: 11 " in a[Path("recipe.yaml")].decode()


def test_wrong_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "jigsaw"
    for words, sentence in (
        (("--rows", "1", "--columns", "1"), "has 2 to 9 pieces in at most 3 rows and 3 columns"),
        (("--rows", "4", "--columns", "1"), "got 4 rows x 1 columns"),
        (("--rows", "0"), "got 0 rows x 2 columns"),
        (("--steps", "3"), "--steps has no effect on jigsaw: it is of chain alone"),
    ):
        assert main(["task", "jigsaw", str(folder), *words]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
    assert main(["task", "chain", str(folder), "--columns", "2"]) == 2
    assert "it is of jigsaw alone" in capsys.readouterr().err
    (folder / "pictures").mkdir(parents=True)
    with pytest.raises(UserError, match=r"pictures' exists already: name another folder"):
        write(folder, 1, 1, 0, 1)

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(imports.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"needs Pillow: pip install 'prefix-rft\[images\]'"):
        write(tmp_path / "none", 1, 1, 0, 1)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains(task: Path, tmp_path: Path, name: str) -> None:
    if "rollouts" in name:
        (task / "own.jsonl").write_text((task / "train.jsonl").read_text())
    few = ["max_steps=2", "prompts_per_step=4", "micro_batch_size=null", f"runs={tmp_path}"]
    run = train(str(task / name), [*few, "eval_samples=1"], Console(quiet=True))
    lines = [line for line in rows_of(run / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        if "policy/reward" in line:  # form, and a share of the places
            assert 1 <= line["policy/reward"] < 2
    before, after = (load_model(str(x))[0].state_dict() for x in (task / "base", run / "model"))
    assert any(not before[n].equal(after[n]) for n in before if "vision_tower" in n)


@pytest.mark.slow
def test_the_chain_from_rollouts_to_imitation(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``sft_rollouts.yaml`` says, from the task's own folder."""
    monkeypatch.chdir(task)
    few = ["max_steps=4", "~eval_data"]
    assert main(["train", "recipes/grpo.yaml", *few]) == 0
    collected = ["--recipe", "recipes/grpo.yaml", "--solved", "own.jsonl"]
    (task / "own.jsonl").unlink(missing_ok=True)
    assert main(["rollouts", "runs/jigsaw-grpo", *collected]) == 0
    own = rows_of(task / "own.jsonl")
    assert own
    for line in own:
        texts = line["demonstration"]
        for verdicts in (accuracy(texts, [line["answer"]] * len(texts)), form(texts)):
            assert {v.status for v in verdicts} == {"correct"}
    assert main(["train", "recipes/sft_rollouts.yaml", *few]) == 0


@pytest.mark.slow
def test_the_command_writes_what_check_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "jigsaw"
    counts = ["--train-rows", "64", "--test-rows", "4", "--valid-rows", "4"]
    assert main(["task", "jigsaw", str(folder), *counts]) == 0
    told = capsys.readouterr().out
    assert "next: prefix-rft train" in told
    assert "has read" not in told
    assert main(["check", str(folder / "recipe.yaml")]) == 0
    told = capsys.readouterr().out
    assert "64 demonstrations in 64 rows" in told
    # All ask the same, of pictures of their own.
    assert "also in train_data" not in told
    assert main(["check", str(folder / "recipe.yaml"), "eval_data=train.jsonl"]) == 0
    assert "64 of its prompts are also in train_data" in capsys.readouterr().out
    wide = [str(tmp_path / "wide"), "--columns", "3", *counts]
    assert main(["task", "jigsaw", *wide]) == 0
    assert "--rows 2 --columns 3" in capsys.readouterr().out


def test_a_base_is_made_from_its_seed(tmp_path: Path) -> None:
    cut = Cut(1, 3)
    one, two = (make_base(tmp_path / name, 3, 1, cut)[0] for name in ("one", "two"))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_table_follows_from_the_records() -> None:
    root = Path(__file__).parents[2]
    folder = root / "benchmarks/jigsaw"
    spec = importlib.util.spec_from_file_location("jigsaw_tables", folder / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    results = json.loads((folder / "results.json").read_text())
    assert {record["arm"] for record in results["records"]} == set(tables.WORDS) - {"base"}
    assert tables.table(results) in (root / "docs/jigsaw.md").read_text()


def test_what_the_base_reads() -> None:
    rng = random.Random(0)
    words = make_base_processor().tokenizer
    for grid in CUTS:
        puzzle, homes = jigsaw(grid, rng), shuffled(grid, rng)
        question, answer = text(puzzle, True, homes)
        assert answer == f"<think> {puzzle.disc} </think> <answer> {puzzle.disc} </answer>"
        other, reasons = text(puzzle, False, homes)
        assert (
            words.unk_token_id not in words(" ".join((question, answer, other, reasons))).input_ids
        )
        thought, found = (
            [int(x) for x in part.split() if x.isdigit()] for part in reasons.split("</think>")
        )
        assert thought == list(homes)
        assert [thought[number - 1] for number in found] == sorted(thought)
        assert text(puzzle, False, puzzle.homes)[1] == row(puzzle, "")["demonstration"]


def answers(folder: Path, rows: list[dict[str, Any]], shift: int = 0) -> list[str]:
    """The base's sampled answers to rows, with the pictures of rows further on."""
    model, processor = load_model(str(folder / "base"))
    shown = [rows[(i + shift) % len(rows)]["image"] for i in range(len(rows))]
    asked = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words}]}],
            add_generation_prompt=True,
        )
        for words in (row["prompt"][0]["content"] for row in rows)
    ]
    pictures = [[Image.fromarray(pixels_of(folder / name))] for name in shown]
    inputs = processor(images=pictures, text=asked, return_tensors="pt")
    torch.manual_seed(0)
    out = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=13)
    new = out[:, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.batch_decode(new, skip_special_tokens=True)


def test_the_shipped_base_looks_at_the_picture_and_solves_few_jigsaws(tmp_path: Path) -> None:
    folder = tmp_path / "jigsaw"
    write(folder, 1, 200, 4, 1)
    assert sum(f.stat().st_size for f in (folder / "base").iterdir()) < 1e6
    discs, jigsaws = (rows_of(folder / name) for name in ("discs.jsonl", "test.jsonl"))

    def solved(rows: list[dict[str, Any]], shift: int = 0) -> float:
        golds = [row["answer"] for row in rows]
        return mean(v.status == "correct" for v in accuracy(answers(folder, rows, shift), golds))

    assert solved(discs) >= 0.9
    assert solved(discs, shift=1) <= 0.4  # one in four by chance
    assert mean(v.reward or 0 for v in form(answers(folder, jigsaws))) >= 0.95
    assert 0.02 <= solved(jigsaws) <= 0.2
