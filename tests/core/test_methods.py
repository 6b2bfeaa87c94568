"""Methods are data, found by name or import path, and refused by name."""

import dataclasses

import pytest

from prefix_rft.core import Method, Stream
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.methods import BUILT_IN, load, options_of


def reinforce(*, scale: float = 1.0) -> Method:
    """A method of someone else's: REINFORCE with the group's mean."""
    return Method(name="reinforce", streams=(Stream("policy", ("policy",), "logp", "group"),))


def not_a_method() -> int:
    return 3


def test_the_papers_defaults() -> None:
    method = load("prefix_rft")
    assert method.rows.num_hybrid == 1
    assert method.baseline == "mean"
    assert (method.clip.low, method.clip.high, method.clip.delta) == (0.2, None, None)
    assert method.rows.prefix is not None
    assert method.selection is not None
    assert method.rows.prefix.interval(0, 500) == pytest.approx((0.95, 0.95))
    assert method.rows.prefix.interval(500, 500) == pytest.approx((0.05, 0.95))
    assert (method.rows.prefix.alpha, method.rows.prefix.beta, method.rows.prefix.min_length) == (
        1.0,
        1.0,
        0,
    )
    chosen = method.selection
    assert (chosen.fraction, chosen.mode) == (0.2, "high")
    assert (chosen.scope, chosen.source) == ("minibatch", "current")
    assert {s.surrogate for s in method.streams} == {"clip"}
    assert {s.advantage for s in method.streams} == {"group"}
    assert method.groups.truncated == "keep"


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_method_says_what_and_whence(name: str) -> None:
    method = load(name)
    assert method.name == name
    assert method.about.summary
    assert method.about.source
    assert dict(method.about.options) == options_of(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.name = "other"  # type: ignore[misc]


def test_someone_elses_method() -> None:
    assert load("test_methods:reinforce", scale=2.0).about.options["scale"] == 2.0
    # What every method has, it has too; what would have no effect in it, it has not.
    assert load("test_methods:reinforce", all_wrong="drop").groups.all_wrong == "drop"
    assert load("test_methods:reinforce", aggregation="sum", const=2.0).normaliser.const == 2.0
    with pytest.raises(ValueError, match="'epsilon' has no effect in method 'test_methods:"):
        load("test_methods:reinforce", epsilon=0.1)
    assert load("test_methods.reinforce").name == "reinforce"


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("prefixrft", {}, "unknown method 'prefixrft': did you mean 'prefix_rft'"),
        ("zzz", {}, "known: adaback, bread, chord, cispo, dapo, dft"),
        ("nowhere.method", {}, "cannot be imported"),
        ("test_methods:nothing", {}, "cannot be imported"),
        ("test_methods:BUILT_IN", {}, "is not a function"),
        ("test_methods:not_a_method", {}, "returned int, not a Method"),
        ("grpo", {"epsilonn": 1}, "unknown option of method grpo 'epsilonn': did you mean"),
        ("grpo", {"entropy_keep": 1}, "unknown option"),
        ("grpo", {"aggregation": "token-mean"}, "did you mean 'token_mean'"),
        ("grpo", {"epsilon": 1.5}, "epsilon must be in"),
        ("grpo", {"delta": 1.0}, "delta must exceed"),
        ("grpo", {"const": 0}, "const must be positive"),
        ("prefix_rft", {"advantage": "one-group"}, "did you mean 'one_group'"),
        ("prefix_rft", {"prefix_loss": "freeze"}, "did you mean 'frozen'"),
        ("prefix_rft", {"entropy_scope": "micro"}, "unknown entropy scope"),
        ("prefix_rft", {"entropy_keep": 20}, "must be in"),
        ("prefix_rft", {"num_hybrid": -1}, "at least 0"),
        ("prefix_rft", {"truncated": "drop"}, "unknown treatment of truncated rows"),
    ],
)
def test_refusals(name: str, options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load(name, **options)


def test_streams_are_checked() -> None:
    with pytest.raises(ValueError, match="trains no token"):
        Stream("empty", ())
    with pytest.raises(ValueError, match="unknown token origin 'polic'"):
        Stream("typo", ("polic",))
    with pytest.raises(ValueError, match="unknown surrogate"):
        Stream("typo", ("policy",), "clipp")
    with pytest.raises(ValueError, match="unknown advantage"):
        Stream("typo", ("policy",), advantage="groups")
    with pytest.raises(ValueError, match="has no stream"):
        Method("nothing", ())
    with pytest.raises(ValueError, match="need a prefix sampler"):
        RandomPrefix(num_hybrid=1)
