"""A teacher's right answers as demonstrations: which are kept, what it is told, going on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefix_rft.cli import main
from prefix_rft.cli.demonstrate import words
from prefix_rft.core.teacher import ANSWER, DEMONSTRATION, phrases, quotes
from prefix_rft.data import Renderer, load_rows
from prefix_rft.evaluation.demonstrate import Demonstrations, Sieve
from prefix_rft.evaluation.samples import Sample
from prefix_rft.rewards import Verdict
from tiny import CHAT_TEMPLATE, make_chat_tokenizer, make_model, make_rows, make_tokenizer

ROWS, SAMPLES = 10, 6
GRADE = """
from zlib import crc32

def reward(completions, prompts, **kwargs):
    told = ["known to be" in p for p in prompts]  # graders see the rows' own prompts
    assert not any(told)
    return [float(crc32(c.encode()) % 3 == 0) for c in completions]
"""
RIGHT, WRONG = Verdict("correct", 1.0), Verdict("wrong", 0.0)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and a teacher whose tokenizer has other tokens than the policy's."""
    folder = tmp_path_factory.mktemp("task")
    for name, tokenizer, seed in (
        ("policy", make_tokenizer(), 0),
        ("teacher", make_chat_tokenizer(), 1),
    ):
        make_model(tokenizer, seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [dict(row) for row in make_rows(ROWS)]  # pyright: ignore
    rows[2]["answer"] = None
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(lines)
    (folder / "demonstrate_grade.py").write_text(GRADE)
    recipe = {
        "model": "policy",
        "train_data": "train.jsonl",
        "reward": "demonstrate_grade:reward",
        "max_completion_length": 24,
        "temperature": 0.9,
        "num_generations": 4,
        "prompts_per_step": 1,
        "micro_batch_size": 4,
        "max_steps": 1,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def command(task: Path, output: Path, *more: str, teacher: str = "teacher") -> list[str]:
    source = teacher if teacher == "policy" else str(task / teacher)
    arguments = ["--teacher", source, "--output", str(output), "--samples", str(SAMPLES)]
    return ["demonstrate", str(task / "recipe.yaml"), *arguments, "--batch-size", "12", *more]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stored(folder: Path) -> list[list[dict[str, Any]]]:
    return [p["samples"] for p in lines(folder / "samples/model/train-T0.9.jsonl")]


def good(samples: list[dict[str, Any]], keep: int) -> list[str]:
    """The texts that are to be kept of a row's samples, in which no character is unknown."""
    right = [s for s in samples if s["verdict"]["status"] == "correct" and not s["truncated"]]
    return list(dict.fromkeys(s["text"] for s in right if s["text"].strip()))[:keep]


@pytest.fixture(scope="module")
def shown(task: Path) -> Path:
    """What the teacher has shown, two of a row, and the folder of that name beside it."""
    assert main(command(task, task / "shown.jsonl", "--keep", "2")) == 0
    return task / "shown.jsonl"


def test_right_answers_of_another_model(
    task: Path, shown: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shown.with_suffix("")
    samples, given = stored(folder), lines(task / "train.jsonl")
    assert len(samples) == ROWS
    assert {len(s) for s in samples} == {SAMPLES}
    wanted = {i: texts for i, s in enumerate(samples) if (texts := good(s, 2))}
    found = lines(shown)
    assert 0 < len(found) < ROWS
    assert max(len(t) for t in wanted.values()) == 2
    assert [row["prompt"] for row in found] == [given[i]["prompt"] for i in wanted]
    assert [row["demonstration"] for row in found] == list(wanted.values())
    flat = [s for row in samples for s in row]
    record = json.loads((folder / "demonstrations.json").read_text())
    right = sum(s["verdict"]["status"] == "correct" and not s["truncated"] for s in flat)
    cut = sum(s["truncated"] for s in flat)
    # A character of the teacher's is a token of the policy's, and one ends the text.
    texts = [t for kept in wanted.values() for t in kept]
    assert record["found"] == {
        "rows": ROWS,
        "untold": 0,
        "shown": len(wanted),
        "demonstrations": len(texts),
        "length": sum(len(t.replace("<unk>", "?")) + 1 for t in texts) / len(texts),
        "samples": ROWS * SAMPLES,
        "right": right,
        "truncated": cut,
        "sampled": sum(s["tokens"] for s in flat),
        "prefilled": sum(len(row["prompt"]) for row in given),  # two rows in a batch of 12
        "left_out": {"empty": sum(s["text"] == "" for s in flat)},
    }
    assert record["teacher"]["source"] == str(task / "teacher")
    assert record["told"] is None
    assert record["temperature"] == 0.9  # the recipe's
    costs = record["costs"]
    weights = sum(p.numel() for p in make_model(make_chat_tokenizer()).parameters())
    assert costs["collected"] == record["found"]["sampled"]
    assert costs["prefilled"] == record["found"]["prefilled"]
    assert costs["flops"] == 2 * weights * (costs["collected"] + costs["prefilled"])
    # A recipe reads the rows.
    assert load_rows(str(shown))["demonstration"] == [row["demonstration"] for row in found]
    capsys.readouterr()
    main(["check", str(task / "recipe.yaml"), f"train_data={shown}"])
    assert f"{len(texts)} demonstrations in {len(wanted)} rows" in capsys.readouterr().out


def test_the_summary() -> None:
    found = Demonstrations(1200, 3, 900, 1500, 12.34, 9600, 4000, 700, 12345, 678, {"odd": 7})
    assert words(found, 2.345e12) == [
        "1,500 demonstrations of 900 of 1,200 rows, 12.3 tokens long on average",
        "4,000 of 9,600 samples were right; 700 were cut at max_completion_length, of which none "
        "is kept",
        "7 of the right ones left out: odd",
        "3 further rows have nothing to tell the teacher",
        "12,345 tokens were sampled and 678 of prompts read: 2.3e+12 operations",
    ]


def test_the_policy_is_told_the_answer_and_trained_without(task: Path, tmp_path: Path) -> None:
    output = tmp_path / "own.jsonl"
    assert main(command(task, output, "--column", "answer", teacher="policy")) == 0
    given = lines(task / "train.jsonl")
    noted = json.loads((tmp_path / "own/samples/model/train-prompt.json").read_text())
    first = given[0]
    assert noted["first_prompt"] == (
        f"{first['prompt']}\n\nThe answer is known to be: {first['answer']}\n".replace("T", "<unk>")
    )
    samples = stored(tmp_path / "own")
    assert len(samples) == ROWS - 1  # there is nothing to tell of one
    asked = [row for i, row in enumerate(given) if i != 2]
    wanted = [(r, t) for r, s in zip(asked, samples, strict=True) if (t := good(s, 1))]
    assert [(row["prompt"], row["demonstration"]) for row in lines(output)] == [
        (row["prompt"], texts) for row, texts in wanted
    ]
    assert "known to be" not in output.read_text()
    record = json.loads((tmp_path / "own/demonstrations.json").read_text())
    assert record["told"] == {"column": "answer", "template": ANSWER}
    assert (record["found"]["rows"], record["found"]["untold"]) == (ROWS - 1, 1)
    told = sum(len(ANSWER.format(prompt=r["prompt"], context=r["answer"])) for r in asked)
    assert record["costs"]["prefilled"] == told


def test_all_rows_and_another_template(task: Path, tmp_path: Path) -> None:
    output = tmp_path / "own.jsonl"
    more = ("--column", "demonstration", "--template", "look: {context}\n{prompt}", "--all-rows")
    assert main(command(task, output, *more, teacher="policy")) == 0
    given, found = lines(task / "train.jsonl"), lines(output)
    noted = json.loads((tmp_path / "own/samples/model/train-prompt.json").read_text())
    assert noted["first_prompt"] == f"look: {given[0]['demonstration']}\n{given[0]['prompt']}"
    texts = [good(s, 1) for s in stored(tmp_path / "own")]
    assert 0 < sum(map(bool, texts)) < ROWS
    kept = [t or [row["demonstration"]] for t, row in zip(texts, given, strict=True)]
    assert [row["demonstration"] for row in found] == kept
    assert load_rows(str(output))["demonstration"] == kept


# ---- what is kept -------------------------------------------------------------------------------


def sieve(budget: int = 99, said: tuple[str, ...] = ()) -> Sieve:
    return Sieve(Renderer(make_tokenizer()), budget, False, said)


def of(chosen: Sieve, keep: int, *samples: Sample) -> list[str]:
    return chosen.of(samples, keep, Renderer(make_tokenizer()))


def test_wrong_and_cut_answers_are_never_kept() -> None:
    samples = [
        Sample("a", 2, False, WRONG),
        Sample("b", 2, True, RIGHT),
        Sample("c", 2, False, RIGHT),
        Sample("c", 2, False, RIGHT),
        Sample("dd", 3, False, RIGHT),
        Sample("e", 2, False, Verdict("timeout", None)),
        Sample("f", 2, False, RIGHT),
    ]
    for keep, kept in ((1, ["c"]), (2, ["c", "dd"]), (9, ["c", "dd", "f"])):
        chosen = sieve()
        assert of(chosen, keep, *samples) == kept
        assert chosen.lengths == [len(t) + 1 for t in kept]
        assert not chosen.left_out
    assert of(sieve(), 9, *samples[:2]) == []


def test_what_quotes_the_template_is_left_out_and_counted() -> None:
    said = phrases(ANSWER)
    assert said == ("the answer is known to be",)
    chosen = sieve(said=said)
    samples = [
        Sample("the  ANSWER is\nknown to be: 7", 9, False, RIGHT),
        Sample("the answer is to be known", 9, False, RIGHT),
        Sample("it is so as the answer is known to be 7", 9, False, RIGHT),
    ]
    assert of(chosen, 9, *samples) == ["the answer is to be known"]
    assert chosen.left_out == {"with the sentence that told the teacher": 2}


def test_what_training_would_drop_is_left_out_and_counted() -> None:
    chosen = sieve(budget=4)
    samples = [
        Sample("abcd", 2, False, RIGHT),  # four of the policy's tokens, and EOS
        Sample("abc", 2, False, RIGHT),
        Sample(" ", 2, False, RIGHT),
        Sample("a<eos>b", 2, False, RIGHT),
    ]
    assert of(chosen, 9, *samples) == ["abc"]
    assert chosen.left_out == {
        "longer than 4 tokens": 1,
        "empty": 1,
        "with an end-of-sequence token inside": 1,
    }


def test_a_think_tag_that_the_teachers_prompt_opens_is_put_back() -> None:
    opens = CHAT_TEMPLATE.replace("<|assistant|>{% endif", "<|assistant|><think>\n{% endif")
    teacher, plain = (Renderer(make_chat_tokenizer(t)) for t in (opens, CHAT_TEMPLATE))
    sample = Sample("one\n</think>\n2", 9, False, RIGHT)
    for policy in (teacher, plain):
        chosen = Sieve(policy, 99, True, ())
        assert chosen.of([sample], 1, teacher) == ["<think>\none\n</think>\n2"]
        assert chosen.of([sample], 1, plain) == ["one\n</think>\n2"]
    # Where the policy's prompt opens it too, it is not trained twice.
    text = Sieve(teacher, 99, True, ()).of([sample], 1, teacher)
    assert teacher.completions(teacher.demonstrations(text, True)) == ["one\n</think>\n2"]


def test_phrases_of_templates() -> None:
    assert phrases(DEMONSTRATION) == (
        "this is an example for a response to the question",
        "now answer with a response of your own, including the thinking process",
    )
    assert phrases("{prompt}\nA solution: {context}\n") == ()
    assert phrases("One two three? {prompt} Four five {context} six v1.5 is out!") == (
        *("one two three", "six v1.5 is out"),
    )
    assert quotes("so: this is an example for a response to the question", phrases(DEMONSTRATION))
    assert not quotes("this is an example", phrases(DEMONSTRATION))
    assert not quotes("anything", ())


# ---- going on -----------------------------------------------------------------------------------


def test_another_seed_shows_others(task: Path, shown: Path, tmp_path: Path) -> None:
    assert main(command(task, tmp_path / "other.jsonl", "--keep", "2", "--seed", "4")) == 0
    assert (tmp_path / "other.jsonl").read_bytes() != shown.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_it_goes_on_from_any_cut(task: Path, shown: Path, tmp_path: Path, share: float) -> None:
    """With nothing left it is a second run."""
    output = tmp_path / "shown.jsonl"
    at = Path("shown/samples/model/train-T0.9.jsonl")
    whole = (task / at).read_bytes()
    if share:
        shutil.copytree(task / "shown", tmp_path / "shown")
        (tmp_path / at).with_suffix(".done").unlink()
        (tmp_path / at).write_bytes(whole[: int(share * len(whole))])
    assert main(command(task, output, "--keep", "2")) == 0
    assert (tmp_path / at).read_bytes() == whole
    assert output.read_bytes() == shown.read_bytes()


@pytest.mark.slow
def test_killed_and_gone_on_with(task: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "shown.jsonl"
    small = ("--batch-size", "6")
    assert main(command(task, whole, *small)) == 0
    arguments = [sys.executable, "-m", "prefix_rft", *command(task, output, *small)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, env=os.environ)
    samples = tmp_path / "shown/samples/model/train-T0.9.jsonl"
    while not samples.is_file() or not samples.read_bytes():
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not output.exists()
    assert samples.read_bytes().count(b"\n") < ROWS
    assert main(command(task, output, *small)) == 0
    assert output.read_bytes() == whole.read_bytes()


# ---- what is refused ----------------------------------------------------------------------------


def test_refusals(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "own.jsonl"

    def refused(*more: str, teacher: str = "teacher") -> str:
        assert main(command(task, output, *more, teacher=teacher)) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "needs --column, such as answer; for its answers without" in refused(teacher="policy")
    assert "give --column, such as answer" in refused("--template", "{prompt}{context}")
    assert "needs {prompt} and {context} once" in refused(
        *("--column", "answer", "--template", "{context}")
    )
    assert "unknown column to tell 'golds'" in refused("--column", "golds")
    assert "--keep must be at least 1" in refused("--keep", "0")
    assert "--temperature must be above 0" in refused("--temperature", "0")
    imitation = ("method=sft", "~reward", "~num_generations", "~temperature", "micro_batch_size=1")
    assert "no folder" in refused(teacher="teache")
    assert "the recipe has no reward" in refused(*imitation)
    said = refused("max_completion_length=1")
    total = ROWS * SAMPLES  # one of them is empty, and its grader does not mind
    assert f"nothing was shown: 1 of {total} samples of {ROWS} rows were right; 1 left out" in said
    assert not output.exists()


def test_samples_of_who_was_told_something_else_are_refused(
    task: Path, shown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shown.with_suffix(""), tmp_path / "shown")
    assert main(command(task, tmp_path / "shown.jsonl", "--column", "answer")) == 2
    assert "holds an evaluation with another 'sets'" in " ".join(capsys.readouterr().err.split())
