r"""Which part of a text is its answer: not what stands before ``</think>``, the last box, alone."""

import time

import pytest

from prefix_rft.rewards.marked import last_box, without_markdown
from prefix_rft.rewards.math import math
from prefix_rft.rewards.text import exact

CORRECT, WRONG, NONE = "correct", "wrong", "no answer"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("<think>\\boxed{5}</think>\\boxed{4}", CORRECT),
        ("<think>\\boxed{4}</think>The answer is 5", WRONG),
        ("<think>it is \\boxed{4}. Now che", NONE),
        ("\\boxed{5}. That is wrong; it is \\boxed{4}", CORRECT),
        # Thinking: only what is behind the last end of it.
        ("so \\boxed{5}</think>\\boxed{4}", CORRECT),
        ("<think>a</think>\\boxed{4}</think>\\boxed{5}", WRONG),
        ("<think>\\boxed{4}</think>", NONE),
        ("<think>\\boxed{4}</think> I do not know.", NONE),
        ("<think>a</think>\\boxed{4}<think>b", NONE),
        ("<think>a</think>b<think>c</think>\\boxed{4}", CORRECT),
        ("\\boxed{4}", CORRECT),
        # Boxes: the last, whatever stands between, and all of it.
        ("\\boxed{3}, \\boxed{4}", CORRECT),
        ("\\boxed{4} and \\boxed{3}", WRONG),
        ("\\boxed{4}\\boxed{5}", WRONG),
        ("\\boxed{4} or, with a sign, \\boxed{-4}", WRONG),
        ("$\\boxed{5}$ and $\\boxed{4}$", CORRECT),
        ("\\boxed{4} so the answer is 5", CORRECT),
        ("$$\\boxed{4}$$", CORRECT),
        ("\\[\n\\boxed{ 4 }\n\\]", CORRECT),
        ("\\fbox{4}", CORRECT),
        ("\\boxed{5} \\fbox{4}", CORRECT),
        ("\\boxed {4}", CORRECT),
        ("\\boxed 4", CORRECT),
        ("\\boxed{\\boxed{4}}", CORRECT),
        ("\\boxed{\\frac{8}{\\sqrt{4}}}", CORRECT),
        ("\\boxed{x=4}", CORRECT),
        ("\\boxed{4", NONE),
        ("\\boxed{4} no, \\boxed{5", NONE),
        ("\\boxed{4} no, \\boxed", NONE),
        ("\\boxed{}", NONE),
        ("\\boxed{none of them}", WRONG),
        ("\\boxed{4, 5}", WRONG),
        # Markdown.
        ("The answer is **4**", CORRECT),
        ("The answer is **4**.", CORRECT),
        ("**Final answer: 4**", CORRECT),
        ("**Final answer:** 4", CORRECT),
        ("**Final answer:** `4`", CORRECT),
        ("### Final Answer\n\n**4**", CORRECT),
        ("### Final Answer\n\n__4__\n", CORRECT),
        ("The answer is *4*", CORRECT),
        ("The answer is \\textbf{4}", CORRECT),
        ("The answer is $\\boldsymbol{4}$.", CORRECT),
        ("The answer is \\(\\mathbf{\\frac{8}{2}}\\)", CORRECT),
        ("\\boxed{**4**}", CORRECT),
        ("\\boxed{\\textbf{4}}", CORRECT),
        ("\\boxed{$4$}", CORRECT),
        ("<answer>4</answer>", CORRECT),
        ("**4**", CORRECT),
        ("so it is **4**.", CORRECT),
        ("`4`", CORRECT),
        ("__4__", CORRECT),
        ("\\textbf{4}", CORRECT),
        ("$\\boldsymbol{4}$", CORRECT),
        ("The answer is 2**2", WRONG),  # no emphasis, and no notation of mathematics
        ("**4** is what I began with, but", NONE),
        ("**Step 4**", NONE),
        ("4", NONE),
        ("it ends with 4", NONE),
    ],
)
def test_which_answer_counts(text: str, status: str) -> None:
    assert math([text], ["4"])[0].status == status


