"""Every method's loss and gradient against its published formula, and against wrong ones."""

import math
from dataclasses import replace
from typing import Any

import batches
import pytest
import torch
from torch import Tensor

from prefix_rft.core import (
    Batch,
    Method,
    Targets,
    advantages,
    dropped,
    loss,
    prepare,
    with_sequence,
)
from prefix_rft.core.contrast import Sequences
from prefix_rft.core.divergence import divergence
from prefix_rft.methods import BUILT_IN, load, options_of
from second.objective import FORMULAS, LAYOUT, MISTAKES, Step
from second.objective.parts import ALL
from second.objective.random_steps import RandomStep, make
from tables import rest_slow

NAN = float("nan")
CONTRASTS = ("discriminative", "irft")


def batch_of(step: Step, method: Method) -> Batch:
    """The step as the package's batch, with rubbish wherever nothing may be read."""
    batch, response = batches.batch_of(step), batches.mask(step, *ALL)
    assert batch.ref_logp_BT is not None
    assert batch.teacher_logp_MBT is not None
    taught = torch.tensor(step.taught)[:, None]
    old = batch.old_logp_BT
    batch = replace(
        batch,
        old_logp_BT=None if old is None else old.masked_fill(~response, NAN),
        ref_logp_BT=batch.ref_logp_BT.masked_fill(~response, -torch.inf),
        teacher_logp_MBT=batch.teacher_logp_MBT.masked_fill(~(response & taught), NAN),
    )
    out = dropped(method, batch.reward_B, batch.group_B, batch.demo_B, batch.guided_B)
    return replace(
        batch, dropped_B=out, divergence_SBT=divergences(method, step, response & taught)
    )


def divergences(method: Method, step: Step, known_BT: Tensor) -> Tensor | None:
    """What an engine makes of both models' logits; nothing is known elsewhere."""
    if not method.divergences or not isinstance(step, RandomStep):
        return None
    found = torch.full((len(method.streams), *known_BT.shape), NAN, dtype=torch.float64)
    for s in method.divergences:
        spec = method.streams[s].divergence
        assert spec is not None
        both = step.logits[known_BT], step.taught_logits[known_BT]
        found[s] = found[s].masked_scatter(known_BT, divergence(*both, spec))
    return found


def sequences(step: Step, batch: Batch) -> Sequences:
    """What an engine tells a contrast: the group is the example."""
    response, logp = batch.response_mask_BT, step.logp.detach()
    assert batch.ref_logp_BT is not None
    return Sequences(
        logp.where(response, 0.0).sum(1),
        response.sum(1),
        batch.group_B,
        batch.demo_B,
        batch.group_B,
        batch.ref_logp_BT.where(response, 0.0).sum(1),
    )


def targets_of(
    method: Method, step: Step, batch: Batch, entropy: Tensor, memory: dict | None = None
) -> Targets:
    """The targets of a whole step, with the contrast's advantages if the method has one."""
    kinds = batch.hybrid_B, batch.demo_B, batch.guided_B
    given = advantages(method, batch.reward_B, batch.group_B, *kinds)
    if method.contrast is not None:
        memory = {} if memory is None else memory
        value, updates = method.contrast(sequences(step, batch), memory)
        memory.update(updates)
        given = with_sequence(method, given, value)
    return prepare(method, batch, entropy, step.at_step, 400, advantage_SB=given)


def library(name: str, step: RandomStep, memory: dict | None = None) -> tuple[Tensor, Tensor]:
    """The package's loss and its gradient with respect to the logits."""
    method = load(name, **step.o)
    batch = batch_of(step, method)
    outside = ~batch.response_mask_BT
    logp = step.logp.masked_fill(outside, torch.inf)
    entropy = step.entropy.masked_fill(outside, NAN)
    targets = targets_of(method, step, batch, entropy.detach(), memory)
    value = loss(method, batch, logp, entropy, targets=targets).loss
    return value.detach(), batches.gradients(value, step.logits)[0]


