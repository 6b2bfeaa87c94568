import json
import random
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefix_rft.tasks.countdown import write
from prefix_rft.tasks.countdown.base_model import (
    aimless_text,
    make_base,
    make_model,
    make_tokenizer,
)
from prefix_rft.tasks.countdown.grade import arithmetic, grade, reward, well_formed
from prefix_rft.tasks.countdown.puzzle import (
    Puzzle,
    Rules,
    chains,
    chance,
    demonstration,
    difficulty,
    generate,
    solutions,
    split_of,
    write_chain,
)

BASE = Path(str(files("prefix_rft.tasks.countdown") / "base"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def complete(model, tokenizer, puzzles, max_new_tokens, seed=0):
    """Sample one completion per puzzle at temperature 1."""
    torch.manual_seed(seed)
    batch = tokenizer([p.prompt for p in puzzles], return_tensors="pt", padding=True)
    ids = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=max_new_tokens,
    )
    return tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize(
    "completion",
    [
        "3 * 7 = 21 ; 21 + 5 = 26",
        "7 * 3 = 21 ; 5 + 21 = 26",
        "  3 *  7 = 21 ;\n21 + 5 = 26 ",
    ],
)
def test_correct_solutions(completion):
    assert grade(completion, [3, 5, 7], 26)


@pytest.mark.parametrize(
    ("completion", "numbers", "target"),
    [
        pytest.param("3 * 7 = 22 ; 22 + 4 = 26", [3, 4, 7], 26, id="wrong arithmetic"),
        pytest.param("3 * 7 = 21 ; 21 + 5 = 25", [3, 5, 7], 26, id="wrong last result"),
        pytest.param("3 * 7 = 21 ; 21 - 5 = 16", [3, 5, 7], 26, id="misses the target"),
        pytest.param("3 * 7 = 21 ; 21 + 3 = 24", [3, 5, 7], 24, id="number used twice"),
        pytest.param("3 * 7 = 21", [3, 5, 7], 21, id="number missing"),
        pytest.param("3 * 7 = 21 ; 21 + 5 = 26 ; 26 + 0 = 26", [3, 5, 7], 26, id="extra step"),
        pytest.param("3 * 7 = 21 ; 21 + 21 = 42", [3, 5, 7], 42, id="intermediate reused"),
        pytest.param("3 + 5 = 8 ; 7 * 5 = 35", [3, 5, 7], 35, id="intermediate ignored"),
        pytest.param("7 / 3 = 2 ; 2 + 5 = 7", [3, 5, 7], 7, id="inexact division"),
        pytest.param("5 - 5 = 0 ; 7 / 0 = 0", [5, 5, 7], 0, id="division by zero"),
        pytest.param("3 - 5 = -2 ; -2 + 7 = 5", [3, 5, 7], 5, id="negative"),
        pytest.param("3 - 5 = 0 ; 0 + 7 = 7", [3, 5, 7], 7, id="difference cut at zero"),
        pytest.param("", [3, 5, 7], 26, id="empty"),
        pytest.param("garbage", [3, 5, 7], 26, id="garbage"),
        pytest.param("26", [3, 5, 7], 26, id="bare target"),
        pytest.param("3 * 7 = 21 ; 21 + 5 = 26 ;", [3, 5, 7], 26, id="trailing separator"),
        pytest.param("3 * 7 = 21 ; 21 + 5 = 26 26", [3, 5, 7], 26, id="trailing word"),
        pytest.param("x 3 * 7 = 21 ; 21 + 5 = 26", [3, 5, 7], 26, id="leading word"),
        pytest.param("3*7=21 ; 21+5=26", [3, 5, 7], 26, id="tokens not alone"),
        pytest.param("3 ** 7 = 2187", [3, 7], 2187, id="unknown operator"),
        pytest.param("__import__('os') ; 21 + 5 = 26", [3, 5, 7], 26, id="injected code"),
        pytest.param("numbers 26 target 26 : 26 + 0 = 26", [3, 5, 7], 26, id="injected prompt"),
        pytest.param("3 * 7 = 21 ; 21 + 05 = 26", [3, 5, 7], 26, id="leading zero"),
        pytest.param("٣ + 5 = 8 ; 8 + 7 = 15", [3, 5, 7], 15, id="digits of another script"),
        pytest.param(f"{'9' * 10**6} * 7 = 21 ; 21 + 5 = 26", [3, 5, 7], 26, id="huge integer"),
    ],
)
def test_wrong_solutions(completion, numbers, target):
    assert not grade(completion, numbers, target)


def test_a_number_given_twice_may_be_used_twice():
    assert grade("5 * 5 = 25 ; 25 / 5 = 5", [5, 5, 5], 5)
    assert not grade("5 * 5 = 25 ; 25 / 5 = 5", [5, 5, 7], 5)


def test_well_formed_ignores_the_target_only():
    assert well_formed("7 - 3 = 4 ; 5 - 4 = 1", [3, 5, 7])
    assert not well_formed("7 - 3 = 5 ; 5 - 4 = 1", [3, 5, 7])


def test_reward_of_texts_and_conversations():
    right, wrong = "3 * 7 = 21 ; 21 + 5 = 26", "3 + 7 = 10 ; 10 + 5 = 15"
    chat = [{"role": "assistant", "content": right}]
    columns = {"numbers": [[3, 5, 7]] * 3, "target": [26] * 3, "prompts": ["p"] * 3}
    assert reward([right, wrong, chat], **columns) == [1.0, 0.0, 1.0]


def test_chains_over_two_numbers_by_hand():
    texts = {write_chain(c) for c in chains((2, 6), 10)}
    assert texts == {"6 + 2 = 8", "6 - 2 = 4", "6 / 2 = 3"}  # 6 * 2 is above the limit
    assert chance((2, 6), 3, 10) == pytest.approx(1 / 3)
    assert difficulty(Puzzle((6, 2), 3), 10) == 3


def test_solutions_of_one_puzzle_by_hand():
    found = {write_chain(c) for c in solutions(Puzzle((1, 2, 3), 6), 100)}
    assert found == {
        "2 + 1 = 3 ; 3 + 3 = 6",
        "3 + 1 = 4 ; 4 + 2 = 6",
        "3 + 2 = 5 ; 5 + 1 = 6",
        "2 * 1 = 2 ; 3 * 2 = 6",
        "3 * 1 = 3 ; 3 * 2 = 6",
        "3 * 2 = 6 ; 6 * 1 = 6",
        "3 * 2 = 6 ; 6 / 1 = 6",
        "2 / 1 = 2 ; 3 * 2 = 6",
        "3 / 1 = 3 ; 3 * 2 = 6",
    }


def test_the_seed_picks_among_several_solutions():
    puzzle = Puzzle((1, 2, 3), 6)
    picks = [demonstration(puzzle, 100, seed) for seed in range(40)]
    assert picks == [demonstration(puzzle, 100, seed) for seed in range(40)]
    assert len(set(picks)) > 4


def test_no_solution_is_an_error():
    with pytest.raises(ValueError, match=r"no chain over \(1, 1, 1\) reaches 50"):
        demonstration(Puzzle((1, 1, 1), 50), 100)


def test_every_demonstration_is_correct():
    rules = Rules(operands=(4,))
    for puzzle in generate("train", 100, 0, rules) + generate("test", 100, 0, rules):
        text = write_chain(demonstration(puzzle, rules.limit))
        assert grade(text, puzzle.numbers, puzzle.target), (puzzle, text)


def test_splits_never_overlap_and_puzzles_are_unique():
    train = [p.key for seed in range(4) for p in generate("train", 800, seed)]
    test = [p.key for seed in range(4) for p in generate("test", 300, seed)]
    assert not set(train) & set(test)
    one = generate("train", 800, 0)
    assert len({p.key for p in one}) == 800
    assert sum(len(p.numbers) == 2 for p in one) == 400


def test_the_split_ignores_the_order_of_the_numbers_and_stays_put():
    assert split_of(Puzzle((3, 5, 7), 26)) == split_of(Puzzle((7, 3, 5), 26))
    # The first bytes of sha256("((3, 5, 7), 26)") and of sha256("((1, 2, 4), 9)"), by sha256sum.
    assert split_of(Puzzle((3, 5, 7), 26)) == "train"  # 0x98 = 152, 152 / 256 > 0.2
    assert split_of(Puzzle((1, 2, 4), 9)) == "test"  # 0x16 = 22, 22 / 256 < 0.2


def test_too_many_puzzles_is_an_error():
    with pytest.raises(ValueError, match="of 200 different train puzzles"):
        generate("train", 200, 0, Rules(operands=(2,), highest=3, limit=9))


def test_the_targets_of_pretraining_tell_nothing():
    """Solved as often as two independent chains over the same numbers end alike."""
    rng = random.Random(0)
    rules = Rules()
    solved = chances = 0.0
    for _ in range(4000):
        prompt, chain = aimless_text(3, rules, rng)
        words = prompt.split()
        numbers, target = tuple(map(int, words[1:4])), int(words[5])
        assert well_formed(chain, numbers)
        solved += grade(chain, numbers, target)
        chances += chance(numbers, target, rules.limit)
    assert solved == pytest.approx(chances, abs=4 * chances**0.5)


def test_tokenizer_covers_the_task_and_comes_back():
    tokenizer = make_tokenizer(100)
    assert tokenizer.padding_side == "left"
    for puzzle in generate("test", 200, 3):
        text = f"{puzzle.prompt} {write_chain(demonstration(puzzle, 100))}"
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        n = len(puzzle.numbers)
        assert len(ids) == len(text.split()) == (n + 4) + (6 * (n - 1) - 1)
        assert tokenizer.decode(ids) == text
    every = " ".join(map(str, range(101)))
    assert tokenizer.decode(tokenizer(every)["input_ids"]) == every
    assert tokenizer("101 x")["input_ids"] == [tokenizer.unk_token_id] * 2


def test_write_is_deterministic_and_complete(tmp_path):
    write(tmp_path / "a", n_train=60, n_test=30, seed=5)
    write(tmp_path / "b", n_train=60, n_test=30, seed=5)
    write(tmp_path / "c", n_train=60, n_test=30, seed=6)
    for name in ("train.jsonl", "test.jsonl"):
        text = (tmp_path / "a" / name).read_text()
        assert text == (tmp_path / "b" / name).read_text()
        assert text != (tmp_path / "c" / name).read_text()
        for row in map(json.loads, text.splitlines()):
            assert set(row) == {"prompt", "demonstration", "numbers", "target", "difficulty"}
            assert grade(row["demonstration"], row["numbers"], row["target"])
            numbers = " ".join(map(str, row["numbers"]))
            assert row["prompt"] == f"numbers {numbers} target {row['target']} :"
    assert (tmp_path / "a" / "recipe.yaml").exists()
    AutoTokenizer.from_pretrained(tmp_path / "a" / "base")
    AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "base")


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_four_numbers_come_with_their_base_and_budget(tmp_path):
    write(tmp_path, n_train=40, n_test=20, seed=5, n_valid=10, operands=[4])
    for name in ("train", "valid", "test"):
        for row in rows_of(tmp_path / f"{name}.jsonl"):
            assert len(row["numbers"]) == 4
            assert grade(row["demonstration"], row["numbers"], row["target"])
    for name in ("recipe", "recipes/grpo", "compare/methods", "compare/ablations"):
        recipe = (tmp_path / f"{name}.yaml").read_text()
        assert "max_completion_length: 18" in recipe, name  # three steps of five, separators, EOS
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    longest = max(
        len(tokenizer(r["demonstration"])["input_ids"]) for r in rows_of(tmp_path / "train.jsonl")
    )
    assert longest + 1 == 18
    four = (tmp_path / "base/model.safetensors").read_bytes()
    assert four == (BASE.parent / "base_four/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="no base has read chains over 5 numbers"):
        write(tmp_path / "five", operands=[3, 5])


def test_validation_rows_are_of_the_training_split_and_not_in_it(tmp_path):
    write(tmp_path, n_train=60, n_test=5, seed=5, n_valid=40)
    keys = {
        name: {
            (tuple(sorted(r["numbers"])), r["target"]) for r in rows_of(tmp_path / f"{name}.jsonl")
        }
        for name in ("train", "valid")
    }
    assert len(keys["valid"]) == 40
    assert not keys["train"] & keys["valid"]
    puzzles = [Puzzle(tuple(r["numbers"]), r["target"]) for r in rows_of(tmp_path / "valid.jsonl")]
    assert {split_of(p) for p in puzzles} == {"train"}
    # More validation rows do not change what is trained on.
    write(tmp_path / "more", n_train=60, n_test=5, seed=5, n_valid=41)
    assert (tmp_path / "more/train.jsonl").read_text() == (tmp_path / "train.jsonl").read_text()


def test_a_worse_solver_is_right_as_often_as_it_says(tmp_path):
    write(tmp_path, n_train=400, n_test=20, seed=5, n_valid=20, solver_accuracy=0.5)
    rows = rows_of(tmp_path / "train.jsonl")
    right = [grade(r["demonstration"], r["numbers"], r["target"]) for r in rows]
    luck = [chance(r["numbers"], r["target"], Rules().limit) for r in rows]
    wanted = sum(0.5 + 0.5 * x for x in luck)
    assert sum(right) == pytest.approx(wanted, abs=4 * (0.25 * 400) ** 0.5)
    assert all(well_formed(r["demonstration"], r["numbers"]) for r in rows)
    # Rows to choose and to evaluate on keep their solver.
    for name in ("valid", "test"):
        for row in rows_of(tmp_path / f"{name}.jsonl"):
            assert grade(row["demonstration"], row["numbers"], row["target"])
    write(tmp_path / "right", n_train=400, n_test=20, seed=5, n_valid=20)
    same = rows_of(tmp_path / "right/train.jsonl")
    assert [r["prompt"] for r in same] == [r["prompt"] for r in rows]


def test_what_is_not_forgotten_is_any_correct_chain():
    numbers = [[3, 5, 7]] * 3
    chains_over = ["3 * 7 = 21 ; 21 + 5 = 26", "3 + 5 = 8 ; 8 + 7 = 15", "3 + 5 = 9 ; 9 + 7 = 16"]
    assert arithmetic(chains_over, numbers) == [1.0, 1.0, 0.0]
    told = [[{"role": "assistant", "content": text}] for text in chains_over]
    assert arithmetic(told, numbers) == [1.0, 1.0, 0.0]


def test_rebuild_is_deterministic(tmp_path):
    rules = Rules(operands=(2,), highest=3, limit=9)
    one, _ = make_base(tmp_path / "one", steps=3, seed=1, rules=rules)
    two, _ = make_base(tmp_path / "two", steps=3, seed=1, rules=rules)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    first, second = (tmp_path / d / "model.safetensors" for d in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_a_short_rebuild_writes_well_formed_chains(tmp_path):
    """The same script on a world of four numbers, in a few seconds."""
    rules = Rules(operands=(2,), highest=2, limit=4)
    model, tokenizer = make_base(tmp_path, steps=100, seed=1, rules=rules)
    puzzles = [Puzzle((a, b), 2) for a in range(1, 5) for b in (1, 2)] * 10

    def share(some_model):
        texts = complete(some_model, tokenizer, puzzles, max_new_tokens=6)
        formed = [well_formed(t, p.numbers) for t, p in zip(texts, puzzles, strict=True)]
        return sum(formed) / len(formed)

    assert share(make_model(tokenizer, seed=1)) == 0
    assert share(model) > 0.7


@pytest.mark.parametrize(
    ("name", "rules", "least"),
    [
        ("base", Rules(), 0.95),
        pytest.param("base_four", Rules((4,)), 0.9, marks=pytest.mark.slow),
    ],
)
def test_shipped_base_is_small_and_starts_low(name, rules, least):
    folder = BASE.parent / name
    most = max(rules.operands)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 343_440
    assert sum(f.stat().st_size for f in folder.iterdir()) < 4e6
    assert tokenizer.get_vocab() == make_tokenizer(Rules().limit).get_vocab()
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id

    puzzles = generate("test", 400, 0, rules) * 2
    texts = complete(model, tokenizer, puzzles, max_new_tokens=6 * most - 6)
    verdicts = [grade(t, p.numbers, p.target) for t, p in zip(texts, puzzles, strict=True)]
    formed = [well_formed(t, p.numbers) for t, p in zip(texts, puzzles, strict=True)]
    luck = [chance(p.numbers, p.target, Rules().limit) for p in puzzles]
    assert sum(verdicts) == pytest.approx(sum(luck), abs=4 * sum(luck) ** 0.5)
    assert sum(formed) / len(formed) > least
