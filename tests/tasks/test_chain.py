"""The chain task: its rule, its grader, its rows and its base."""

import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefix_rft.cli import main
from prefix_rft.tasks.chain import reward, steps, write
from prefix_rft.tasks.chain.base_model import LONGEST, make_base, make_tokenizer, text
from prefix_rft.tasks.chain.rule import (
    STATES,
    demonstrate,
    draw_symbols,
    parse,
    table_of,
    valid_steps,
    write_chain,
)

PACKAGE = Path(str(files("prefix_rft.tasks.chain")))
NEW_AS_PUBLISHED = [3, 2, 3, 1, 0, 7, 3, 7]
"""What the rule of every table in benchmarks/ says of the first state and symbol."""
PARITY = table_of("parity")
"""A rule that can be followed by hand: the sum modulo 2, with a = 0 and b = 1."""


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_parity_by_hand() -> None:
    # z_i = z_{i-1} + y_i + x_i mod 2 with a = 0, b = 1: 0+1+1 = 0, 0+0+1 = 1, 1+1+0 = 0, 0+1+0 = 1.
    right = "s1 b 1 0 s2 b 0 1 s3 a 1 0 s4 a 1 1"
    assert valid_steps(right, "bbaa", PARITY) == [True] * 4
    # A wrong state spoils its own step; the next one goes on from what is written.
    wrong = "s1 b 1 0 s2 b 0 0 s3 a 1 1 s4 a 1 0"
    assert valid_steps(wrong, "bbaa", PARITY) == [True, False, True, True]


def test_rows_of_parities(tmp_path: Path) -> None:
    """As AdaBack has them: z is the sum of all that went before, and y = x makes a copy of z."""
    write(tmp_path, 40, 20, 0, 10, steps=16, rule="parity")
    columns = ("symbols", "rule")
    for name in ("train", "valid", "test"):
        for row in rows_of(tmp_path / f"{name}.jsonl"):
            x = [int(s == "b") for s in row["symbols"]]
            words = row["demonstration"].split()
            y, z = ([int(w) for w in words[i::4]] for i in (2, 3))
            assert z == [sum(x[: i + 1] + y[: i + 1]) % 2 for i in range(16)]
            easy = " ".join(f"s{i} {s} {b} 0" for i, (s, b) in enumerate(zip(row["symbols"], x), 1))  # noqa: B905
            wrong = row["demonstration"][:-1] + str(1 - z[-1])
            beyond = row["demonstration"][:-3] + "2 0"
            answers = [row["demonstration"], easy, wrong, beyond]
            assert reward(answers, **{k: [row[k]] * 4 for k in columns}) == [1.0, 1.0, 0.0, 0.0]
            assert row["prompt"].startswith("new s1 ")
    assert {row["rule"] for row in rows_of(tmp_path / "old.jsonl")} == {"old"}
    assert "max_completion_length: 65" in (tmp_path / "recipe.yaml").read_text()
    with pytest.raises(ValueError, match="no rule 'old': give new or parity"):
        write(tmp_path, rule="old")


def test_rewards() -> None:
    """From state 0 each choice leads to the published state; the second step is wrong."""
    y, z = 1, NEW_AS_PUBLISHED[1]
    after = table_of("new")[z, 0, "c"]
    right, wrong = f"s1 a {y} {z} s2 c 0 {after}", f"s1 a {y} {z} s2 c 0 {(after + 1) % 8}"
    columns = {"symbols": ["ac"] * 2, "rule": ["new"] * 2}
    told = [[{"role": "assistant", "content": t}] for t in (right, wrong)]
    for answers in ([right, wrong], told):
        assert reward(answers, **columns) == [1.0, 0.0]
        assert steps(answers, **columns) == [1.0, 0.5]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "s1 b 1 0 s2 b 0 1 s3 a 1 0",  # a step is missing
        "s1 b 1 0 s2 b 0 1 s3 a 1 0 s4 a 1 1 s5 a 0 1",  # one too many
        "s1 b 1 0 s2 b 0 1 s3 a 1 0 s4 a 1",
        "s1 b 1 0 s2 b 0 1 s4 a 1 0 s3 a 1 1",
        "s1 b 1 0 s2 b 0 1 s3 b 1 1 s4 a 1 0",  # another symbol than the prompt's
        "s1 b 1 0 s2 b 0 1 s3 a 1 0 s4 a 1 2",
        "s1 b 1 0 s2 b 0 1 s3 a 1 0 s4 a \u0661 1",
    ],
)
def test_what_is_no_right_answer(answer: str) -> None:
    assert not all(valid_steps(answer, "bbaa", PARITY))


def test_every_choice_is_taken() -> None:
    """From any state each choice has one state behind it, and no other."""
    table = table_of("new")
    assert len(table) == 8 * 8 * 4
    for y in range(8):
        right = [z for z in range(8) if all(valid_steps(f"s1 c {y} {z}", "c", table))]
        assert right == [table[0, y, "c"]]


