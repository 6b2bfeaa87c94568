"""Log-probs and entropies of rows: packed where the model can, else as TRL does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefix_rft.engines.dropout import drops
from prefix_rft.engines.packed.attention import packed
from prefix_rft.engines.packed.layout import pack
from prefix_rft.engines.packed.model import PackedRows, add_packed_forward
from prefix_rft.engines.pictures import reads_pictures
from prefix_rft.engines.states import Beside
from prefix_rft.engines.trl.pictures import forward_inputs
from prefix_rft.engines.trl.token_counts import TokenCounts
from prefix_rft.engines.trl.window import Rows


def packing(
    args: Any, policy: Any, others: Sequence[Any], unfit: bool, notes: list[str]
) -> str | None:
    """Make a trainer's models score packed rows; why they cannot, in words, where they cannot.

    Args:
        args: the trainer's configuration.
        policy: the policy, neither sharded nor wrapped.
        others: models beside it: a reference, teachers.
        unfit: the policy's weights are spread over processes, or its experts are balanced.
        notes: gets a sentence for the user where rows were to be packed and are not.
    """
    if "packing" not in args.savings:
        return "savings leaves packing out"
    if unfit:
        reason = "weights are sharded, or experts balanced over whole rows"
    elif args.torch_compile or getattr(args, "cast_lm_head_to_fp32", False):
        reason = "torch_compile and cast_lm_head_to_fp32 belong to whole rows"
    elif drops(policy):
        reason = "the model drops at random"
    elif reads_pictures(policy.config):
        reason = "the model reads pictures, whose tokens are not packed"
    else:
        reasons = (add_packed_forward(model) for model in (policy, *others))
        reason = next((r for r in reasons if r is not None), None)
    if reason is not None:
        notes.append(f"rows are not packed, so an update takes longer: {reason}")
    return reason


class PacksRows:
    """Mixin for trainers: a model stays ready for packed rows until its backward is over."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's. What the loss enters in ``self.ready`` is left behind the backward."""
        with ExitStack() as self.ready:
            return super().training_step(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


class TokenScores(NamedTuple):
    """What a model says of the tokens of some rows.

    Attributes:
        logp_BT: log-probs of the wanted tokens; elsewhere 0, or whatever the model says there.
        entropy_BT: entropies in nats at the same places; None if they were not asked for.
        aux: the balancing loss of a mixture of experts; None if it was not asked for.
        beside: what else was asked for.
    """

    logp_BT: Tensor
    entropy_BT: Tensor | None
    aux: Tensor | None = None
    beside: Any = None


class Scorer:
    """How a trainer scores rows.

    Args:
        whole: the same of rows with their padding, from the model, ids, their mask, ``wanted_BT``
            and what else is wanted; it is given pictures by name.
        accelerator: accelerate's, for its autocast.
        temperature: the temperature of the rollouts.
        tokens: counts what goes through a model.
        share: whether rows of one prompt have it once.
        why_whole: why rows are not packed, in words; None where they are.
    """

    def __init__(
        self,
        whole: Callable[..., Any],
        accelerator: Any,
        temperature: float,
        tokens: TokenCounts,
        share: bool,
        why_whole: str | None,
    ) -> None:
        self.whole, self.accelerator, self.temperature = whole, accelerator, temperature
        self.tokens, self.share, self.why_whole = tokens, share, why_whole

    def ready(self, policy: Any) -> AbstractContextManager[None]:
        """Inside this context a model can be scored, and what was scored can go backwards."""
        return nullcontext() if self.why_whole is not None else packed(policy.config)

    def of(
        self,
        model: Any,
        rows: Rows,
        wanted_BT: Tensor,
        entropy: bool,
        aux: bool = False,
        beside: Beside | None = None,
    ) -> TokenScores:
        """Score the wanted tokens of some rows, with gradient where gradients are on.

        Args:
            model: the policy as the trainer calls it, or its reference, inside :meth:`ready`.
            rows: TRL's tensors, taken apart.
            wanted_BT: bool, at least one token of the completions, no wider than they are.
            entropy: whether entropies are wanted.
            aux: whether the balancing loss is wanted, for which rows must be whole.
            beside: what else is to be made of the states of the wanted tokens, see ``add_states``.
        """
        T = wanted_BT.size(1)
        if self.why_whole is not None:
            left = int(rows["prompt_mask"].sum(1).max())
            ids, both = (
                torch.cat([rows[f"prompt_{x}"][:, -left:], rows[f"completion_{x}"][:, :T]], 1)
                for x in ("ids", "mask")
            )
            self.tokens.scored(both.sum())
            if beside is not None:
                return self._whole_beside(model, ids, both, wanted_BT, aux, beside)
            pictures = forward_inputs(rows, left, T)
            return TokenScores(*self.whole(model, ids, both, wanted_BT, entropy, aux, **pictures))
        prompts = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(rows["prompt_ids"], rows["prompt_mask"], strict=True)
        ]
        layout = pack(prompts, rows["completion_ids"][:, :T], wanted_BT, self.share)
        self.tokens.scored(len(layout.ids_N))
        with self.accelerator.autocast():
            asked = PackedRows(layout, self.temperature, entropy, beside)
            logp_M, entropy_M, *made = model(packed=asked)
        # Both stay with the graph where nothing is wanted of it.
        logp_BT, entropy_BT = (
            None if x is None else x.new_zeros(wanted_BT.shape).masked_scatter(wanted_BT, x)
            for x in (logp_M, entropy_M)
        )
        return TokenScores(logp_BT, entropy_BT, None, *made)  # pyright: ignore[reportArgumentType]

    def _whole_beside(
        self,
        model: Any,
        ids: Tensor,
        mask: Tensor,
        wanted_BT: Tensor,
        aux: bool,
        beside: Beside,
    ) -> TokenScores:
        """Whole rows through TRL's fused head, which has no word for what is made beside it."""
        T = wanted_BT.size(1)
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :-T] = -100
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        more = {"output_router_logits": True} if aux else {}
        with self.accelerator.autocast():
            out, made = model(
                **inputs, **more, fused_lm_head=True, beside=beside, wanted_BT=wanted_BT
            )
        logp_BT, entropy_BT = (x[:, -T:] for x in (out.log_probs, out.entropy))
        return TokenScores(logp_BT, entropy_BT, out.aux_loss if aux else None, made)
