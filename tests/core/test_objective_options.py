"""The objective under the options of its methods against formulas, with rubbish where nothing may
be read."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import batches
import pytest
import torch
from batches import batch_of
from batches import gradients as grads
from poisoned import leaf, make, make_rows, poisoned

from prefix_rft.core import loss
from prefix_rft.methods import load
from second.objective import FORMULAS, Step
from second.objective.parts import DEMO, PAD, PREFIX, SAMPLED
from tables import each_once, rest_slow

NAN = float("nan")
AGGREGATIONS = ("token_mean", "seq_mean_token_mean", "sum_over_const")


def agree(name: str, options: dict, seed: int, wrong: str = "", **kw: Any) -> bool:
    """Loss and gradients of the package and of the formula, through a model and as leaves."""
    step, batch, theta, *outputs = make(seed, **kw)
    # The same as leaves with rubbish at every position outside the responses.
    leaves = [leaf(poisoned(x.detach(), step.kind, seed + 4 + i)) for i, x in enumerate(outputs)]
    return batches.agree(name, options, batch, tuple(outputs), (theta,), wrong) and batches.agree(
        name, options, batch, tuple(leaves), leaves, wrong
    )


PREFIX_RFT: list[dict] = [
    {},
    {"prefix_loss": "unclipped"},
    {"prefix_loss": "unclipped", "entropy_keep": 1.0},
    {"prefix_loss": "unclipped", "entropy_keep": 1.0, "delta": 1.3},
    {"prefix_loss": "frozen"},
    {"prefix_loss": "all"},
    {"prefix_loss": "static", "static_weight": 0.3},
    {"advantage": "policy_baseline"},
    {"advantage": "prefix_group"},
    {"advantage": "prefix_group", "prefix_loss": "all"},
    {"advantage": "policy_baseline", "prefix_loss": "unclipped"},
    {"entropy_keep": 0.6},
    {"entropy_mode": "low"},
    {"entropy_keep": 0.5, "entropy_mode": "low"},
    {"entropy_scope": "row"},
    {"entropy_scope": "row", "entropy_mode": "low", "entropy_keep": 0.4},
    {"entropy_scope": "step"},
    {"entropy_keep": 0.0},
    {"entropy_keep": 1.0},
    {"truncated": "mask"},
    {"truncated": "mask", "prefix_loss": "static", "static_weight": 0.3},
    {"epsilon": 0.1, "epsilon_high": 0.35},
    {"delta": 1.3},
    {"delta": 1.5, "epsilon_high": 0.28},
    {"beta": 0.4},
    {"entropy_coef": 0.05},
    {"beta": 0.1, "entropy_coef": 0.2, "truncated": "mask", "delta": 1.4},
]


@pytest.mark.parametrize(
    ("options", "aggregation"),
    rest_slow(product(PREFIX_RFT, AGGREGATIONS), each_once(PREFIX_RFT[0], AGGREGATIONS[0])),
    ids=str,
)
def test_prefix_rft(options: dict, aggregation: str) -> None:
    options = {**options, "aggregation": aggregation, "const": 11.0}
    assert agree("prefix_rft", options, 0)
    assert agree("prefix_rft", options, 2)
    assert agree("prefix_rft", options, 1, weight=False, old=False)


POLICY_OPTIONS: list[dict] = [
    {},
    {"epsilon": 0.05, "epsilon_high": 0.28},
    {"delta": 1.25},
    {"beta": 0.04, "entropy_coef": 0.01},
    {"truncated": "mask"},
]


@pytest.mark.parametrize(
    ("options", "aggregation"),
    rest_slow(product(POLICY_OPTIONS, AGGREGATIONS), each_once({}, AGGREGATIONS[0])),
    ids=str,
)
@pytest.mark.parametrize("name", ["dr_grpo", "grpo"])
def test_policy_methods(name: str, options: dict, aggregation: str) -> None:
    options = {**options, "aggregation": aggregation, "const": 3.0}
    for seed in (2, 3):
        assert agree(name, options, seed, hybrid=False)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_sft(aggregation: str) -> None:
    """Whole demonstrations only; the rollouts beside them are neither trained nor counted."""
    for seed in range(4):
        assert any(DEMO in row for row in make_rows(seed)["kind"])
        assert agree("sft", {"aggregation": aggregation, "const": 3.0}, seed)


def test_defaults_of_the_aggregations() -> None:
    """Dr. GRPO and Prefix-RFT sum over a constant of 8192; GRPO means of means; SFT token mean."""
    said = {
        "prefix_rft": {"aggregation": "sum_over_const", "const": 8192.0},
        "dr_grpo": {"aggregation": "sum_over_const", "const": 8192.0},
        "grpo": {"aggregation": "seq_mean_token_mean"},
        "sft": {"aggregation": "token_mean"},
    }
    for name, options in said.items():
        hybrid = name in ("prefix_rft", "sft")
        _, batch, _, *outputs = make(0, hybrid=hybrid)
        by_default, as_said = (
            loss(load(name, **o), batch, *outputs).loss.item() for o in ({}, options)
        )
        assert by_default == as_said
        assert agree(name, {}, 0, hybrid=hybrid)


MISTAKES = {
    "hybrid out of the baseline": {},
    "std": {},
    "selection scope swapped": {},
    "no selection": {},
    "floor instead of ceil": {},
    "prefix not clipped": {},
    "denominator 1": {},
    "no dual clip": {},
    "only kept counted": {},
    "masked tokens not counted": {},
    "ungraded rows not counted": {"aggregation": "seq_mean_token_mean"},
    "empty rows not counted": {"aggregation": "sum_over_const"},
    "ungraded is reward -1": {},
    "k1": {},
    "weight on the KL": {},
}


MISTAKEN = {"beta": 0.3, "entropy_keep": 0.5, "delta": 1.3, "truncated": "mask", "const": 11.0}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_formula_disagrees(mistake: str) -> None:
    options = {"aggregation": "token_mean", **MISTAKEN, **MISTAKES[mistake]}
    assert sum(not agree("prefix_rft", options, s, mistake) for s in range(6)) >= 3


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean_token_mean", "sum_over_const"])
def test_the_right_formula_does_not(aggregation: str) -> None:
    options = {"aggregation": aggregation, **MISTAKEN}
    assert all(agree("prefix_rft", options, s) for s in range(6))


@pytest.mark.parametrize("mistake", ["biased std", "a singleton keeps its reward"])
def test_a_wrong_baseline_disagrees(mistake: str) -> None:
    name, options = (
        ("grpo" if mistake == "biased std" else "dr_grpo"),
        {"aggregation": "token_mean"},
    )
    kw = {"hybrid": False, "B": 5}  # small groups: some rows stand alone
    assert all(agree(name, options, s, **kw) for s in range(6))
    assert not all(agree(name, options, s, mistake, **kw) for s in range(6))


def test_a_mean_of_micro_batch_means_disagrees() -> None:
    options = {"aggregation": "token_mean", "prefix_loss": "all"}
    step, batch, _, logp, entropy = make(0)
    whole = loss(load("prefix_rft", **options), batch, logp, entropy).loss.item()
    tokens = [len(step.at(i, PREFIX, SAMPLED)) for i in range(12)]
    # Advantages stay those of the whole groups: only the normaliser is wrong.
    shares = []
    for part in (range(3), range(3, 12)):
        weight = [w if i in part else [0.0] * 9 for i, w in enumerate(step.weight)]
        share = FORMULAS["prefix_rft"](replace(step, o=options, weight=weight))
        shares.append((share.item(), sum(tokens) / sum(tokens[i] for i in part)))
    assert sum(s for s, _ in shares) == pytest.approx(whole, abs=1e-12)
    assert abs(sum(s * f for s, f in shares) / 2 - whole) > 1e-3


def test_two_rows_by_hand() -> None:
    """One group, one hybrid row (reward 1) and one plain row (reward 0): A = +1/2, -1/2.

    All of log pi is log(1/2). Old log-probs give the ratios below.

        hybrid   prefix (entropies .1, .9, .5)  r = 1, 2, 1/2   keep 1/3 of three: the middle one
                 continuation                   r = 1.1
        plain                                   r = 1.1, 2, 1/2

    Clip .2: kept prefix token min(2/2, 1.2/2) = .6, gradient 0; continuation 1.1/2 = .55, gradient
    .55. Plain: -1.1/2 = -.55; min(-2/2, -1.2/2) = -1 (not clipped: it must come down), gradient -1;
    min(-.25, -.4) = -.4, gradient 0 (clipped). Sum = .6 + .55 - .55 - 1 - .4 = -.8.
    Seven tokens: loss = .8 / 7; its gradient is minus those numbers over 7.
    """
    half = math.log(0.5)

    def old(*ratios: float) -> list[float]:
        return [half - math.log(r) for r in ratios]

    logp = torch.full((2, 4), half, dtype=torch.float64, requires_grad=True)
    entropy = torch.tensor([[0.1, 0.9, 0.5, NAN], [NAN] * 4], dtype=torch.float64)
    options = {"aggregation": "token_mean", "entropy_keep": 1 / 3}
    step = Step(
        kind=[[PREFIX] * 3 + [SAMPLED], [SAMPLED] * 3 + [PAD]],
        reward=[1.0, 0.0],
        group=[0, 0],
        logp=logp,
        entropy=entropy,
        old=[old(1, 2, 0.5, 1.1), [*old(1.1, 2, 0.5), NAN]],
        o=options,
    )
    out = loss(load("prefix_rft", **options), batch_of(step), logp, entropy)
    assert out.loss.item() == pytest.approx(0.8 / 7, abs=1e-12)
    expected = torch.tensor([[0, 0, 0, 0.55], [-0.55, -1.0, 0, 0]], dtype=torch.float64) / -7
    assert (grads(out.loss, logp)[0] - expected).abs().max() < 1e-12
    again = FORMULAS["prefix_rft"](step)
    assert again.item() == pytest.approx(0.8 / 7, abs=1e-12)
    assert (grads(again, logp)[0] - expected).abs().max() < 1e-12
