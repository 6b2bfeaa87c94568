"""Sets of problems as command lines and suite files name them."""

from pathlib import Path

import pytest

from prefix_rft.evaluation.sets import EvalSet, distinct, named_set, read_suite
from prefix_rft.support.errors import UserError


def test_names() -> None:
    assert (named_set("a/b test.jsonl", reward="math").name) == "b-test"
    one = named_set("hard=a/b.jsonl", reward="math", limit=3)
    assert (one.name, one.data, one.limit) == ("hard", "a/b.jsonl", 3)
    with pytest.raises(UserError, match="cannot name a set"):
        named_set("../x=a.jsonl", reward="math")
    with pytest.raises(UserError, match="two sets of problems are named 'a'"):
        distinct([named_set("a.jsonl", reward="m"), named_set("b/a.jsonl", reward="m")])


def suite(folder: Path, text: str) -> list[EvalSet]:
    (folder / "suite.yaml").write_text(text)
    return read_suite(str(folder / "suite.yaml"))


def test_suite(tmp_path: Path) -> None:
    [one] = suite(tmp_path, "sets:\n- {name: a, data: x.jsonl, reward: math, limit: 5}\n")
    assert (one.name, one.data, one.limit, one.folder) == ("a", "x.jsonl", 5, tmp_path)
    # Where the suite lies does not decide a number.
    assert "folder" not in one.settings()


BAD = {
    "sets: [": "is not valid YAML",
    "- 1": "needs 'sets'",
    "sets: []": "needs 'sets'",
    "sets: [1]": "set 1 in suite .* must be a mapping",
    "sets:\n- {name: a, data: x.jsonl}": "set 1 in suite .* needs 'reward'",
    "sets:\n- {name: a, data: x.jsonl, rewrad: math}": "did you mean 'reward'",
    "sets:\n- {name: a, data: x.jsonl, reward: math, limit: many}": "limit",
    "set: 1\nsets:\n- {name: a, data: x.jsonl, reward: math}": "key of suite .* 'set'",
    "sets:\n- &s {name: a, data: x.jsonl, reward: math}\n- *s": "two sets .* named 'a'",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_suite(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=BAD[text]):
        suite(tmp_path, text)


def test_no_suite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_suite(str(tmp_path / "none.yaml"))
