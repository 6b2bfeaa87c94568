"""What remains of an arm's gain where its teachers are shown something else: its controls.

Gain, remainder and difference are over the same seeds and problems, so that the first is the sum of
the other two, and each has the interval of the comparison's other differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prefix_rft.compare.arm import Arm, ControlOf
from prefix_rft.compare.controls import lacking
from prefix_rft.compare.job import BASE, Job
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.results import Values, finished, rewards
from prefix_rft.compare.tables import Section, at, percents
from prefix_rft.compare.work import HELD_OUT
from prefix_rft.evaluation.estimates import Estimate, over_graded

CONTROLS = "controls.json"
"""The numbers of all temperatures, in a comparison's folder."""


@dataclass(frozen=True)
class Remains:
    """An arm and one of its controls, against what is trained without teachers.

    Attributes:
        arm: the arm's name.
        control: what its control is.
        over: the base, or the comparison's reference where no teacher has a part in that.
        temperature: the temperature of the samples.
        seeds: the number of seeds that all have.
        gain: the arm less ``over``.
        remains: its control less ``over``.
        difference: the arm less its control.
    """

    arm: str
    control: ControlOf
    over: str
    temperature: float
    seeds: int
    gain: Estimate
    remains: Estimate
    difference: Estimate

    @property
    def share(self) -> Estimate | None:
        """The remainder's share of the gain; None where no gain is shown.

        Its interval is the difference's: the gain is taken as it is.
        """
        gain, part = self.gain, self.difference
        if not gain.low > 0:
            return None
        mean, low, high = (1.0 - x / gain.mean for x in (part.mean, part.high, part.low))
        return Estimate(mean, low, high, gain.n)

    @property
    def words(self) -> str:
        """What it says, in a sentence."""
        whose = f"of {self.arm} over {self.over}"
        if (share := self.share) is None:
            return f"no gain {whose} is shown: {self.gain.signed}"
        part = self.difference
        rest = (
            f"of the gain {whose}, {self.gain.signed}, {100 * self.remains.mean:+.1f} remains "
            f"without {self.control.without} (control: {self.control.kind}), "
            f"{percents(share)}"
        )
        if not part.excludes_zero:
            return f"{rest}; that it adds anything is not shown: {part.signed}"
        return f"{rest}; it {'adds' if part.low > 0 else 'takes'} {part.signed}"


def remains(board: Board, temperature: float) -> list[Remains]:
    """Every control with at least one seed in common with its arm, on the held-out problems.

    Args:
        board: the runs.
        temperature: one of the comparison's.
    """
    controls: dict[str, list[Arm]] = {}
    for arm in board.comparison.arms:
        if arm.control is not None:
            controls.setdefault(arm.control.of, []).append(arm)
    return [
        one
        for name, own in controls.items()
        for over, others in _others(board)
        for control in own
        if (one := _remains(board, temperature, name, control, over, others)) is not None
    ]


def sentences(board: Board) -> list[str]:
    """What controls say at the first temperature, and which of them an arm cannot have."""
    said = [one.words for one in remains(board, board.comparison.temperatures[0])]
    return [*dict.fromkeys(said), *filter(None, map(lacking, board.comparison.arms))]


def plain(board: Board) -> dict[str, Any]:
    """The same as plain data, at every temperature, and the controls that arms cannot have."""
    every = [one for t in board.comparison.temperatures for one in remains(board, t)]
    return {
        "controls": [{**asdict(x), "share": x.share and asdict(x.share)} for x in every],
        "lacking": {a.name: dict(a.lacks) for a in board.comparison.arms if a.lacks},
    }


def _others(board: Board) -> list[tuple[str, Sequence[Job]]]:
    """What an arm's gain is over: the base, and the reference if that has no teacher."""
    comparison = board.comparison
    base = [board.base] if board.record(board.base) is not None else []
    reference = comparison.arm(comparison.reference)
    taught = {a.control.of for a in comparison.arms if a.control is not None}
    others: list[tuple[str, Sequence[Job]]] = [(BASE, base)]
    if reference.name not in taught and reference.control is None and not reference.lacks:
        others.append((reference.name, finished(board, reference)))
    return others


def _remains(
    board: Board, temperature: float, name: str, control: Arm, over: str, others: Sequence[Job]
) -> Remains | None:
    arms = (board.comparison.arm(name), control)
    runs = [{j.seed: j for j in finished(board, arm)} for arm in arms]
    third = {j.seed: j for j in others}
    seeds = sorted(runs[0].keys() & runs[1].keys())
    if over != BASE:
        seeds = [s for s in seeds if s in third]
    if not seeds or not others or control.control is None:
        return None
    with_it, without_it = (_rewards(board, [r[s] for s in seeds], temperature) for r in runs)
    rest = [third[s] for s in seeds] if over != BASE else list(others)
    start = np.broadcast_to(_rewards(board, rest, temperature), with_it.shape)
    whole = ~np.isnan(with_it + without_it + start).any(0)
    if not whole.any():
        return None
    pairs = ((with_it, start), (without_it, start), (with_it, without_it))
    estimates = [over_graded((a - b)[:, whole]) for a, b in pairs]
    return Remains(name, control.control, over, temperature, len(seeds), *estimates)


def _rewards(board: Board, runs: Sequence[Job], temperature: float) -> Values:
    return rewards(board, runs, HELD_OUT, temperature)


def table(board: Board, temperature: float, between: str = " ") -> Section | None:
    """Gains, remainders and differences; None where there is no control.

    Args:
        board: the runs.
        temperature: one of the comparison's.
        between: what stands between a mean and its interval.
    """
    rows = []
    for one in remains(board, temperature):
        few = one.seeds < board.comparison.seeds
        estimates = (one.gain, one.remains, one.difference)
        gain, rest, part = (e.signed.replace(" [", between + "[") for e in estimates)
        share = "" if one.share is None else percents(one.share).replace(" [", between + "[")
        rows.append(
            [
                one.arm + (f" ({one.seeds} of {board.comparison.seeds} seeds)" if few else ""),
                one.over,
                gain,
                one.control.kind,
                rest,
                share,
                part,
            ]
        )
    title = f"What remains of a gain with another context, {at(temperature)}, in points"
    head = ["arm", "over", "gain", "control", "remains", "share", "difference"]
    return Section(title, head, rows) if rows else None
