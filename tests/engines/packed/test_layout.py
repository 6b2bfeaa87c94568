"""Packed rows by hand: what stands where, and who looks at whom."""

import torch

from prefix_rft.engines.packed.layout import pack

COMPLETIONS = torch.tensor([[10, 11, 12, 0], [20, 21, 0, 0], [30, 31, 32, 33]])
LENGTHS = (3, 2, 4)


def wanted(*rows: tuple[int, ...]) -> torch.Tensor:
    mask = torch.zeros(len(rows), COMPLETIONS.size(1), dtype=torch.bool)
    for row, columns in enumerate(rows):
        mask[row, list(columns)] = True
    return mask


def all_wanted() -> torch.Tensor:
    return wanted(*(tuple(range(n)) for n in LENGTHS))


def sees(layout: object) -> dict[int, list[int]]:
    """For each packed token the ids that it looks at, from the blocks."""
    seen: dict[int, list[int]] = {}
    at = 0
    where = layout.output_N.tolist()  # type: ignore[attr-defined]
    for block in layout.blocks:  # type: ignore[attr-defined]
        B, C = block.query_BC.shape
        for b in range(B):
            for c in range(C):
                if at in where:
                    token = where.index(at)
                    assert int(block.query_BC[b, c]) == token
                    L = block.key_BL.size(1)
                    mask = [j <= c for j in range(L)] if block.mask_BCL is None else None
                    mask = block.mask_BCL[b, c].tolist() if mask is None else mask
                    keys = [int(k) for k, m in zip(block.key_BL[b], mask, strict=True) if m]
                    seen[token] = layout.ids_N[keys].tolist()  # type: ignore[attr-defined]
                at += 1
    return seen


def test_a_shared_prompt_stands_once_and_last_tokens_stay_away() -> None:
    """Rows 0 and 2 share 1, 2; row 1 is alone. What follows the last wanted token is left out."""
    layout = pack([[1, 2], [5], [1, 2]], COMPLETIONS, all_wanted())
    assert layout.ids_N.tolist() == [1, 2, 10, 11, 30, 31, 32, 5, 20]
    assert layout.position_N.tolist() == [0, 1, 2, 3, 2, 3, 4, 0, 1]
    assert layout.target_M.tolist() == [10, 11, 12, 20, 21, 30, 31, 32, 33]
    assert layout.before_M.tolist() == [1, 2, 3, 7, 8, 1, 4, 5, 6]
    assert sees(layout) == {
        0: [1],
        1: [1, 2],
        2: [1, 2, 10],
        3: [1, 2, 10, 11],
        4: [1, 2, 30],
        5: [1, 2, 30, 31],
        6: [1, 2, 30, 31, 32],
        7: [5],
        8: [5, 20],
    }


def test_without_sharing_each_row_has_its_prompt() -> None:
    layout = pack([[1, 2], [5], [1, 2]], COMPLETIONS, all_wanted(), share=False)
    assert layout.ids_N.tolist() == [1, 2, 10, 11, 5, 20, 1, 2, 30, 31, 32]
    assert layout.position_N.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4]
    assert all(block.mask_BCL is None for block in layout.blocks)
    assert sees(layout)[10] == [1, 2, 30, 31, 32]


def test_a_row_goes_as_far_as_what_is_wanted_of_it() -> None:
    """Of row 0 the first token alone: nothing behind its prompt; of row 2 the second and third."""
    layout = pack([[1, 2], [5], [1, 2]], COMPLETIONS, wanted((0,), (1,), (1, 2)))
    assert layout.ids_N.tolist() == [1, 2, 30, 31, 5, 20]
    assert layout.target_M.tolist() == [10, 21, 31, 32]
    assert layout.before_M.tolist() == [1, 5, 2, 3]


def test_rows_of_unlike_length_do_not_share_a_block() -> None:
    completions = torch.arange(40).view(2, 20)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 4:] = False
    shapes = [tuple(b.query_BC.shape) for b in pack([[1], [1]], completions, mask).blocks]
    assert shapes == [(1, 1), (1, 19), (1, 3)]
    mask[1, 4:16] = True  # 15 beside 19: at least six tenths
    shapes = [tuple(b.query_BC.shape) for b in pack([[1], [1]], completions, mask).blocks]
    assert shapes == [(1, 1), (2, 19)]


def test_prompts_that_only_begin_alike_are_two() -> None:
    layout = pack([[1, 2], [1, 3]], COMPLETIONS[:2], all_wanted()[:2])
    assert layout.ids_N.tolist() == [1, 2, 10, 11, 1, 3, 20]
    assert sees(layout)[6] == [1, 3, 20]
