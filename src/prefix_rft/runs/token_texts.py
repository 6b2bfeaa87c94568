"""A text taken apart into the tokens that it was made of, with the run's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from prefix_rft.runs.checkpoints import checkpoints
from prefix_rft.support.errors import UserError

BROKEN = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER = 4  # bytes, and so tokens of a byte-level tokenizer


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
    known, read, length = 0, 0, 0  # ids[known:read] is the context, ids[read:] is being read
    before = ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[known:end]), skip_special_tokens=False)
        incomplete = text.endswith(BROKEN) and end - read < LONGEST_CHARACTER
        if incomplete and end < len(ids):
            result.append("")
            continue
        result.append(text[len(before) :])
        length += len(result[-1])
        if length >= enough:
            break
        known, read = read, end
        before = tokenizer.decode(list(ids[known:read]), skip_special_tokens=False)
    return result


def split(
    tokenizer: Tokenizer, ids: Sequence[int], tokens: int, text: str, enough: int
) -> list[str] | None:
    """Pieces of at least the first ``enough`` characters of ``text``; None where they differ.

    Args:
        tokenizer: of the run.
        ids: of the text, or its first ones.
        tokens: of the whole text.
        text: as the run has written it, which is what counts; or its start.
        enough: characters that are to be shown.
    """
    found = pieces(tokenizer, ids, enough)
    joined = "".join(found)
    if len(found) == tokens:
        return found if joined == text else None
    # What was read ends somewhere in the text: perhaps within a character.
    joined = joined.rstrip(BROKEN)
    return found if text.startswith(joined) or joined.startswith(text) else None
