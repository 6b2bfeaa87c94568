"""Which planner a method has, what lengthening does to it, and what a method refuses."""

import math
from dataclasses import replace

import pytest
from test_planners import group, lengths_of

from prefix_rft.core.planner import (
    Group,
    Lengthening,
    OnPolicy,
    Planner,
    RandomPrefix,
    Start,
    Starts,
)
from prefix_rft.core.prefix import PrefixSampler
from prefix_rft.core.schedules import constant
from prefix_rft.core.stream import Selection, Stream
from prefix_rft.methods import BUILT_IN, load


def test_rows_of_a_group_stand_in_a_fixed_order() -> None:
    law = RandomPrefix(1, 2, PrefixSampler(constant(0.5), constant(0.5)))
    assert law.starts(group(rows=5))[0] == Start(0, 50, 0.5)
    assert law.starts(group(rows=5))[1:3] == (Start(0, 100, 1.0),) * 2
    assert law.starts(group(rows=5))[3:] == (None, None)


def test_a_prefix_that_failed_covers_half_of_what_was_left() -> None:
    """0.2, then 1 - 0.8/2 = 0.6, then 0.8, of 100 tokens; the last token stays in any case."""
    law = Lengthening(RandomPrefix(1, 0, PrefixSampler(constant(0.2), constant(0.2))))
    starts = [law.starts(group(attempt=k))[0] for k in (0, 1, 2, 12)]
    assert [s.length for s in starts if s] == [20, 60, 80, 99]
    sampler = load("prefix_rft").rows.prefix
    assert sampler is not None
    own = [
        Lengthening(RandomPrefix(2, 0, sampler)).starts(group(attempt=k, step=50)) for k in (0, 1)
    ]
    for row in (0, 1):
        before, after = own[0][row], own[1][row]
        assert before is not None
        assert after is not None
        assert before.ratio is not None
        assert after.ratio == pytest.approx((1 + before.ratio) / 2)


def test_the_law_of_a_method() -> None:
    assert load("grpo").planner == OnPolicy()
    assert load("grpo").planner.starts(group()) == (None,) * 4
    assert load("grpo", all_wrong="lengthen").planner == Lengthening(OnPolicy())
    assert load("bread").planner == Lengthening()
    assert load("prefix_rft", all_wrong="lengthen").planner == Lengthening(
        load("prefix_rft").planner
    )
    assert load("luffy", all_wrong="lengthen").planner == Lengthening(RandomPrefix(0, 1))
    assert lengths_of("luffy", group()) == [100, None, None, None]
    assert lengths_of("luffy", group(), num_demonstrations=2) == [100, 100, None, None]


def test_what_a_method_needs() -> None:
    needs = {n for n in BUILT_IN if load(n).needs_demonstrations}
    alone = {"grpo", "dr_grpo", "dapo", "rloo", "cispo", "gspo", "self_sft", "pass_rate"}
    alone |= {"opd", "rlsd", "gats", "sdar", "sdpo", "gkd", "hdpo"}
    assert needs == set(BUILT_IN) - alone
    reference = {n for n in BUILT_IN if load(n).needs_reference}
    assert reference == {"uft", "r3", "iw_sft", "fdiv_sft", "discriminative", "irft"}
    assert not load("discriminative", averaged=True, negatives="policy").needs_reference
    assert load("grpo", beta=0.1).needs_reference
    assert {n for n in BUILT_IN if not load(n).samples} == {"sft", "dft", "iw_sft", "fdiv_sft"}
    again = {n for n in BUILT_IN if load(n).groups.sampled_again}
    assert again == {"bread", "dapo", "hdpo"}


