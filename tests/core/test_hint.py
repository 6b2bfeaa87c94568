"""Hints: what is masked, and how they are written, by hand."""

import pytest

from prefix_rft.core.control import Control
from prefix_rft.core.fixed import Fixed
from prefix_rft.core.hint import Hint, mask_code, mask_numbers, with_hint
from prefix_rft.core.method import Method
from prefix_rft.core.planner import Group, Lengthening, Start
from prefix_rft.core.stream import Stream
from prefix_rft.methods import load
from prefix_rft.support.errors import UserError


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("3 + 4 = 7", "[NUMBER] + [NUMBER] = [NUMBER]"),
        ("-2.5 and 1,000", "-[NUMBER] and [NUMBER]"),
        ("3/4 of 12.5 % is 9.375%", "[NUMBER] of [NUMBER] is [NUMBER]"),
        (r"50\% of x", "[NUMBER] of x"),
        (r"\frac{1}{2} + \dfrac{a}{b}", "[NUMBER] + [NUMBER]"),
        (r"\sqrt{2}, \sqrt[3]{x}", "[NUMBER], [NUMBER]"),
        (r"\frac{\sqrt{2}}{3} \sqrt{\frac{1}{x}}", "[NUMBER] [NUMBER]"),
        ("Step 1: 2. Case (3): 4", "Step 1: [NUMBER]. Case (3): [NUMBER]"),
        ("lemma 2, part 3 and stepped 4", "lemma 2, part 3 and stepped [NUMBER]"),
        ("footstep 5", "footstep [NUMBER]"),
        ("no number", "no number"),
        (r"\frac{1", r"\frac{[NUMBER]"),  # a hint may end anywhere
    ],
)
def test_numbers(text: str, masked: str) -> None:
    assert mask_numbers(text) == masked


def test_code() -> None:
    assert mask_code("so:\n```python\nx = 1\n```\nand ```y```.") == "so:\n[CODE]\nand [CODE]."
    assert mask_code("so:\n```python\nx = 1\n") == "so:\n[CODE]"  # cut inside a block


def test_what_it_writes() -> None:
    hint = Hint("{hint} | {prompt}", mask_numbers)
    # What stands in the prompt or in the hint is no field.
    assert hint.write("{hint} 1", "{prompt} 2") == "{prompt} [NUMBER] | {hint} 1"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    written = with_hint(messages, "h", Hint("{prompt}/{hint}"))
    assert written == [messages[0], {"role": "user", "content": "u/h"}]
    assert messages[1]["content"] == "u"
    with pytest.raises(UserError, match="the prompt's last message has none"):
        with_hint([{"role": "user", "content": [{"type": "image"}]}], "h", Hint())
    blocks = [{"type": "image"}, {"type": "text", "text": "u"}]
    (message,) = with_hint([{"role": "user", "content": blocks}], "h", Hint("{prompt}/{hint}"))
    assert message["content"] == [{"type": "image"}, {"type": "text", "text": "u/h"}]
    assert with_hint("u", "h", Hint()) == (
        "u\n\nHere is an example solution, or its beginning:\nh\n"
    )


@pytest.mark.parametrize("template", ["{prompt}", "{hint}", "", "{prompt}{hint}{hint}"])
def test_templates_need_both(template: str) -> None:
    with pytest.raises(UserError, match="a hint's template needs"):
        Hint(template)


def test_a_mask_gives_text() -> None:
    silly = Hint(mask=lambda text: None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="the mask of a hint gave no text, but NoneType"):
        silly.write("p", "h")


def test_a_hint_may_be_all_of_a_demonstration() -> None:
    group = Group(0, 4, (10,), max_length=6, in_prompt=True)
    assert group.start(0, 1.0) == Start(0, 10, 1.0)
    assert group.start(0, 0.7) == Start(0, 7, 0.7)
    # In the answer one token of the budget is left.
    assert Group(0, 4, (10,), max_length=6).start(0, 1.0) == Start(0, 5, 1.0)
    # A hint that gives the answer away is held as a prefix is.
    limited = Group(0, 4, (10,), in_prompt=True, limits=(6,))
    assert limited.start(0, 1.0) == Start(0, 6, 0.6, guarded=True)
    planner = Control(Fixed(0.7), hint=Hint())
    assert planner.starts(group) == (Start(0, 7, 0.7),) * 4
    assert Lengthening(planner).hint == Hint()


def test_it_does_not_go_with_trained_demonstrations() -> None:
    rows = Control(Fixed(0.5), hint=Hint())
    everything = Stream("policy", ("policy", "continuation", "prefix"), "clip", "group")
    with pytest.raises(UserError, match="method 'x' trains tokens of demonstrations"):
        Method("x", (everything,), rows)


def test_options() -> None:
    shown = load("control", where="prompt", mask="numbers", law="fixed", first=1.0)
    assert shown.planner.hint == Hint(mask=mask_numbers)
    assert load("control", where="prompt", mask="string:capwords").planner.hint is not None
    assert load("control").planner.hint is None
    for options in ({"mask": "numbers"}, {"template": "{hint}{prompt}"}):
        with pytest.raises(UserError, match="have no effect with where 'answer'"):
            load("control", **options)
    with pytest.raises(UserError, match="unknown where 'system'"):
        load("control", where="system")
    with pytest.raises(UserError, match="mask 'words' must be of the form"):
        load("control", where="prompt", mask="words")
