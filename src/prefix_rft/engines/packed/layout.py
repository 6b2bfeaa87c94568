"""Where each token of packed rows lies: no padding, and once what several rows begin with.

The rows of a group share their prompt. It stands in the sequence once; every completion begins at
the position behind it, and looks at the prompt and at itself. What a row has behind its last wanted
token is left out, since nothing looks at it.

Shape letters: N packed tokens, B rows of a block, C tokens that look, L tokens looked at, M wanted
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

PADDING = 0.6
"""Rows share a block with longer ones if they are at least this long beside the longest."""


@dataclass(frozen=True)
class Block:
    """Tokens that attend in one call.

    Attributes:
        query_BC: places (in N) of the tokens that look; those of padding are 0.
        key_BL: places of the tokens that they look at.
        mask_BCL: which looks at which, bool or what is added to scores (see :func:`additive`); None
            for whole rows, where each token looks at those before it.
    """

    query_BC: Tensor
    key_BL: Tensor
    mask_BCL: Tensor | None


@dataclass(frozen=True)
class Layout:
    """Packed rows.

    Attributes:
        ids_N: token ids.
        position_N: the position of each token in its row.
        blocks: who attends to whom.
        output_N: where the output of each token stands in those of all blocks, one after another.
        before_M: the place of the token before each wanted one, which predicts it.
        target_M: ids of the wanted tokens.
    """

    ids_N: Tensor
    position_N: Tensor
    blocks: tuple[Block, ...]
    output_N: Tensor
    before_M: Tensor
    target_M: Tensor


def additive(layout: Layout, dtype: torch.dtype) -> Layout:
    """The same with masks of 0 and -inf, once for all layers.

    Of a mask of bool torch makes such a one in every layer, and keeps it for the backward.
    """

    def added(block: Block) -> Block:
        mask = block.mask_BCL
        if mask is None or mask.dtype != torch.bool:
            return block
        zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        return replace(block, mask_BCL=zeros.masked_fill_(~mask, -torch.inf))

    return replace(layout, blocks=tuple(map(added, layout.blocks)))


Rows = tuple[range, ...]
"""Places of what looks, the last of them, and of what it looks at as a whole."""


def pack(
    prompts: Sequence[Sequence[int]],
    completion_BT: Tensor,
    wanted_BT: Tensor,
    share: bool = True,
) -> Layout:
    """The layout of some rows.

    Args:
        prompts: token ids of each row's prompt, none of them empty.
        completion_BT: token ids of the completions, padded on the right.
        wanted_BT: bool, the tokens whose log-probs are wanted, at least one; the order of M is that
            of this mask.
        share: whether rows whose prompts are the same have it once.
    """
    device, T = completion_BT.device, completion_BT.size(1)
    # Of a wanted token the one before is needed, and no more.
    after = torch.arange(T, device=device)
    needed = wanted_BT.long().mul(after).amax(1).tolist()
    groups: dict[Any, tuple[Sequence[int], list[int]]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt) if share else row, (prompt, []))[1].append(row)

    sequences: list[Rows] = []  # places of whole rows, and of prompts that several rows share
    branches: list[Rows] = []  # places of a prompt, and of what a row has behind it
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    last_of_prompt, start = [0] * len(prompts), [0] * len(prompts)
    N = 0
    for prompt, rows in groups.values():
        P, first = len(prompt), N
        ids.append(torch.tensor(prompt, device=device))
        positions.append(torch.arange(P, device=device))
        N += P
        for row in rows:
            C = needed[row]
            last_of_prompt[row], start[row] = first + P - 1, N
            ids.append(completion_BT[row, :C])
            positions.append(torch.arange(P, P + C, device=device))
            if len(rows) > 1 and C:
                branches.append((range(first, first + P), range(N, N + C)))
            N += C
        sequences.append((range(first, first + P if len(rows) > 1 else N),))

    blocks, real = [], []
    for part in _alike(sequences):
        places, real_BC = _padded([row for (row,) in part], device)
        blocks.append(Block(places, places, None))
        real.append(real_BC)
    for part in _alike(branches):
        block, real_BC = _behind(part, device)
        blocks.append(block)
        real.append(real_BC)
    output_N = torch.empty(N, dtype=torch.long, device=device)
    # Every token looks in exactly one block.
    at = torch.cat([m.flatten() for m in real]).nonzero()[:, 0]
    output_N[torch.cat([b.query_BC[m] for b, m in zip(blocks, real, strict=True)])] = at

    row_M, at_M = wanted_BT.nonzero().T
    starts = torch.tensor(start, device=device)[row_M]
    before_M = torch.where(
        at_M > 0, starts + at_M - 1, torch.tensor(last_of_prompt, device=device)[row_M]
    )
    return Layout(
        torch.cat(ids),
        torch.cat(positions),
        tuple(blocks),
        output_N,
        before_M,
        completion_BT[wanted_BT],
    )


def _alike(rows: Sequence[Rows]) -> list[list[Rows]]:
    """The rows in blocks of like length, the longest ones first."""
    parts: list[list[Rows]] = []
    for row in sorted(rows, key=lambda r: len(r[-1]), reverse=True):
        if parts and len(row[-1]) >= PADDING * len(parts[-1][0][-1]):
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def _padded(ranges: Sequence[range], device: torch.device) -> tuple[Tensor, Tensor]:
    """Places of ranges of unlike length, 0 in the padding, and which are real; both (B, C)."""
    start_B1 = torch.tensor([r.start for r in ranges], device=device)[:, None]
    length_B1 = torch.tensor([len(r) for r in ranges], device=device)[:, None]
    offset_1C = torch.arange(int(length_B1.max()), device=device)[None]
    real_BC = offset_1C < length_B1
    return (start_B1 + offset_1C).where(real_BC, 0), real_BC


def _behind(part: Sequence[Rows], device: torch.device) -> tuple[Block, Tensor]:
    """A block of completions that look at their prompts and at themselves."""
    prompt_BP, in_prompt_BP = _padded([p for p, _ in part], device)
    own_BC, real_BC = _padded([own for _, own in part], device)
    B, C = own_BC.shape
    causal_CC = torch.ones(C, C, dtype=torch.bool, device=device).tril()
    # A token of padding looks at real ones as well, since nothing at all has no softmax.
    mask = torch.cat([in_prompt_BP[:, None].expand(B, C, -1), causal_CC.expand(B, C, C)], 2)
    return Block(own_BC, torch.cat([prompt_BP, own_BC], 1), mask), real_BC
