"""Text that nobody can trust, and tokens that add up to it."""

import pytest
from report_runs import HOSTILE, byte_level, rollout, words

from prefix_rft.report.groups import cut_parts, row
from prefix_rft.report.samples import LONGEST, group_of
from prefix_rft.report.text import COST, cost, cut, more, number, signed
from prefix_rft.runs.rollouts import Rollout
from prefix_rft.runs.token_texts import KEPT, PREFIX, SAMPLED, Completion, marked, pieces, split
from prefix_rft.support.untrusted import visible


def test_a_long_text_is_cut_and_says_how_much() -> None:
    shown, left = cut("x" * 1_000_000, 2000)
    assert (shown, more(left)) == ("x" * 2000, "… 998,000 characters more")
    assert cut("abc", 3) == ("abc", 0)
    assert more(0) == ""
    assert more(1) == "… 1 character more"
    assert cut("abc", 2, characters=10) == ("ab", 8)


@pytest.mark.parametrize("character", ["'", "\u202e", "\0", "漢", "\U000e0041"])
def test_a_cut_text_takes_bounded_room(character: str) -> None:
    shown, left = cut(character * 5000, 1000)
    assert cost(shown) <= COST * 1000
    assert len(shown) + left == 5000
    assert len(shown) > 150


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),  # noqa: RUF001
        (float("nan"), "–"),  # noqa: RUF001
        (0.0, "0"),
        (3e-7, "3e−7"),  # noqa: RUF001
        (2.5e12 + 0.5, "2.5e12"),
        (0.12345, "0.123"),
        (-0.5, "−0.5"),  # noqa: RUF001
        (12345, "12,345"),
        (12345.6, "12,346"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_signed() -> None:
    expected = ["+0.88", "−0.12", "0.00", "0.00", "–"]  # noqa: RUF001
    assert [signed(v) for v in (0.875, -0.12, 0.0, -0.001, None)] == expected


def test_pieces_of_words_know_their_spaces() -> None:
    assert pieces(words(), [0, 1, 2], 100) == ["a", " b", " c"]


@pytest.mark.parametrize("text", ["naïve 🙂 漢字", "🙂", "a\n\nb \x1b", "e\u0301"])
def test_pieces_of_bytes_hold_back_half_characters(text: str) -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode(text).ids
    found = pieces(tokenizer, ids, 100)
    assert len(found) == len(ids) == len(text.encode())
    assert "".join(found) == text
    assert "\ufffd" not in "".join(found)


def test_a_character_belongs_to_its_last_byte() -> None:
    tokenizer = byte_level()
    assert pieces(tokenizer, tokenizer.encode("a🙂b").ids, 100) == ["a", "", "", "", "🙂", "b"]


@pytest.mark.parametrize("cut_off", [1, 2, 3])
def test_a_text_that_ends_within_a_character_adds_up(cut_off: int) -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a🙂").ids[:-cut_off]
    text = tokenizer.decode(ids)
    assert "".join(pieces(tokenizer, ids, 100)) == text
    assert split(tokenizer, ids, len(ids), text, 100) is not None


def test_broken_bytes_add_up_or_are_refused() -> None:
    tokenizer = byte_level()
    ids = [tokenizer.token_to_id("Ł")] * 50 + tokenizer.encode("ok").ids
    text = tokenizer.decode(ids)
    found = split(tokenizer, ids, len(ids), text, 1000)
    assert found is None or "".join(found) == text


def test_a_text_that_differs_from_its_tokens_is_not_split() -> None:
    assert split(words(), [0, 1], 2, "a b", 100) == ["a", " b"]
    assert split(words(), [0, 1], 2, "a  b", 100) is None
    assert split(words(), [0, 1], 2, "a b c", 100) is None
    assert split(words(), [0, 99], 2, "a b", 100) is None


def test_only_what_is_shown_is_split() -> None:
    ids = [0, 1] * 1000
    text = words().decode(ids)
    found = split(words(), ids, len(ids), text, 10)
    assert found == ["a", " b", " a", " b", " a", " b"]  # 11 characters
    assert split(words(), ids, len(ids), "z" + text, 10) is None
    # Of a longer text only the start was kept.
    assert split(words(), ids[:3], len(ids), text[:3], 10) == ["a", " b", " a"]


def start(rollout: Rollout) -> Completion:
    """What the report keeps of a completion."""
    return group_of([rollout], 0).samples[0].completion


def test_prefix_and_kept_tokens_are_marked_apart() -> None:
    completion = start(rollout(prefix_length=2, kept=[1]))
    parts = marked(words(), completion, 100)
    assert parts == [(PREFIX, "a"), (KEPT, " b"), (SAMPLED, " c")]
    assert marked(None, completion, 100) is None
    assert cut_parts(parts, 2, 5) == ([(PREFIX, "a"), (KEPT, " ")], 3)
    # A token behind the prefix is never called kept, whatever the file says.
    odd = start(rollout(prefix_length=1, kept=[0, 2]))
    assert marked(words(), odd, 100) == [(KEPT, "a"), (SAMPLED, " b c")]


def test_a_prefix_that_ends_within_a_character_is_marked_at_its_end() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("é!").ids
    made = rollout(completion_ids=ids, prefix_length=1, text="é!")
    assert marked(tokenizer, start(made), 100) == [(PREFIX, ""), (SAMPLED, "é!")]
    assert row(group_of([made], 0).samples[0], tokenizer, 100)["segments"] == [("", "é!")]


def test_the_marks_are_those_of_the_whole_text_as_far_as_its_start_goes() -> None:
    """``prefix-rft show`` has the whole text, the report what stands before a limit."""
    ids = [0, 1] * 3000
    for length in (1, 500, 1500, 5000):
        made = rollout(completion_ids=ids, text=words().decode(ids), prefix_length=length)
        whole, cut_off = marked(words(), Completion.of(made)), marked(words(), start(made), 600)
        assert whole is not None
        assert cut_off is not None
        assert cut_parts(cut_off, 600, 11_999) == cut_parts(whole, 600, 11_999)
        assert sum(len(text) for _, text in cut_off) <= LONGEST


def test_no_prefix_is_marked_in_what_has_none_and_none_is_missed_there() -> None:
    demonstration = rollout(prefix_length=3, demonstration=True, text="other words")
    for made in (demonstration, rollout(text="other words")):
        assert marked(None, start(made), 100) == [(SAMPLED, "other words")]
        assert not row(group_of([made], 0).samples[0], words(), 100)["unmarked"]
    hybrid = rollout(prefix_length=2, text="other words")
    assert row(group_of([hybrid], 0).samples[0], words(), 100)["unmarked"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_utf8_and_bounded(text: str) -> None:
    shown, _ = cut(text, 2000)
    assert len(visible(shown).encode()) <= 3 * 2000
