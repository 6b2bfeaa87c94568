"""Prefix-RFT (arXiv 2507.01679 v3, ICML 2026)."""

from __future__ import annotations

from typing import Any

from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.prefix import PrefixSampler
from prefix_rft.core.schedules import cosine, parse
from prefix_rft.core.stream import ROLLOUT, Selection, Stream, regularisers
from prefix_rft.support.errors import choose

# advantage switch -> (of on-policy tokens, of continuations, of prefixes)
GROUPINGS = {
    "one_group": ("group", "group", "group"),
    "policy_baseline": ("policy_group", "policy_group", "policy_group"),
    "prefix_group": ("policy_group", "reward", "policy_group"),
}
PREFIX_LOSSES = ("clip", "unclipped", "frozen", "all", "static")


def prefix_rft(
    *,
    num_hybrid: int = 1,
    prefix_low: Any = cosine(0.95, 0.05),
    prefix_high: Any = 0.95,
    prefix_alpha: float = 1.0,
    prefix_beta: float = 1.0,
    min_prefix_length: int = 0,
    advantage: str = "one_group",
    prefix_loss: str = "clip",
    static_weight: float = 0.001,
    entropy_keep: float = 0.2,
    entropy_mode: str = "high",
    entropy_scope: str = "minibatch",
    entropy_source: str = "current",
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """One rollout of the group starts from a demonstration prefix; the gradient reaches the prefix.

    Eq. 3: prefix and continuation share PPO's clipped ratio and the advantage of the whole hybrid
    trajectory, Dr. GRPO over all rows of the group. Section 3: of the prefix tokens only the 20 %
    with the highest entropy keep their advantage. A.2: ratio ~ U[low_t, 0.95], low_t cosine
    0.95 -> 0.05 over the run. Without hybrid rows this is ``dr_grpo``, bit for bit.

    Args:
        num_hybrid: rows of each group that start from a demonstration (paper: 1 of 8).
        prefix_low: schedule of the lower bound of the prefix ratio; the bound that decays.
        prefix_high: schedule of the upper bound.
        prefix_alpha: first parameter of the Beta law of the ratio; 1 and 1 are uniform.
        prefix_beta: second parameter.
        min_prefix_length: the shortest prefix in tokens.
        advantage: ``one_group`` (paper: all rows jointly), ``policy_baseline`` (hybrid rows are
            compared with on-policy rows only), ``prefix_group`` (the authors' dr_grpo_prefix:
            prefixes as in policy_baseline, continuations the uncentred reward).
        prefix_loss: the loss on prefix tokens, ``clip`` (Eq. 3), ``unclipped`` ratio, ``frozen``
            (no policy gradient), ``all`` (clip without entropy selection), ``static`` (maximum
            likelihood of the kept tokens with ``static_weight``).
        static_weight: constant advantage of ``static`` (Table 8: 0.001).
        entropy_keep: share of prefix tokens that keep their advantage.
        entropy_mode: which ones: ``high``, ``low`` or ``random``.
        entropy_scope: ranked within the ``step``, the ``minibatch`` (A.2) or each ``row``.
        entropy_source: entropies of the ``current`` policy, or of the one at ``rollout`` time.
        beta: KL coefficient.
        entropy_coef: entropy bonus (the authors' code: 0.001; the paper text: none).
    """
    choose("advantage", advantage, GROUPINGS)
    choose("prefix_loss", prefix_loss, PREFIX_LOSSES)
    on_policy, on_continuation, on_prefix = GROUPINGS[advantage]
    surrogate = {"unclipped": "ratio", "static": "logp"}.get(prefix_loss, "clip")
    prefix_advantage = static_weight if prefix_loss == "static" else on_prefix
    streams = [
        Stream("policy", ("policy",), "clip", on_policy, ROLLOUT),
        Stream("continuation", ("continuation",), "clip", on_continuation, ROLLOUT),
    ]
    if prefix_loss != "frozen":
        streams.append(Stream("prefix", ("prefix",), surrogate, prefix_advantage, ROLLOUT))
    streams.extend(regularisers(beta, entropy_coef, ROLLOUT))
    return Method(
        name="prefix_rft",
        streams=tuple(streams),
        rows=RandomPrefix(
            num_hybrid=num_hybrid,
            prefix=PrefixSampler(
                parse(prefix_low), parse(prefix_high), prefix_alpha, prefix_beta, min_prefix_length
            ),
        ),
        selection=None
        if prefix_loss in ("all", "frozen")
        else Selection(entropy_keep, entropy_mode, entropy_scope, entropy_source),
        normaliser=Normaliser("sum_over_const"),
        about=About(
            summary="GRPO where one rollout continues a demonstration prefix that is trained too",
            source="arXiv 2507.01679 v3, section 3, Eq. 3, A.2",
            unverified="normaliser, clip range and static weight of the published runs",
        ),
    )