def test_what_a_method_refuses() -> None:
    for name, options, sentence in [
        ("grpo", {"all_wrong": "drp"}, "did you mean 'drop'"),
        ("grpo", {"attempts": 0}, "at least 1"),
        ("rl_sft", {"all_wrong": "lengthen"}, "cannot lengthen a prefix"),
        ("hpt", {"all_wrong": "drop"}, "trains on groups that fail"),
        ("superrl", {"all_wrong": "resample"}, "trains on groups that fail"),
        ("srft", {"entropy_level": "batch"}, "unknown entropy_level"),
        ("relift", {"sft_prompts": 0}, "at least 1"),
        ("sft", {"all_wrong": "drop"}, "has no effect in method .sft."),
        ("dapo", {"overlong_buffer": 1.5}, "overlong_buffer must be in"),
        ("questa", {"ratios": [0.5, 2.0]}, "ratios must be a list"),
        ("questa", {"ratios": []}, "ratios must be a list"),
        ("rloo", {"ratio": "new"}, "unknown ratio"),
        ("self_sft", {"rollouts": "other"}, "unknown sampler"),
        ("luffy", {"gamma": 0.0}, "gamma must be positive"),
        ("irft", {"beta_contrast": -1.0}, "beta must be positive"),
        ("discriminative", {"gamma": 0.0}, r"gamma in \(0, 1\]"),
        ("mifo", {"entropy_keep": 1.2}, "must be in"),
        ("fdiv_sft", {"divergence": "kl"}, "unknown divergence"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            load(name, **options)
    with pytest.raises(ValueError, match="empty gate"):
        Stream("s", ("policy",), gate=(0.5, 0.5))
    with pytest.raises(ValueError, match="only 'likelihood' reads"):
        Stream("s", ("policy",), "logp", shape=load("luffy").streams[1].shape)
    with pytest.raises(ValueError, match="sequence advantage but no contrast"):
        replace(load("irft"), contrast=None)
    with pytest.raises(ValueError, match="fraction to keep"):
        Selection(1.5)


def test_lengthening_leaves_whole_demonstrations_beside_prefixes() -> None:
    law = Lengthening(RandomPrefix(1, 1, PrefixSampler(constant(0.2), constant(0.2))))
    assert law.starts(group(attempt=1)) == (Start(0, 60, 0.6), Start(0, 100, 1.0), None, None)


def test_the_planner_within_does_not_know_of_attempts() -> None:
    """Else its own idea of a later attempt would be lengthened once more."""

    class Own(Planner):
        def starts(self, group: Group) -> Starts:
            return group.everyone(group.start(0, 0.1 if not group.attempt else 0.9))

    assert Lengthening(Own()).starts(group(attempt=1))[0] == Start(0, 55, 0.55)


@pytest.mark.parametrize("name", ["luffy", "chord"])
def test_lengthening_keeps_the_whole_demonstrations(name: str) -> None:
    for attempt, rest in ((0, None), (1, 25), (2, 50), (3, 75)):
        asked = group(attempt=attempt, attempts=3)
        assert lengths_of(name, asked, all_wrong="lengthen") == [100, rest, rest, rest]


@pytest.mark.parametrize(
    "name", ["uft", "adaback", "pope", "r3", "questa", "control", "adaprefix", "prefixrl"]
)
def test_planners_of_their_own_lengthen_too(name: str) -> None:
    """Sampled again, what is left of the demonstration is halved; plain rows stay plain."""
    law = load(name, all_wrong="lengthen").planner
    for step in range(20):
        before, after = (law.starts(group(attempt=k, step=step, attempts=3)) for k in (0, 1))
        if not any(s and s.length for s in before):
            assert {s.length for s in after if s} == {25}
            continue
        for b, a in zip(before, after, strict=True):
            assert (b is None) == (a is None)
            if b and a:
                assert a.index == b.index
                assert a.length in (99, 100 - math.ceil((100 - b.length) / 2))
    assert law.learn(group(), law.starts(group()), [0.0] * 4) == load(name).planner.learn(
        group(), law.starts(group()), [0.0] * 4
    )
    assert (
        law.remembers
        == load(name).planner.remembers
        == (name in ("adaback", "pope", "control", "adaprefix"))
    )
    assert law.needs_boundaries == ("line" if name == "r3" else "")
