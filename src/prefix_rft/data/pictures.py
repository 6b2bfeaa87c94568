"""Pictures of rows: where they are, opened when they are needed, and put into the prompt.

A row's pictures stand in its column ``image`` (one, or none) or ``images`` (a list), as TRL has
them: a file's path, what ``datasets`` keeps of one (``{"bytes": ..., "path": ...}``), or a picture
of Pillow's. They stay that until a batch needs them: a dataset holds no pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefix_rft.data.files import PLACE, DataError, Row
from prefix_rft.support.imports import need

IMAGE, IMAGES = "image", "images"
PLACEHOLDER = {"type": "image"}


def cells(row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The pictures of a row, each with its name: ``image``, or ``images[0]``, ``images[1]``.

    Raises:
        DataError: both columns hold some, or ``images`` is no list.
    """
    one, several = row.get(IMAGE), row.get(IMAGES)
    if one is not None and several:
        raise DataError(f"the row has both '{IMAGE}' and '{IMAGES}': use one of them")
    if one is not None:
        return [(IMAGE, one)]
    if several is None:
        return []
    if not isinstance(several, (list, tuple)):
        raise DataError(f"column '{IMAGES}' holds a list of pictures, got {several!r:.60}")
    return [(f"{IMAGES}[{i}]", cell) for i, cell in enumerate(several)]


def names(row: Mapping[str, Any]) -> list[str]:
    """The names of a row's pictures, by which what is on disk refers to them."""
    return [name for name, _ in cells(row)]


def opened(cell: Any, name: str) -> Any:
    """A picture in RGB, its pixels read.

    Args:
        cell: a path, ``{"bytes": ..., "path": ...}``, or a picture of Pillow's.
        name: what to call it in a message.

    Raises:
        DataError: there is no such file, or no picture in it.
        UserError: Pillow is not installed.
    """
    image = need("PIL.Image", "pictures need Pillow: pip install 'prefix-rft[images]'")
    source: Any = cell
    if isinstance(cell, Mapping) and {"bytes", "path"} & set(cell):
        source = cell.get("path") if cell.get("bytes") is None else io.BytesIO(cell["bytes"])
    if isinstance(source, image.Image):
        return source.convert("RGB")
    if not isinstance(source, (str, Path, io.BytesIO)):
        raise DataError(f"'{name}' is no picture, but {cell!r:.60}: give the path of a file")
    words = f"'{name}'" if isinstance(source, io.BytesIO) else f"'{name}', file '{source}',"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image.DecompressionBombWarning)
            with image.open(source) as picture:
                return picture.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{words} does not exist") from None
    except (image.DecompressionBombWarning, image.DecompressionBombError):
        most = f"{image.MAX_IMAGE_PIXELS:,}"
        raise DataError(f"{words} has more than {most} pixels: make it smaller") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{words} cannot be read as a picture: {error}") from error


def asked(row: Mapping[str, Any]) -> Any:
    """A row's prompt, with its pictures opened in it where it has some.

    Raises:
        DataError: a picture cannot be opened, or there are more or fewer than places for them; says
            of which row, if the row says where it stands.
    """
    try:
        found = cells(row)
        if not found:
            return row["prompt"]
        return filled(row["prompt"], [opened(cell, name) for name, cell in found])
    except DataError as error:
        if PLACE not in row:
            raise
        raise DataError(f"{row[PLACE]}: {error}") from error


def in_blocks(messages: Sequence[Mapping[str, Any]], pictures: int = 0) -> list[dict[str, Any]]:
    """A conversation whose contents are lists of blocks, with a place for each picture.

    Where the messages have none, the places stand before the text of the first user message, as
    TRL puts them.

    Args:
        messages: a conversation, with texts or blocks as contents.
        pictures: how many pictures there are.

    Raises:
        DataError: the messages have another number of places.
    """
    blocks = with_places(messages)
    places = sum(_is_place(block) for m in blocks for block in m["content"])
    if places == 0 and pictures:
        first = next((m for m in blocks if m["role"] == "user"), None)
        if first is None:
            raise DataError("the prompt has no user message to put its pictures into")
        first["content"] = [dict(PLACEHOLDER) for _ in range(pictures)] + first["content"]
        places = pictures
    if places != pictures:
        raise DataError(
            f"the prompt has places for {places} pictures ({PLACEHOLDER}), but the row has "
            f"{pictures}"
        )
    return blocks


def with_places(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A conversation whose contents are lists of blocks, with no place that it did not have."""
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]}
        if isinstance(m["content"], str)
        else {**m, "content": [dict(block) for block in m["content"]]}
        for m in messages
    ]


def filled(messages: Any, pictures: Sequence[Any]) -> list[dict[str, Any]]:
    """A conversation with pictures in their places.

    Raises:
        DataError: it is a text, or has another number of places.
    """
    if isinstance(messages, str):
        raise DataError(
            "a prompt with pictures is a conversation, not a text: write it as "
            '[{"role": "user", "content": "..."}]'
        )
    blocks, rest = in_blocks(messages, len(pictures)), iter(pictures)
    return [
        {
            **message,
            "content": [
                {**block, "image": next(rest)} if _is_place(block) else block
                for block in message["content"]
            ],
        }
        for message in blocks
    ]


def _is_place(block: Mapping[str, Any]) -> bool:
    return block.get("type") == "image" and block.get("image") is None


def has_pictures(message: Mapping[str, Any]) -> bool:
    """Whether a message has pictures, or places for some."""
    content = message["content"]
    return not isinstance(content, str) and any(b.get("type") == "image" for b in content)


def texts_of(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The texts in a conversation, whatever its contents are."""
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            yield content
        else:
            yield from (block["text"] for block in content if block.get("text") is not None)


def checked_pictures(row: Row, messages: Any, folder: Path | None) -> dict[str, Any]:
    """The columns of a row's pictures, with whole paths; none where it has no picture.

    Args:
        row: the row.
        messages: its prompt.
        folder: what relative paths are relative to; None leaves them as they are.

    Raises:
        DataError: a file does not exist, or the prompt has places for another number of pictures.
    """
    try:
        found = cells(row.values)
        if not found:
            return {}
        filled(messages, [None] * len(found))
        whole = [_whole(cell, name, folder) for name, cell in found]
    except DataError as error:
        raise row.error(str(error)) from None
    return {IMAGE: whole[0]} if found[0][0] == IMAGE else {IMAGES: whole}


def _whole(cell: Any, name: str, folder: Path | None) -> Any:
    if not isinstance(cell, str):
        return cell
    path = Path(cell) if folder is None else folder.absolute() / cell
    if not path.is_file():
        raise DataError(f"'{name}', file '{path}', does not exist")
    return str(path)