@pytest.mark.parametrize(
    ("text", "gold", "status"),
    [
        ("\\boxed{\\{1, 2\\}}", "\\{1,2\\}", CORRECT),
        ("\\boxed{1}, \\boxed{2}", "\\{1,2\\}", WRONG),
        ("\\boxed{(1, 2)}", "(1,2)", CORRECT),
        ("\\boxed{[1, 2)}", "[1,2)", CORRECT),
        ("\\boxed{x = \\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}}",
         "\\begin{pmatrix}1\\\\2\\end{pmatrix}", CORRECT),
        ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}", CORRECT),
        ("\\boxed{4 \\text{ apples}}", "4", CORRECT),
        ("\\boxed{4 apples}", "4", CORRECT),
        # Behind words, the whole expression and not only its first number.
        ("The answer is 3+4i.", "3", WRONG),
        ("The answer is 3 + 4i.", "3+4i", CORRECT),
        ("The answer is 12:30", "12", WRONG),
        ("The answer is 2^3.", "8", CORRECT),
        ("Answer: 1,234", "1234", CORRECT),
        ("Answer: 3,14", "3.14", CORRECT),
        ("Answer: 1,2,3", "1, 2, 3", CORRECT),
        ("Answer: 50%", "50\\%", CORRECT),
        ("Answer: 5 - as said", "5", CORRECT),
        ("The answer is seventy-three (73).", "73", CORRECT),
        ("The answer is $3$ and $5$.", "3, 5", CORRECT),
    ],
)  # fmt: skip
def test_the_whole_answer_counts(text: str, gold: str, status: str) -> None:
    assert math([text], [gold])[0].status == status


@pytest.mark.parametrize("reward", [math, exact])
def test_a_prompt_that_opens_the_thinking(reward: object) -> None:
    """Cut off, such a completion has no tag at all; its prompt says that it is inside."""
    message = [{"role": "user", "content": "2+2?"}]
    prompts = ["q <think>\n", "q <think>", "q", message]
    prompts += [[*message, {"role": "assistant", "content": "<think>\n"}]]
    cut = "\\boxed{4}"
    found = reward([cut] * 5, ["4"] * 5, prompts=prompts)  # type: ignore[operator]
    assert [v.status for v in found] == [NONE, NONE, CORRECT, CORRECT, NONE]
    done = "it is 5</think>\\boxed{4}"
    found = reward([done] * 5, ["4"] * 5, prompts=prompts)  # type: ignore[operator]
    assert [v.status for v in found] == [CORRECT] * 5


@pytest.mark.parametrize(
    ("text", "options", "status"),
    [
        ("<think>#### 4</think>#### 5", {"extract": "#### (.+)"}, WRONG),
        ("<think>#### 4</think>none", {"extract": "#### (.+)"}, NONE),
        ("<think>#### 4", {"extract": "#### (.+)"}, NONE),
        ("<think>4", {}, NONE),
        ("<think>5</think>4", {"extract": "</think>(.+)"}, CORRECT),
        ("4</think>5</think>4", {"extract": "(?s)</think>(.+)"}, CORRECT),
        ("**4**", {}, CORRECT),
        ("`4`", {}, CORRECT),
        ("$4$", {}, CORRECT),
        ("\\textbf{4}", {}, CORRECT),
        ("<answer> 4 </answer>", {}, CORRECT),
        ("**4** or **4**", {}, WRONG),
        ("**5**", {}, WRONG),
    ],
)
def test_exact_counts_the_same(text: str, options: dict[str, str], status: str) -> None:
    assert exact([text], ["4"], **options)[0].status == status  # type: ignore[arg-type]


def test_exact_keeps_markdown_that_the_gold_has() -> None:
    found = exact(["**a**", "a", "`**a**`", "`__init__`"], ["**a**"] * 3 + ["__init__"])
    assert [v.status for v in found] == [CORRECT, WRONG, CORRECT, CORRECT]


@pytest.mark.parametrize(
    "text",
    ["2*3*4", "2**3**4", "a * b * c", "x_1 + y_1", "$a_1$ and $b_1$", "a^*b^*c", "f(x)*(y)*2"],
)
def test_products_powers_and_indices_are_no_emphasis(text: str) -> None:
    assert without_markdown(text) == text


def test_a_bare_box_takes_one_token() -> None:
    assert last_box("\\boxed 73 is it") == "73"
    assert last_box("\\boxed\\pi") == "\\pi"
    assert last_box("\\boxedx{3}") is None
    assert last_box("\\boxed{\\{1\\}}") == "\\{1\\}"


@pytest.mark.parametrize(
    "piece",
    ["**a ", "__a ", "*a ", "`", "<answer>", "\\textbf{", "\\boxed{", "_a ", "<think>", "answer ",
     "$", "{", "**1", "# "],
)  # fmt: skip
def test_a_long_text_takes_no_longer_for_what_it_repeats(piece: str) -> None:
    start = time.process_time()
    math([piece * (20_000 // len(piece))], ["4"])
    assert time.process_time() - start < 2