def formula(name: str, step: RandomStep) -> tuple[Tensor, Tensor]:
    value = FORMULAS[name](step)
    return value.detach(), batches.gradients(value, step.logits)[0]


def error(name: str, layout: str, seed: int, wrong: str = "", **how: Any) -> float:
    """The largest difference between the two, relative to the size of the gradient."""
    step = make(layout, seed, how.pop("old", True), how.pop("square", False))
    step.at_step, step.o = how.pop("at_step", 0), how
    ours = library(name, replace(step))
    theirs = formula(name, replace(step, wrong=wrong))
    size = ours[1].abs().max().item()
    assert 1e-9 < size < math.inf
    # Row by row, so that a stream with a small coefficient is not lost beside a large one.
    rows = [x.abs().amax((1, 2)) for x in (ours[1] - theirs[1], theirs[1])]
    gradient = (rows[0] / (rows[1] + 1e-6 * size)).max().item()
    value = (ours[0] - theirs[0]).abs().item() / size
    # The surrogate of IRFT has its gradient, not its value.
    return gradient if name == "irft" else max(gradient, value)


def test_every_method_has_a_formula() -> None:
    assert set(FORMULAS) == set(BUILT_IN)
    assert [name for name in BUILT_IN if len(MISTAKES[name]) < 2] == []


@pytest.mark.parametrize("seeds", rest_slow([range(2), range(2, 6)], lambda seeds: 0 in seeds))
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_gradient_is_the_formulas(name: str, seeds: range) -> None:
    for seed in seeds:
        assert error(name, LAYOUT[name], seed) < 1e-10
        assert error(name, LAYOUT[name], 10 + seed, old=False) < 1e-10


@pytest.mark.parametrize("name", BUILT_IN)
def test_as_many_positions_as_rows(name: str) -> None:
    """Where B = T a row's weight that is spread along the wrong side raises no error."""
    assert error(name, LAYOUT[name], 30, square=True) < 1e-10


WITH: dict[tuple[str, str], dict] = {
    # Options (and old policies) under which the mistake can show at all.
    ("iw_sft", "no cap"): {"cap": 1.05},
    ("fdiv_sft", "no beta in x"): {"beta": 0.5},
    ("fdiv_sft", "no floor"): {"beta": 4.0},
    ("hpt", "at the gate"): {"gate": 0.25},
    ("prefix_rft", "only kept counted"): {"aggregation": "token_mean"},
}
WITH |= {(n, "k1"): {"beta": 0.3} for n in BUILT_IN}


@pytest.mark.parametrize(("name", "wrong"), [(n, w) for n in BUILT_IN for w in MISTAKES.get(n, ())])
def test_a_mistake_is_seen(name: str, wrong: str) -> None:
    how = WITH.get((name, wrong), {})
    # A rare one (a ratio between two clips) need not show in every step.
    assert any(error(name, LAYOUT[name], seed, wrong, **how) > 1e-3 for seed in range(4))


AGGREGATIONS = ("token_mean", "seq_mean_token_mean", "sum_over_const", "sum")


@pytest.mark.parametrize("name", [n for n in BUILT_IN if "aggregation" in options_of(n)])
def test_every_normaliser(name: str) -> None:
    for seed, aggregation in enumerate(AGGREGATIONS):
        how = {"aggregation": aggregation, "const": 7.0}
        assert error(name, LAYOUT[name], seed, **how) < 1e-10


@pytest.mark.parametrize("name", [n for n in BUILT_IN if "truncated" in options_of(n)])
def test_every_method_with_its_shared_options(name: str) -> None:
    given = {"truncated": "mask", "entropy_coef": 0.2, "beta": 0.3, "epsilon": 0.1, "delta": 1.45}
    known = options_of(name)
    how = {k: v for k, v in given.items() if k in known}
    assert error(name, LAYOUT[name], 4, **how) < 1e-10
    if "epsilon_high" in known and name not in ("gspo", "cispo"):
        assert error(name, LAYOUT[name], 5, epsilon=0.15, epsilon_high=0.4) < 1e-10


