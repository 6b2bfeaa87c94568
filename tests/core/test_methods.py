"""Methods are data, found by name or import path, and refused by name."""

import dataclasses

import pytest
import torch

from prefix_rft.core import Batch, Method, Schedule, Selection, Stream, loss
from prefix_rft.core.parts import Clip, Groups, Interleave, Normaliser, Overlong, Reference
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.schedules import constant
from prefix_rft.methods import BUILT_IN, load, options_of

NAN = float("nan")


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
        ("zzz", {}, "known: adaback, adaprefix, bread, chord, cispo, control"),
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


def test_methods_are_checked() -> None:
    stream = Stream("p", ("policy",))
    for kw, sentence in [
        (lambda: Clip(low=-0.1), "epsilon must be in"),
        (lambda: Clip(high=-0.1), "epsilon_high >= 0"),
        (lambda: Clip(high=0.5, delta=1.5), "delta must exceed 1 \\+ epsilon_high = 1.5"),
        (lambda: Normaliser(const=-1.0), "const must be positive, got -1"),
        (lambda: Normaliser("token"), "token_mean"),
        (lambda: RandomPrefix(num_demonstrations=-1), "must be at least 0"),
        (lambda: RandomPrefix(num_hybrid=1), "need a prefix sampler"),
        (lambda: Groups(attempts=0), "attempts must be at least 1, got 0"),
        (lambda: Groups(all_wrong="lenghten"), "did you mean 'lengthen'"),
        (lambda: Groups(truncated="masc"), "did you mean 'mask'"),
        (lambda: Groups(all_wrong="resample", interleave=Interleave()), "cannot be replaced"),
        (lambda: Interleave(1.5), "solve rate must be in \\[0, 1\\], got 1.5"),
        (lambda: Interleave(prompts=0), "sft_prompts must be at least 1"),
        (lambda: Overlong(1.5), "overlong_buffer must be in \\[0, 1\\]"),
        (lambda: Reference("polcy"), "did you mean 'policy'"),
        (lambda: Reference(stages=0), "must be at least 1, got 0"),
        (lambda: Method("m", (stream,), baseline="meen"), "did you mean 'mean'"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            kw()
    for kw, sentence in [
        ({"mode": "hihg"}, "did you mean 'high'"),
        ({"scope": "batch"}, "minibatch"),
        ({"source": "curent"}, "did you mean 'current'"),
        ({"fraction": -0.01}, "must be in \\[0, 1\\]"),
        ({"fraction": NAN}, "must be in \\[0, 1\\]"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            Selection(**kw)
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        Schedule(kind="lineer", end=1.0)


def leave_one_out(*, scale: float = 1.0) -> Method:
    """Plain REINFORCE with the leave-one-out baseline, as an outsider would write it."""
    stream = Stream("pg", ("policy",), "logp", "group", coefficient=constant(scale))
    return Method("leave_one_out", (stream,), baseline="leave_one_out")


def test_an_outsiders_method_trains() -> None:
    """Rewards 1, 0 in one group: leave-one-out +1, -1; three tokens; scale 2.

    L = -2/3 (1 * (-1 - 2) + -1 * (-3)) = -2/3 * 0 = 0; gradient -2/3, -2/3, +2/3.
    """
    method = load(f"{__name__}:leave_one_out", scale=2.0)
    mask = torch.tensor([[True, True], [True, False]])
    none = torch.zeros_like(mask)
    group = torch.zeros(2, dtype=torch.int64)
    batch = Batch(mask.long(), mask, none, none, None, torch.tensor([1.0, 0.0]), group)
    logp = torch.tensor([[-1.0, -2.0], [-3.0, NAN]], requires_grad=True)
    out = loss(method, batch, logp)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(0.0, abs=1e-6)
    want = torch.tensor([[-2 / 3, -2 / 3], [2 / 3, 0.0]])
    assert torch.allclose(logp.grad, want)
    with pytest.raises(ValueError, match=r"unknown option.*'scal'.*'scale'"):
        load(f"{__name__}:leave_one_out", scal=1.0)


@pytest.mark.parametrize(
    "options", [{"epsilon": "0.2"}, {"const": "9"}, {"num_hybrid": 1.5}, {"const": float("nan")}]
)
def test_values_of_a_wrong_type_are_value_errors(options: dict) -> None:
    """load: ValueError for an unknown value; a recipe may well quote a number."""
    name = "prefix_rft" if "num_hybrid" in options else "grpo"
    with pytest.raises(ValueError, match=next(iter(options))):
        load(name, **options)
