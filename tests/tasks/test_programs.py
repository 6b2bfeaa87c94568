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
from prefix_rft.tasks.programs import write
from prefix_rft.tasks.programs.base_model import make_base, make_tokenizer, text
from prefix_rft.tasks.programs.problem import (
    DOMAIN,
    Operation,
    draw_chain,
    generate,
    program_of,
    prompt_of,
    row,
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
    chain = (Operation("multiply", 3), Operation("subtract", 2))
    assert prompt_of(chain) == "multiply 3 then subtract 2 :"
    assert program_of(chain) == "def f ( x ) : x = x * 3 ; x = x - 2 ; return x"
    assert values_of(chain) == (-2, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34)
    rng = random.Random(0)
    for _ in range(300):
        chain = draw_chain(rng.randint(1, 3), rng)
        f = python_of(program_of(chain))
        assert tuple(map(f, DOMAIN)) == values_of(chain)


def test_rows() -> None:
    seen: set[Any] = set()
    chains = generate("train", 60, random.Random(3), seen)
    assert len(seen) == len(set(chains)) == 60
    assert {len(chain) for chain in chains} == {1, 2, 3}
    for chain in chains:
        line = row(chain)
        f = python_of(line["demonstration"])
        for test in line["tests"]:
            exec(test, {"f": f})  # noqa: S102  (our own)
        assert len(line["tests"]) == 13
        assert split_of(values_of(chain)) == "train"
        assert len(set(values_of(chain))) > 1
    assert not set(chains) & set(generate("train", 60, random.Random(3), seen))
    with pytest.raises(ValueError, match="found only 2 of 9 different test problems"):
        generate("test", 9, Repeats(2), set())


class Repeats(random.Random):
    """Draws ``add 2``, ``add 3`` and so on, and goes round and round."""

    def __init__(self, few: int) -> None:
        super().__init__(0)
        test = (c for c in range(2, 999) if split_of(values_of((Operation("add", c),))) == "test")
        self.few, self.at = [next(test) for _ in range(few)], 0

    def randint(self, a: int, b: int) -> int:
        return 1

    def choice(self, seq: Any) -> Any:
        if seq[0] == "add":
            return "add"
        self.at += 1
        return self.few[self.at % len(self.few)]


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
        prompts |= {line["prompt"] for line in rows}
        for line in rows:
            values = tuple(int(test.split()[-1]) for test in line["tests"])
            assert len(values) == 13
            assert split_of(values) == ("test" if name == "test" else "train")
    assert len(prompts) == 60


def test_the_reward_finds_demonstrations_right_and_other_programs_wrong() -> None:
    chains = generate("train", 12, random.Random(1), set())
    assert all(values_of(a) != values_of(b) for a, b in pairwise([*chains, chains[0]]))
    rows = [row(chain) for chain in chains]
    unsandboxed = {} if isolated() else {"unsandboxed": True}
    (reward,), _ = load_rewards({"name": "code", "workers": 2, **unsandboxed})
    demonstrations = [row["demonstration"] for row in rows]
    tests = [row["tests"] for row in rows]
    assert reward(completions=demonstrations, tests=tests) == [1.0] * 12
    others = [*demonstrations[1:], demonstrations[0]]
    assert reward(completions=others, tests=tests) == [0.0] * 12
    cut = [text.removesuffix(" return x") for text in demonstrations]
    assert reward(completions=cut, tests=tests) == [0.0] * 12
    reward.close()


@pytest.mark.slow
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
    chosen = [draw_chain(2, rng) for _ in range(300)]
    prompts = [prompt_of(chain) for chain in chosen]
    torch.manual_seed(0)
    ids = tokenizer(prompts, return_tensors="pt")["input_ids"]
    out = model.generate(input_ids=ids, do_sample=True, top_k=0, max_new_tokens=27)
    texts = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    formed = solved = 0
    for answer, chain in zip(texts, chosen, strict=True):
        try:
            found = tuple(map(python_of(answer), DOMAIN))
        except (SyntaxError, KeyError, ZeroDivisionError, NameError):
            continue
        formed += 1
        solved += found == values_of(chain)
    assert formed >= 285
    assert 1 <= solved <= 45  # one in 25 by chance


def test_what_the_base_reads() -> None:
    rng = random.Random(0)
    tokenizer = make_tokenizer()
    right = 0
    for length in (1, 2, 3) * 100:
        prompt, program = text(length, rng, known=False)
        ids = tokenizer(f"{prompt} {program}")["input_ids"]
        assert len(ids) == 3 * length + 8 + 6 * length
        assert tokenizer.unk_token_id not in ids
        assert isinstance(python_of(program)(5), int)
        told = prompt.removesuffix(" :").split(" then ")
        chain = tuple(Operation(w, int(c)) for w, c in map(str.split, told))
        assert [str(step.constant) for step in chain] == program.split()[10:-2:6]
        right += program == program_of(chain)
        prompt, program = text(length, rng, known=True)
        told = prompt.removesuffix(" :").split(" then ")
        signs = {"plus": "+", "minus": "-", "times": "*", "over": "//", "modulo": "%"}
        assert [f"{signs[w]} {c}" for w, c in map(str.split, told)] == [
            step.removeprefix("x = x ") for step in program[14:].split(" ; ")[:-1]
        ]
    # A fifth of the short ones, a 25th, a 125th: 25 of 300, and four deviations.
    assert 10 <= right <= 44
