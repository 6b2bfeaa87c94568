"""A text taken apart into the tokens that it was made of, with the run's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tokenizers import Tokenizer

from prefix_rft.runs.checkpoints import checkpoints
from prefix_rft.runs.rollouts import HYBRID, Rollout
from prefix_rft.support.errors import UserError

BROKEN = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER = 4  # bytes, and so tokens of a byte-level tokenizer

PREFIX, KEPT, SAMPLED = "prefix", "kept", "sampled"
"""What a part of a completion is: kept are tokens of the prefix that were trained."""

Part = tuple[str, str]
"""What a part of a completion is, and its text."""


@dataclass(frozen=True)
class Completion:
    """A completion's text and its tokens, or the start of both.

    Attributes:
        text: the text as the run has written it, which is what counts; or its start.
        characters: the length of the whole text.
        ids: the tokens, or the first ones.
        tokens: the number of all tokens.
        prefix_length: the number of tokens of the prefix that the rest was sampled behind; 0 for
            an on-policy rollout, and for a whole demonstration.
        kept: the places of the prefix tokens that were trained; None where that is not recorded.
    """

    text: str
    characters: int
    ids: Sequence[int]
    tokens: int
    prefix_length: int
    kept: frozenset[int] | None

    @classmethod
    def of(
        cls, rollout: Rollout, characters: int | None = None, tokens: int | None = None
    ) -> Completion:
        """A rollout's completion, or its start.

        Args:
            rollout: the rollout as it was read.
            characters: the characters to take at most; all by default.
            tokens: the tokens to take at most; all by default.
        """
        return cls(
            text=rollout.text[:characters],
            characters=len(rollout.text),
            ids=rollout.completion_ids[:tokens],
            tokens=len(rollout.completion_ids),
            prefix_length=rollout.prefix_length if rollout.origin == HYBRID else 0,
            kept=rollout.kept,
        )


def marked(
    tokenizer: Tokenizer | None, completion: Completion, enough: int | None = None
) -> list[Part] | None:
    """A completion's text in parts: prefix and kept ones in their order, and what was sampled.

    A character that is spread over tokens belongs to the part of its last one, and a part may be
    empty for that. Where the text or the ids end within the prefix, the parts end there too.

    Args:
        tokenizer: the run's tokenizer; None where it has none yet.
        completion: the text and its tokens.
        enough: the characters that are to be shown, all by default: further ones are not read.

    Returns:
        The parts; None where the tokens of a prefix cannot be told apart.
    """
    text, length = completion.text, completion.prefix_length
    if not length:
        return [(SAMPLED, text)]
    if tokenizer is None:
        return None
    # Behind the prefix only as many as one character may take: the rest is known from the text.
    near = completion.ids[: length + LONGEST_CHARACTER]
    limit = completion.characters + 1 if enough is None else enough
    texts = split(tokenizer, near, completion.tokens, text, limit)
    if texts is None:
        return None
    prefix, kept = texts[:length], completion.kept or ()
    joined = "".join(prefix)
    if len(joined) > completion.characters:
        return None
    parts = [
        (KEPT if trained else PREFIX, "".join(text for _, text in run))
        for trained, run in groupby(enumerate(prefix), key=lambda pair: pair[0] in kept)
    ]
    if len(prefix) < length or completion.tokens == length:
        return parts
    if not text.startswith(joined):
        return parts if joined.startswith(text) else None
    return [*parts, (SAMPLED, text[len(joined) :])]


def run_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of the trained model, else of the newest checkpoint; None if there is none.

    Raises:
        UserError: the file is damaged.
    """
    for place in (folder / "model", *reversed(checkpoints(folder).values())):
        path = place / "tokenizer.json"
        if path.is_file():
            try:
                return Tokenizer.from_file(str(path))
            except Exception as error:  # the library raises no narrower class
                raise UserError(f"'{path}' is damaged: {error}") from error
    return None


def pieces(tokenizer: Tokenizer, ids: Sequence[int], enough: int) -> list[str]:
    """The text of each token such that the joined pieces are the text of all.

    Each token is decoded behind the one before it, since its text may depend on what stands there
    (a leading space). A character that is spread over tokens comes with its last one; the others'
    pieces are empty. Stops behind ``enough`` characters.
    """
    result: list[str] = []
    start, read, length = 0, 0, 0  # ids[start:read] is the context, ids[read:] is being read
    before = ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[start:end]), skip_special_tokens=False)
        incomplete = text.endswith(BROKEN) and end - read < LONGEST_CHARACTER
        if incomplete and end < len(ids):
            result.append("")
            continue
        result.append(text[len(before) :])
        length += len(result[-1])
        if length >= enough:
            break
        start, read = read, end
        before = tokenizer.decode(list(ids[start:read]), skip_special_tokens=False)
    return result


def split(
    tokenizer: Tokenizer, ids: Sequence[int], tokens: int, text: str, enough: int
) -> list[str] | None:
    """Pieces of at least the first ``enough`` characters of ``text``; None where they differ.

    Args:
        tokenizer: the run's tokenizer.
        ids: the text's tokens, or its first ones.
        tokens: the number of the whole text's tokens.
        text: the text as the run has written it, which is what counts; or its start.
        enough: characters that are to be shown.
    """
    texts = pieces(tokenizer, ids, enough)
    joined = "".join(texts)
    if len(texts) == tokens:
        return texts if joined == text else None
    # What was read ends somewhere in the text: perhaps within a character.
    joined = joined.rstrip(BROKEN)
    return texts if text.startswith(joined) or joined.startswith(text) else None
