"""The batch contract: every token says where it came from, every row which group it belongs to.

Shape letters: B rows, T tokens, M teachers, S streams. Rows are right-padded; ``logp_BT[b, t]`` is
the log-probability of ``tokens_BT[b, t]`` given everything before it in the row, its prompt too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from prefix_rft.support.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Rollouts and demonstrations of one optimizer step, or some rows of them.

    Attributes:
        tokens_BT: token ids, int64.
        response_mask_BT: bool, every token that may be trained: prefix, continuation, on-policy
            response, whole demonstration; not the prompt, not padding.
        prefix_mask_BT: bool, the demonstration part of hybrid rows; inside the response.
        demo_mask_BT: bool, the tokens of whole-demonstration rows; inside the response.
        old_logp_BT: log-probabilities under the policy that made the rollouts, prefix tokens
            included (the policy's own forward, never 0); None where the policy has not moved since,
            which makes every importance ratio exactly 1.
        reward_B: reward of the whole row, NaN where it could not be graded.
        group_B: int64 group ids.
        ref_logp_BT: log-probabilities under the reference policy, for KL.
        weight_BT: detached factor on terms with an importance ratio: sampler/trainer correction.
        hinted_B: bool, rows whose prompt holds a part of a demonstration; None for none.
        context_B: bool, rows whose prefix is context in any method; None for none.
        guided_B: bool, rows that were sampled from a teacher's prompt; None for none.
        truncated_B: bool, rows that ran into the length limit.
        dropped_B: bool, rows that take no part in the step: no stream acts on them and no
            normaliser counts them.
        teacher_logp_MBT: log-probabilities of the tokens under each teacher of the method, anything
            in rows that it does not teach; None where no teacher is heard in this step.
        taught_MB: bool, the rows that each teacher teaches.
        divergence_SBT: the divergence from its teacher of each stream that has one, in nats and
            **with its gradient**, anything where the stream does not act; None where none has one.

    Raises:
        ValueError: shapes or dtypes disagree, or masks contradict each other.
    """

    tokens_BT: Tensor
    response_mask_BT: Tensor
    prefix_mask_BT: Tensor
    demo_mask_BT: Tensor
    old_logp_BT: Tensor | None
    reward_B: Tensor
    group_B: Tensor
    ref_logp_BT: Tensor | None = None
    weight_BT: Tensor | None = None
    hinted_B: Tensor | None = None
    context_B: Tensor | None = None
    guided_B: Tensor | None = None
    truncated_B: Tensor | None = None
    dropped_B: Tensor | None = None
    teacher_logp_MBT: Tensor | None = None
    taught_MB: Tensor | None = None
    divergence_SBT: Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens_BT.ndim != 2:
            raise UserError(f"tokens_BT must have shape (B, T), got {tuple(self.tokens_BT.shape)}")
        B, T = self.tokens_BT.shape
        for f in fields(self):
            x = getattr(self, f.name)
            letters = f.name.rpartition("_")[2]
            shape = (B, T) if letters.endswith("BT") else (B,)
            if x is not None and letters[0] in "MS":
                shape = (len(x), *shape)
            if x is not None and tuple(x.shape) != shape:
                raise UserError(f"{f.name} must have shape {shape}, got {tuple(x.shape)}")
            if x is not None and "mask" in f.name and x.dtype != torch.bool:
                raise UserError(f"{f.name} must be bool, got {x.dtype}")
        for name in (
            "hinted_B", "context_B", "guided_B", "truncated_B", "dropped_B", "taught_MB"
        ):  # fmt: skip
            x = getattr(self, name)
            if x is not None and x.dtype != torch.bool:
                raise UserError(f"{name} must be bool, got {x.dtype}")
        for name in ("tokens_BT", "group_B"):
            dtype = getattr(self, name).dtype
            if dtype not in (torch.int64, torch.int32):
                raise UserError(f"{name} must be int64, got {dtype}")
        both = self.prefix_mask_BT & self.demo_mask_BT
        outside = (self.prefix_mask_BT | self.demo_mask_BT) & ~self.response_mask_BT
        if bool(both.any()):
            raise UserError("prefix_mask_BT and demo_mask_BT overlap: a token has one origin")
        if bool(outside.any()):
            raise UserError("prefix_mask_BT and demo_mask_BT must lie inside response_mask_BT")
        if bool((self.hybrid_B & self.demo_B).any()):
            raise UserError("a row of demo_mask_BT has a prefix or a hint too: it has one kind")
        if self.guided_B is not None and bool((self.guided_B & ~self._plain_B).any()):
            raise UserError("a row of guided_B has a prefix, a hint or a demonstration too")

    @property
    def hybrid_B(self) -> Tensor:
        """Rows that start from a demonstration prefix of at least one token, or have a hint."""
        prefixed_B = self.prefix_mask_BT.any(1)
        return prefixed_B if self.hinted_B is None else prefixed_B | self.hinted_B

    @property
    def demo_B(self) -> Tensor:
        """Rows that are a whole demonstration."""
        return self.demo_mask_BT.any(1)

    @property
    def _plain_B(self) -> Tensor:
        return ~self.hybrid_B & ~self.demo_B

    @property
    def policy_B(self) -> Tensor:
        """On-policy rows."""
        return self._plain_B if self.guided_B is None else self._plain_B & ~self.guided_B

    def origin(self, origins: tuple[str, ...]) -> Tensor:
        """Mask (B, T) of the response tokens with one of these origins, dropped rows left out."""
        sampled = self.response_mask_BT & ~self.prefix_mask_BT & ~self.demo_mask_BT
        masks = {
            "policy": sampled & self.policy_B[:, None],
            "continuation": sampled & self.hybrid_B[:, None],
            "prefix": self.prefix_mask_BT,
            "demonstration": self.demo_mask_BT,
            "guided": sampled & (self._plain_B & ~self.policy_B)[:, None],
        }
        mask_BT = torch.stack([masks[o] for o in origins]).any(0)
        return mask_BT if self.dropped_B is None else mask_BT & ~self.dropped_B[:, None]

    @property
    def open_prefix_BT(self) -> Tensor:
        """Mask (B, T) of the prefix tokens that a stream may train."""
        prefix_BT = self.origin(("prefix",))
        return prefix_BT if self.context_B is None else prefix_BT & ~self.context_B[:, None]

    def rows_with(self, origins: tuple[str, ...]) -> Tensor:
        """Mask (B,) of the rows that belong to one of these origins, truncated rows included and
        dropped ones left out."""
        kinds = {
            "policy": self.policy_B,
            "continuation": self.hybrid_B,
            "prefix": self.hybrid_B,
            "demonstration": self.demo_B,
            "guided": self._plain_B & ~self.policy_B,
        }
        mask_B = torch.stack([kinds[o] for o in origins]).any(0)
        return mask_B if self.dropped_B is None else mask_B & ~self.dropped_B

    def part(self, rows: Tensor | slice, width: int | None = None) -> Batch:
        """The batch restricted to some rows and to its first ``width`` positions."""
        parts = {}
        for f in fields(self):
            x = getattr(self, f.name)
            if x is None:
                continue
            of = (slice(None), rows) if f.name.endswith(("_MB", "_MBT", "_SBT")) else (rows,)
            wide = f.name.endswith("BT")
            parts[f.name] = x[(*of, slice(width))] if wide else x[of]
        return replace(self, **parts)
