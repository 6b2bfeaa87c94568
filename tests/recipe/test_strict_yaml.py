"""YAML means what it looks like: no key twice, no number, date or word in disguise."""

from pathlib import Path
from typing import Any

import pytest

from prefix_rft.compare.command import shared_keys
from prefix_rft.engines.verl.from_recipe import dotted
from prefix_rft.evaluation.sets import read_suite
from prefix_rft.recipe.mapping import read_recipe
from prefix_rft.support.errors import UserError

TWICE = {
    "at the top": ("seed: 1\nmodel: x\nseed: 2\n", 3, "seed", 1),
    "with one value": ("seed: 1\nseed: 1\n", 2, "seed", 1),
    "in quotes and without": ("seed: 1\n'seed': 2\n", 2, "seed", 1),
    "nested": ("method:\n  name: grpo\n  beta: 1\n  beta: 2\n", 4, "beta", 3),
    "in one line": ("reward: {name: math, name: exact}\n", 1, "name", 1),
    "in a stage": ("stages:\n- method: sft\n- seed: 1\n  seed: 2\n", 4, "seed", 3),
    "in an arm": ("compare:\n  arms:\n    a: {seed: 1}\n    b: {}\n    a: {}\n", 5, "a", 3),
    "in a list of rewards": ("reward:\n- name: math\n  weight: 1\n  weight: 2\n", 4, "weight", 3),
    "two merges": ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a\n", 4, "<<", 3),
    "two spellings of a number": ("columns: {1: a, 0x1: b}\n", 1, "0x1", 1),
}


@pytest.mark.parametrize("case", TWICE)
def test_of_two_equal_keys_none_wins(case: str, tmp_path: Path) -> None:
    text, line, key, first = TWICE[case]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    said = f"line {line}: the key '{key}' stands there twice (first in line {first}): leave one"
    with pytest.raises(UserError) as refused:
        read_recipe(path)
    assert str(refused.value) == f"recipe '{path}', {said}"


DISGUISED = {
    "1:30": "YAML reads 1:30 as 90, in sixties: write the number, or",
    "-1:30:00": "as -5400, in sixties",
    "1:30.5": "as 90.5, in sixties",
    "010": "YAML reads 010 as 8, in octal: write it without the leading 0, or",
    "-017": "as -15, in octal",
    "0_7": "as 7, in octal",
    "no": 'YAML reads no as false: write false, or "no" in quotes',
    "off": "as false",
    "Yes": "YAML reads Yes as true",
    "ON": "as true",
    "2026-01-01": 'YAML reads 2026-01-01 as a date: write "2026-01-01" in quotes',
    "2026-13-45": "as a date",
    "2001-12-14 21:59:43": "as a date",
    "12e4567": "too large for a number",
}


@pytest.mark.parametrize("text", DISGUISED)
def test_what_reads_unlike_it_looks_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: x\nname: {text}\n")
    with pytest.raises(UserError, match="line 2: ") as refused:
        read_recipe(path)
    assert DISGUISED[text] in str(refused.value)
    for deep in (f"stages:\n- method: {{a: [{text}]}}", f"{text}: 1", f"a: {{{text}: 1}}"):
        path.write_text(deep)
        with pytest.raises(UserError) as refused:
            read_recipe(path)
        assert DISGUISED[text] in str(refused.value)
    path.write_text("model: x\n")
    with pytest.raises(UserError) as refused:
        read_recipe(path, [f"name={text}"])
    assert DISGUISED[text] in str(refused.value)
    assert f"the value of 'name={text}': " in str(refused.value)
    path.write_text(f"name: '{text}'\n")
    assert read_recipe(path, [f'method.x="{text}"']) == {"name": text, "method": {"x": text}}