OPTIONS: list[tuple[str, dict]] = [
    ("luffy", {"gamma": None}),
    ("luffy", {"gamma": 0.5, "beta": 0.3}),
    ("srft", {"entropy_level": "token"}),
    ("srft", {"gamma": 0.1, "sft_weight": 0.8, "positive_weight": 0.3}),
    ("hpt", {"gate": 0.25}),
    ("hpt", {"gate": 0.5, "sft_coef": 0.3}),
    ("superrl", {"sft_coef": 0.3}),
    ("rl_sft", {"sft_coef": 0.25}),
    ("trapo", {"at": 0.4}),
    ("trapo", {"at": 1.0, "beta": 0.3}),
    ("chord", {"mu": 0.4}),
    ("chord", {"phi": False}),
    ("chord", {"phi": False, "at_step": 77}),
    ("chord", {"phi": False, "at_step": 300}),
    ("mifo", {"entropy_keep": 0.55}),
    ("rloo", {"ratio": "old"}),
    ("cispo", {"epsilon": 0.1, "epsilon_high": 0.1}),
    ("iw_sft", {"temperature": 2.0}),
    ("iw_sft", {"cap": 1.05}),
    ("fdiv_sft", {"beta": 0.5}),
    ("fdiv_sft", {"beta": 4.0}),
    ("fdiv_sft", {"beta": 4.0, "floor": -3.0, "cap": 5.0}),
    ("fdiv_sft", {"divergence": "squared_hellinger"}),
    ("fdiv_sft", {"divergence": "squared_hellinger", "beta": 3.0}),
    ("fdiv_sft", {"divergence": "total_variation", "beta": 0.3}),
    ("discriminative", {"averaged": True}),
    ("discriminative", {"tau": 0.7, "gamma": 0.4}),
    ("discriminative", {"averaged": True, "tau": 0.7, "gamma": 0.4}),
    ("irft", {"beta_contrast": 1.5}),
    ("opd", {"rewards": True, "coef": 0.3}),
    ("rlsd", {"eps_w": 0.4, "credit": 0.8, "at_step": 20}),
    ("rlsd", {"at_step": 60}),
    ("sdar", {"coef": 0.7, "gate_beta": 1.0}),
    ("sdft", {"skip": 0, "ratio_cap": 1.1, "divergence": {"alpha": 1.0}}),
    ("sdft", {"divergence": {"alpha": 0.5, "support": "teacher", "top": 3, "tail": False}}),
    ("opsd", {"divergence": {"alpha": 0.25, "cap": 0.3}}),
    ("opsd", {"divergence": {"cap": 0.05, "cap_level": "entry"}}),
    ("opsd", {"divergence": {"support": "student", "top": 2}}),
    ("sdpo", {"policy": 0.4, "divergence": {"top": 3}}),
    ("sdpo", {"divergence": {"support": "vocabulary", "alpha": 0.0}}),
    ("gkd", {"num_demonstrations": 1}),
    ("hdpo", {"weight": 0.3, "divergence": {"top": 3}}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=lambda x: str(x))
def test_options_of_single_methods(name: str, options: dict) -> None:
    for seed in (6, 7):
        assert error(name, LAYOUT[name], seed, **options) < 1e-10


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"averaged": True}, "attached"),
        ({"averaged": True}, "u stays"),
        ({"averaged": True}, "sum of negatives"),
        ({"entropy_level": "token"}, "attached"),
        ({"divergence": "squared_hellinger", "floor": 0.0}, "attached"),
        ({"temperature": 2.0}, "attached"),
        ({"gate": 0.25}, "gate swapped"),
        ({"phi": False, "at_step": 77}, "shares swapped"),
        ({"ratio_cap": 2.0, "skip": 1, "divergence": {"support": "student", "top": 2}}, "no tail"),
        ({"skip": 0, "divergence": {"cap": 0.1}}, "cap on the other side"),
        ({"skip": 2, "divergence": {"alpha": 1.0}}, "attached"),
        ({"skip": 0, "divergence": {"alpha": 0.25}}, "direction"),
    ],
    ids=lambda x: str(x),
)
def test_a_mistake_is_seen_under_an_option(options: dict, wrong: str) -> None:
    keys = set(options) - {"at_step"}
    (name,) = (n for n in BUILT_IN if keys <= set(options_of(n)))
    assert error(name, LAYOUT[name], 8, wrong, **options) > 1e-4


