"""Pictures in rows: found, put into prompts, opened when needed; faults are said of their rows."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow

from prefix_rft.data import DataError, load_rows
from prefix_rft.data.pictures import asked, cells, filled, in_blocks, names, opened
from tiny_vision import picture

ASKS = [{"role": "system", "content": "look"}, {"role": "user", "content": "what?"}]


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    for i in range(3):
        picture(i).save(folder / f"{i}.png")
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pictures_are_named_by_their_columns() -> None:
    assert cells({"prompt": "?"}) == []
    assert cells({"image": None, "images": []}) == []
    assert names({"image": "a.png"}) == ["image"]
    assert names({"images": ["a.png", "b.png"]}) == ["images[0]", "images[1]"]
    with pytest.raises(DataError, match="both 'image' and 'images'"):
        cells({"image": "a.png", "images": ["b.png"]})
    with pytest.raises(DataError, match=r"holds a list of pictures, got 'a\.png'"):
        cells({"images": "a.png"})


def test_places_stand_before_the_first_users_text() -> None:
    found = in_blocks([*ASKS, *ASKS[1:]], 2)
    assert [[b["type"] for b in m["content"]] for m in found] == [
        ["text"],
        ["image", "image", "text"],
        ["text"],
    ]
    assert ASKS[1]["content"] == "what?"


def test_places_that_are_there_are_kept() -> None:
    content = [{"type": "text", "text": "first"}, {"type": "image"}, {"type": "image"}]
    (message,) = filled([{"role": "user", "content": content}], ["a", "b"])
    assert [b.get("image") for b in message["content"]] == [None, "a", "b"]
    with pytest.raises(DataError, match=r"places for 2 pictures.*but the row has 1"):
        filled([{"role": "user", "content": content}], ["a"])
    with pytest.raises(DataError, match="no user message"):
        filled([{"role": "system", "content": "x"}], ["a"])
    with pytest.raises(DataError, match="is a conversation, not a text"):
        filled("what?", ["a"])


def test_a_file_is_read_beside_the_rows(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"prompt": ASKS, "images": ["0.png", "1.png"], "answer": "x"},
        {"prompt": ASKS, "images": [], "answer": "y"},
    )
    rows = load_rows(str(path), folder=Path("/elsewhere"))
    first, second = asked(rows[0]), asked(rows[1])
    blocks = first[1]["content"]
    assert [b["type"] for b in blocks] == ["image", "image", "text"]
    assert blocks[1]["image"].tobytes() == picture(1).tobytes()
    assert second == ASKS


def test_messages_with_places_make_blocks_of_all(tmp_path: Path) -> None:
    content = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    path = written(
        tmp_path,
        {"prompt": [{"role": "user", "content": content}], "image": "2.png"},
        {"prompt": [{"role": "user", "content": "plain"}], "image": None},
    )
    rows = load_rows(str(path))
    (message,) = asked(rows[0])
    assert [b["type"] for b in message["content"]] == ["text", "image", "text"]
    assert asked(rows[1])[0]["content"] == [{"type": "text", "text": "plain"}]


def test_bytes_as_datasets_keeps_them(tmp_path: Path) -> None:
    features = Features({"problem": Value("string"), "image": Image()})
    made = Dataset.from_dict({"problem": ["?"], "image": [picture(4)]}, features=features)
    path = tmp_path / "rows.parquet"
    made.to_parquet(path)
    rows = load_rows(str(path))
    assert isinstance(rows[0]["image"]["bytes"], bytes)
    assert asked(rows[0])[0]["content"][0]["image"].tobytes() == picture(4).tobytes()


def test_all_are_opened_as_three_colours(tmp_path: Path) -> None:
    Pillow.new("L", (4, 4)).save(tmp_path / "grey.png")
    assert opened(str(tmp_path / "grey.png"), "image").mode == "RGB"
    assert opened(picture(0).convert("RGBA"), "image").mode == "RGB"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": "9.png"}, "row 1: 'image', file '.*9.png', does not exist"),
        ({"images": ["0.png", "9.png"]}, r"'images\[1\]', file '.*9.png', does not exist"),
        ({"image": "0.png", "images": ["1.png"]}, "row 1: the row has both"),
        ({"image": "0.png", "prompt": "what?"}, "is a conversation, not a text"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image", "image": "0.png"}]}]},
            'a picture stands in the column "image" or "images"',
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "video"}]}]},
            "a text or the place of a picture, got {'type': 'video'}",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "image": "0.png"},
            "the prompt is missing or empty",
        ),
    ],
)
def test_what_is_wrong_is_said_of_its_row(tmp_path: Path, row: dict, words: str) -> None:
    path = written(tmp_path, {"prompt": ASKS, **row})
    with pytest.raises(DataError, match=words):
        load_rows(str(path))


def test_what_is_no_picture_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match="cannot be read as a picture"):
        opened(str(tmp_path / "text.png"), "image")
    with pytest.raises(DataError, match="is no picture, but 3"):
        opened(3, "image")
    buffer = io.BytesIO()
    picture(0).save(buffer, format="PNG")
    with pytest.raises(DataError, match=r"'images\[0\]' cannot be read"):
        opened({"bytes": buffer.getvalue()[:99], "path": None}, "images[0]")
    for limit in (100, 500):  # Pillow's error, and its warning
        monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=f"has more than {limit} pixels: make it smaller"):
            opened({"bytes": buffer.getvalue(), "path": None}, "image")
