"""The reward ``reasoning_gym``: which part of a completion is its answer, and whose word counts."""

import json

import pytest

from prefix_rft.data.puzzles import Puzzles
from prefix_rft.rewards.completions import grade_texts
from prefix_rft.rewards.graded import Graded
from prefix_rft.rewards.gym import answer_of, reasoning_gym
from prefix_rft.rewards.registry import load_rewards
from prefix_rft.support.errors import UserError
from prefix_rft.support.gym import NAME, written

SEVEN = written("chain_sum", {}, {"question": "3 + 4", "answer": "7", "metadata": {}})

ANSWERS = {
    "tags": ("<answer> 7 </answer> I hope", "7"),
    "the last tags": ("<answer>6</answer> no, <answer>7</answer>", "7"),
    "tags before a box": (r"\boxed{6} <answer>7</answer>", "7"),
    "a box": (r"so \boxed{7} it is", "7"),
    "a line": ("3 + 4 = 7\nAnswer: 7", "7"),
    "the last line": ("Answer: 6\nno.\nAnswer: 7\n", "7"),
    "a line in bold": ("**Answer:** 7", "7"),
    "several lines": ("Final Answer:\n1 2\n3 4\n", "1 2\n3 4"),
    "the whole text": (" 7\n", "7"),
    "behind thinking": ("Answer: 6</think> 7", "7"),
    "no line of its own": ("the Answer: 7", "the Answer: 7"),
}


@pytest.mark.parametrize(("text", "answer"), ANSWERS.values(), ids=ANSWERS.keys())
def test_the_answer_in_a_completion(text: str, answer: str) -> None:
    assert answer_of(text) == answer


def test_an_answer_by_a_regular_expression() -> None:
    assert answer_of("3 + 4 = 7", extract=r"-?\d+") == "7"
    assert answer_of("x: 3; x: 7;", extract=r"x: (\d)") == "7"
    assert answer_of("no number", extract=r"\d") == ""


def test_verdicts() -> None:
    texts = ["Answer: 7", "Answer: 6", "<think> 7", "", "it is 7"]
    verdicts = reasoning_gym(texts, [SEVEN] * 5)
    assert [v.status for v in verdicts] == ["correct", "wrong", "no answer", "no answer", "wrong"]
    # reasoning-gym's own: a gold answer within a longer one counts by its share of the letters.
    assert [v.reward for v in verdicts] == [1.0, 0.0, None, None, 1 / 7]
    strict = reasoning_gym(texts, [SEVEN] * 5, partial_credit=False)
    assert [v.reward for v in strict] == [1.0, 0.0, None, None, 0.0]
    opened = reasoning_gym(["7", "x</think>7"], [SEVEN] * 2, prompts=["<think>"] * 2)
    assert [v.status for v in opened] == ["no answer", "correct"]


def test_in_its_own_process_with_the_tasks_own_judgement() -> None:
    """A puzzle with many right answers, none of them written beside it."""
    (reward,), _ = load_rewards({"name": "reasoning_gym", "timeout": 60})
    assert isinstance(reward, Graded)
    asked = {"min_num_vertices": 3, "max_num_vertices": 3, "edge_probability": 0.999999}
    row = next(Puzzles.of({NAME: "graph_color", "size": 1, "seed": 4, **asked}).rows())
    row["prompt"] = [{"role": "user", "content": row["question"]}]
    different = json.dumps({"0": 1, "1": 2, "2": 3})
    texts = [different, json.dumps({"0": 1, "1": 1, "2": 1}), different]
    rows = [row, row, {**row, "puzzle": "a text"}]
    verdicts = grade_texts(reward, rows, texts)
    reward.close()
    assert [v.status for v in verdicts] == ["correct", "wrong", "error"]
    assert "the column 'puzzle' is what train_data: {reasoning_gym: TASK} writes" in (
        verdicts[2].detail
    )


def test_an_unknown_option() -> None:
    with pytest.raises(UserError, match="did you mean 'partial_credit'"):
        load_rewards({"name": "reasoning_gym", "partial": True})