FROM_PROMPT = [n for n in BUILT_IN if LAYOUT[n] == "plain" and load(n).trains("continuation")]
FROM_PREFIX = [n for n in BUILT_IN if LAYOUT[n] in ("hint", "half", "one")]


@pytest.mark.parametrize("name", FROM_PROMPT + FROM_PREFIX)
def test_rows_that_the_method_does_not_plan(name: str) -> None:
    """Whole demonstrations beside them change nothing; hybrid rows are rollouts like others."""
    for seed in (20, 21):
        assert error(name, "everything", seed) < 1e-10
        assert error(name, "plain", seed) < 1e-10


@pytest.mark.parametrize("name", ["relift", "mifo", "luffy", "chord", "superrl", "self_sft"])
def test_steps_without_demonstrations(name: str) -> None:
    """Interleaved methods have them between their steps of imitation, the others by bad luck."""
    for seed in (22, 23):
        assert error(name, "plain", seed) < 1e-10


@pytest.mark.parametrize("averaged", [False, True])
def test_the_moving_average_of_the_partition(averaged: bool) -> None:
    """Four visits of the same examples under a policy that moves."""
    memory: dict = {}
    ours_u: dict[int, float] = {}
    for visit in range(4):
        step = make("contrast", visit)
        step.o = {"averaged": averaged}
        ours = library("discriminative", replace(step), memory)
        theirs = formula("discriminative", replace(step, u=ours_u))
        forgetful = formula("discriminative", replace(step, u={}))
        size = theirs[1].abs().max()
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).abs().max() < 1e-10 * size
        assert {k: v["u"] for k, v in memory.items()} == pytest.approx(ours_u, rel=1e-12)
        assert (ours[1] - forgetful[1]).abs().max() > (1e-3 * size if visit else -1)


def test_an_example_that_comes_twice_in_a_step_moves_its_average_twice() -> None:
    """u: 0, then log(1/2 + 1/2 e^s1), then log(1/2 e^u + 1/2 e^s2)."""
    contrast = load("discriminative", gamma=0.5).contrast
    assert contrast is not None
    t = torch.tensor
    rows = Sequences(
        t([-1.0, -2.0, -1.0, -3.0]),
        t([1, 1, 1, 1]),
        t([0, 0, 1, 1]),
        t([True, False, True, False]),
        t([5, 5, 5, 5]),
        t([0.0, -2.5, 0.0, -2.0]),
    )
    value, memory = contrast(rows, {})
    first = math.log(0.5 + 0.5 * math.exp(0.5))
    second = math.log(0.5 * math.exp(first) + 0.5 * math.exp(-1.0))
    assert memory == {5: {"u": pytest.approx(second)}}
    expected = [1.0, -math.exp(0.5 - first), 1.0, -math.exp(-1.0 - second)]
    assert value.tolist() == pytest.approx(expected)


def test_irft_by_hand() -> None:
    """One demonstration, two negatives: margins 2 and 0.5 at beta 0.1, pairs averaged."""
    contrast = load("irft").contrast
    assert contrast is not None
    t = torch.tensor
    rows = Sequences(
        t([-3.0, -4.0, -5.0]),
        t([2, 3, 4]),
        t([0, 0, 0]),
        t([True, False, False]),
        t([0, 0, 0]),
        t([-4.0, -3.0, -5.5]),
    )
    value, memory = contrast(rows, {})
    pull = [0.05 / (1 + math.exp(0.1 * margin)) for margin in (2.0, 0.5)]
    assert value.tolist() == pytest.approx([sum(pull), -pull[0], -pull[1]])
    assert memory == {}
