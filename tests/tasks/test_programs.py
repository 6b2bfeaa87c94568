"""The programs task: what its rows ask, its base, and a run as with anyone's own data."""

import json
import random
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefix_rft.cli import main
from prefix_rft.rewards import load_rewards
from prefix_rft.rewards.sandbox import refuse_where_impossible
from prefix_rft.support.errors import UserError
from prefix_rft.tasks.programs import functions, solve, write
from prefix_rft.tasks.programs.base_model import aimless_text, make_base, make_tokenizer
from prefix_rft.tasks.programs.problem import (
    DOMAIN,
    STEPS,
    Step,
    decide,
    generate,
    program_of,
    prompt_of,
    split_of,
    values_of,
)
from prefix_rft.training.train import train

PACKAGE = Path(str(files("prefix_rft.tasks.programs")))


def isolated() -> bool:
    try:
        refuse_where_impossible(isolate=True)
    except UserError:
        return False
    return True


# The recipe isolates; where a machine cannot, its own word for that is needed.
HERE = () if isolated() else ("reward={name: code, timeout: 5, unsandboxed: true}",)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def python_of(program: str) -> Any:
    """The function that Python makes of a program."""
    scope: dict[str, Any] = {}
    exec(program, scope)  # noqa: S102  (our own)
    return scope["f"]


def test_a_program_does_what_its_chain_does() -> None:
    chain = (Step("*", 3), Step("-", 2))
    assert program_of(chain) == "def f ( x ) : x = x * 3 ; x = x - 2 ; return x"
    assert values_of(chain) == (-2, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34)
    rng = random.Random(0)
    for _ in range(200):
        chain = tuple(rng.choices(STEPS, k=rng.randint(1, 2)))
        f = python_of(program_of(chain))
        assert tuple(map(f, DOMAIN)) == values_of(chain)


def test_functions() -> None:
    assert len(functions()) == 600
    assert [len(c) for c in functions().values()].count(1) == len(STEPS) == 34
    assert all(values_of(chain) == values for values, chain in functions().items())
    assert sum(split_of(values) == "test" for values in functions()) == 106
    # x + 3 + 4 is x + 7, and the shorter chain stands for both.
    assert functions()[values_of((Step("+", 3), Step("+", 4)))] == (Step("+", 7),)


def test_the_solver() -> None:
    assert solve({0: 1, 3: 7, 5: 11, 12: 25}) == (Step("*", 2), Step("+", 1))
    assert solve({0: 1, 1: 0, 2: 5, 3: 40}) is None
    assert decide({0: 1, 3: 7, 5: 11, 12: 25})
    assert not decide({0: 0})


def test_rows() -> None:
    seen: set[str] = set()
    rows = generate("train", 40, random.Random(3), seen)
    assert len(seen) == 40
    steps = [row["demonstration"].count(";") for row in rows]
    assert steps.count(1) == steps.count(2) == 20
    for row in rows:
        f = python_of(row["demonstration"])
        told = row["prompt"].removesuffix(" :").split(" ; ")
        assert len(told) == 4
        assert all(f(int(words[2])) == int(words[5]) for words in map(str.split, told))
        for test in row["tests"]:
            exec(test, {"f": f})  # noqa: S102  (our own)
        assert len(row["tests"]) == 13
    few = FewChoices([v for v in functions() if split_of(v) == "test"][:1])
    with pytest.raises(ValueError, match=r"found only [01] of 9 different test problems"):
        generate("test", 9, few, set())


class FewChoices(random.Random):
    """Draws one function and its first examples."""

    def __init__(self, few: list[Any]) -> None:
        super().__init__(0)
        self.few = few

    def choice(self, seq: Any) -> Any:
        return self.few[0]

    def sample(self, population: Any, k: int) -> list[Any]:  # pyright: ignore
        return list(population)[:k]