PLAIN: dict[str, Any] = {
    "1e-6": 1e-6,
    "-1.5E+3": -1500.0,
    "1_000": 1000,
    "0x1F": 31,
    "0": 0,
    "0.10": 0.1,
    "true": True,
    "False": False,
    "~": None,
    "": None,
    "nobody": "nobody",
    "3e4-test": "3e4-test",
    "1e5b7": "1e5b7",
    "089": "089",
    "v1:30": "v1:30",
    "2026-01": "2026-01",
    "[1, 2]": [1, 2],
}


@pytest.mark.parametrize("text", PLAIN)
def test_what_looks_like_itself_is_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"x: {text}\n")
    assert read_recipe(path, [f"y={text}"]) == {"x": PLAIN[text], "y": PLAIN[text]}


def test_no_is_a_word_where_a_setting_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "save_strategy: no\nstages:\n- report_to: no\n"
        "tripwires: {constant_reward: stop, entropy_collapsed: off}\n"
        "compare: {arms: {a: {tripwires.zero_gradient: off}}}\n"
    )
    more = ["logging_strategy=no", "stages.1.save_strategy=no", "tripwires.all_truncated=off"]
    assert read_recipe(path, more) == {
        "save_strategy": "no",
        "logging_strategy": "no",
        "stages": [{"report_to": "no", "save_strategy": "no"}],
        "tripwires": {
            "constant_reward": "stop",
            "entropy_collapsed": "off",
            "all_truncated": "off",
        },
        "compare": {"arms": {"a": {"tripwires.zero_gradient": "off"}}},
    }


def test_anchors_and_merges_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n")
    read = read_recipe(path)
    assert (read["b"], read["c"]) == ({"x": 1, "y": 3}, {"x": 1, "y": 2})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\n\tb: 2\n", "line 2, is not valid YAML: found character '\\t'"),
        ("name: *.jsonl\n", "line 1, is not valid YAML: "),
        ("a: 1\n---\nb: 2\n", "is not valid YAML: "),
        ("x: 0x_\n", "is not valid YAML: "),
        ("a: &a [*a]\n", "line 1: an alias must not stand inside what it means"),
        ("a: " + "[" * 100 + "]" * 100, "nested deeper than 64"),
        ("a: " + "[" * 1500 + "]" * 1500, "is not valid YAML: "),
        ("? [a]\n: 1\n", "line 1: a key must be a text"),
        ("a: !!python/object:os.system 1\n", "line 1, is not valid YAML: could not determine"),
    ],
)
def test_what_is_no_yaml_is_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        read_recipe(path)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_suite_and_the_overrides_of_a_comparison_are_read_so_too(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("sets:\n- name: a\n  data: x\n  reward: math\n  name: b\n")
    with pytest.raises(UserError, match="line 5: the key 'name' stands there twice"):
        read_suite(str(path))
    path.write_text("sets:\n- {name: a, data: x, reward: math, limit: 010}\n")
    with pytest.raises(UserError, match="line 2: YAML reads 010 as 8"):
        read_suite(str(path))
    assert shared_keys(["save_strategy=no", "a.b=1e-6"]) == {"save_strategy": "no", "a.b": 1e-6}
    with pytest.raises(UserError, match="reads 1:30 as 90"):
        shared_keys(["max_steps=1:30"])


def test_two_spellings_of_one_verl_setting_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'verl' has 'trainer.nnodes' twice"):
        dotted({"trainer": {"nnodes": 1}, "trainer.nnodes": 2})
    with pytest.raises(UserError, match=r"'verl' has 'a.b.c' twice"):
        dotted({"a.b": {"c": 1}, "a": {"b.c": 2}})
    assert dotted({"a": {"b": 1, "c.d": 2}, "a.e": 3}) == {"a.b": 1, "a.c.d": 2, "a.e": 3}
    path = tmp_path / "recipe.yaml"
    path.write_text("verl: {trainer.nnodes: 1}\n")
    assert read_recipe(path, ["verl.trainer.nnodes=2"]) == {"verl": {"trainer.nnodes": 2}}