def test_the_rules_differ_and_stay() -> None:
    old, new = (table_of(name) for name in ("old", "new"))
    assert sum(old[k] != new[k] for k in new) > 200
    assert [new[0, y, "a"] for y in range(8)] == NEW_AS_PUBLISHED


def test_demonstrations_are_right_and_their_choices_uniform() -> None:
    rng, table, seen = random.Random(0), table_of("new"), [0] * 8
    for _ in range(200):
        symbols = draw_symbols(24, rng)
        chain = demonstrate(symbols, table, rng)
        assert parse(write_chain(chain)) == chain
        assert all(valid_steps(write_chain(chain), symbols, table))
        for step in chain:
            seen[step.y] += 1
    assert all(abs(n - 600) < 100 for n in seen)  # 4800 / 8, four standard deviations are 92


def test_rows(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write(tmp_path / name, 30, 20, seed, 10)
    for name in ("train", "valid", "test", "old"):
        a, b, c = ((tmp_path / x / f"{name}.jsonl").read_text() for x in "abc")
        assert a == b
        assert (a == c) == (name != "train")  # only what is trained on depends on the seed
    prompts = []
    for name in ("train", "valid", "test", "old"):
        rows = rows_of(tmp_path / f"a/{name}.jsonl")
        columns = {k: [r[k] for r in rows] for k in ("symbols", "rule")}
        assert reward([r["demonstration"] for r in rows], **columns) == [1.0] * len(rows)
        assert set(columns["rule"]) == {"old" if name == "old" else "new"}
        prompts += columns["symbols"]
    assert len(set(prompts)) == len(prompts) == 30 + 10 + 20 + 20


def test_shorter_chains_have_a_shorter_budget(tmp_path: Path) -> None:
    write(tmp_path, 8, 4, 0, 2, steps=6)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    for row in rows_of(tmp_path / "train.jsonl"):
        assert len(tokenizer(row["demonstration"])["input_ids"]) + 1 == 25
    for name in ("recipe", "compare", "forgetting"):
        assert "max_completion_length: 25" in (tmp_path / f"{name}.yaml").read_text()
    with pytest.raises(ValueError, match="1 to 24 steps, got 25"):
        write(tmp_path, steps=25)
    with pytest.raises(ValueError, match="too few different chains of 3 steps"):
        write(tmp_path, steps=3)


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "chain", str(tmp_path / "chain"), "--test-rows", "9"]) == 0
    assert len(rows_of(tmp_path / "chain/train.jsonl")) == 75
    assert "next: prefix-rft train" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "chain/recipe.yaml")]) == 0
    for name, option, owner in (
        ("countdown", "--steps=3", "chain"),
        ("chain", "--operands=3", "countdown"),
    ):
        assert main(["task", name, str(tmp_path / "no"), option]) == 2
        assert f"has no effect on {name}: it is of {owner} alone" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_what_the_base_reads() -> None:
    rng = random.Random(0)
    for _ in range(50):
        prompt, chain = text(7, rng, "old")
        symbols = "".join(prompt.split()[2:-1:2])
        assert all(valid_steps(chain, symbols, table_of("old")))
    right = 0
    for _ in range(50):
        prompt, chain = text(7, rng, "new")
        symbols = "".join(prompt.split()[2:-1:2])
        assert [s.x for s in parse(chain) or ()] == list(symbols)
        right += sum(valid_steps(chain, symbols, table_of("new")))
    assert right < 350 / 4  # an eighth, by chance


def test_a_base_is_made_from_its_seed(tmp_path: Path) -> None:
    one, _ = make_base(tmp_path / "one", steps=3, seed=1)
    two, _ = make_base(tmp_path / "two", steps=3, seed=1)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_shipped_base_knows_the_form_and_not_the_rule() -> None:
    folder = PACKAGE / "base"
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert sum(f.stat().st_size for f in folder.iterdir()) < 1e6
    rng, shares = random.Random(0), {}
    for rule in ("old", "new"):
        symbols = [draw_symbols(LONGEST, rng) for _ in range(40)]
        prompts = [
            f"{rule} " + " ".join(f"s{i} {x}" for i, x in enumerate(s, 1)) + " ;" for s in symbols
        ]
        torch.manual_seed(0)
        ids = tokenizer(prompts, return_tensors="pt")["input_ids"]
        out = model.generate(input_ids=ids, do_sample=True, top_k=0, max_new_tokens=4 * LONGEST + 1)
        texts = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        formed = [
            [s.x for s in parse(t) or ()] == list(x) for t, x in zip(texts, symbols, strict=True)
        ]
        assert sum(formed) >= 38
        valid = [
            v
            for t, x in zip(texts, symbols, strict=True)
            for v in valid_steps(t, x, table_of(rule))
        ]
        shares[rule] = sum(valid) / len(valid)
    assert shares["old"] > 0.9
    assert shares["new"] == pytest.approx(1 / STATES, abs=0.05)