def test_files(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write(tmp_path / name, 30, 20, seed, 10)
    prompts = set()
    for name, count in (("train", 30), ("valid", 10), ("test", 20)):
        a, b, c = ((tmp_path / x / f"{name}.jsonl").read_text() for x in "abc")
        assert a == b
        assert a != c
        rows = rows_of(tmp_path / f"a/{name}.jsonl")
        assert len(rows) == count
        prompts |= {row["prompt"] for row in rows}
        for row in rows:
            values = tuple(int(test.split()[-1]) for test in row["tests"])
            assert split_of(values) == ("test" if name == "test" else "train")
    assert len(prompts) == 60


def test_the_reward_finds_demonstrations_right_and_other_programs_wrong() -> None:
    rows = generate("train", 12, random.Random(1), set())
    unsandboxed = {} if isolated() else {"unsandboxed": True}
    (reward,), _ = load_rewards({"name": "code", "workers": 2, **unsandboxed})
    demonstrations = [row["demonstration"] for row in rows]
    tests = [row["tests"] for row in rows]
    assert reward(completions=demonstrations, tests=tests) == [1.0] * 12
    others = [*demonstrations[1:], demonstrations[0]]
    same = [values_of(solve_row(a)) == values_of(solve_row(b)) for a, b in pairwise(rows)]
    assert not any(same)
    assert reward(completions=others, tests=tests) == [0.0] * 12
    cut = [text.removesuffix(" return x") for text in demonstrations]
    assert reward(completions=cut, tests=tests) == [0.0] * 12
    reward.close()


def solve_row(row: dict[str, Any]) -> Any:
    pairs = (test.removeprefix("assert f(").split(") == ") for test in row["tests"])
    return solve({int(x): int(y) for x, y in pairs})


def test_the_command_and_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows, reward, demonstrations and base through check and training as a user's own."""
    folder = tmp_path / "programs"
    counts = ["--train-rows", "24", "--test-rows", "4", "--valid-rows", "4"]
    assert main(["task", "programs", str(folder), *counts]) == 0
    assert "next: prefix-rft train" in capsys.readouterr().out
    recipe = str(folder / "recipe.yaml")
    assert main(["check", recipe, *HERE]) == 0
    assert "code" in capsys.readouterr().out
    small = ["max_steps=3", "prompts_per_step=4", "micro_batch_size=null", f"runs={tmp_path}"]
    run = train(recipe, [*small, "eval_samples=1", *HERE], Console(quiet=True))
    lines = [line for line in rows_of(run / "metrics.jsonl") if "verdicts/code/wrong" in line]
    assert len(lines) == 3
    for line in lines:
        # Four of the 32 rows start from a demonstration, less a token, and most of them end well.
        right, wrong = (line[f"verdicts/code/{status}"] for status in ("correct", "wrong"))
        assert right + wrong == 1.0
        assert 1 / 32 <= right < 0.5
    assert main(["task", "programs", str(tmp_path / "no"), "--steps", "3"]) == 2
    assert "has no effect on programs" in capsys.readouterr().err


def test_a_base_is_made_from_its_seed(tmp_path: Path) -> None:
    one, _ = make_base(tmp_path / "one", steps=3, seed=1)
    two, _ = make_base(tmp_path / "two", steps=3, seed=1)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_shipped_base_knows_how_programs_are_written_and_has_no_goal() -> None:
    folder = PACKAGE / "base"
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert sum(f.stat().st_size for f in folder.iterdir()) < 1e6
    rng = random.Random(0)
    chosen = [rng.choice(list(functions())) for _ in range(300)]
    prompts = [prompt_of({x: values[x] for x in (0, 3, 5, 9)}) for values in chosen]
    torch.manual_seed(0)
    ids = tokenizer(prompts, return_tensors="pt")["input_ids"]
    out = model.generate(input_ids=ids, do_sample=True, top_k=0, max_new_tokens=21)
    texts = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    formed = solved = 0
    for text, values in zip(texts, chosen, strict=True):
        try:
            found = tuple(map(python_of(text), DOMAIN))
        except (SyntaxError, KeyError, ZeroDivisionError, NameError):
            continue
        formed += 1
        solved += found == values
    assert formed >= 285
    assert solved <= 6


def test_what_the_base_reads() -> None:
    rng = random.Random(0)
    tokenizer = make_tokenizer()
    for length in (1, 2):
        prompt, program = aimless_text(length, rng)
        ids = tokenizer(f"{prompt} {program}")["input_ids"]
        assert len(ids) == 28 + 8 + 6 * length
        assert tokenizer.unk_token_id not in ids
        assert python_of(program)(5) is not None
