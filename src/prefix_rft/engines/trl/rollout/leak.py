"""Whether prefixes give the answer away, and how long they may be: they are graded alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prefix_rft.data.demonstrations import EXAMPLE, IDS
from prefix_rft.data.render import Renderer
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.rollout.generation import Generation
from prefix_rft.rewards import grade_texts
from prefix_rft.rewards.verdict import CORRECT
from prefix_rft.support.errors import UserError
from prefix_rft.support.phases import Phases


def check_leaks(args: Any, graders: Sequence[Any]) -> None:
    """See that prefixes can be graded where that is asked for.

    Args:
        args: the trainer's configuration.
        graders: the reward functions that grade text.

    Raises:
        UserError: there is no grader.
    """
    for name in ("log_prefix_leak", "guard_prefix_leak"):
        if getattr(args, name) and not graders:
            raise UserError(f"{name} needs a reward function that grades text")


class Leaks:
    """What the first grader says of prefixes alone, as far as the settings ask for it.

    A verdict on a prefix is that on its text, so nothing of this is saved: a run that goes on finds
    the same limits again. All processes know the same of an example, whoever has graded it.

    Args:
        args: the trainer's configuration.
        graders: the reward functions that grade text.
        renderer: how ids become texts.
        processes: the run's processes.
        phases: is told that prefixes are graded.
    """

    def __init__(
        self,
        args: Any,
        graders: Sequence[Any],
        renderer: Renderer,
        processes: Processes,
        phases: Phases,
    ) -> None:
        self.logs, self.guards = args.log_prefix_leak, args.guard_prefix_leak
        self.graders, self.renderer = graders, renderer
        self.processes, self.phases = processes, phases
        self._known: dict[int, dict[bytes, int]] = {}

    def limits(self, rows: Sequence[Mapping[str, Any]]) -> dict[int, tuple[int, ...]] | None:
        """How long a prefix of each source of these examples may be; None without the guard.

        It is a token shorter than the shortest prefix that is correct alone: correctness may come
        and go as a text grows, but before its first time nothing is given away.

        Args:
            rows: the examples with all that rows of them may start from; some may be the same.
        """
        if not self.guards:
            return None
        by_example = {int(row[EXAMPLE]): row for row in rows}
        keys = {e: [_key(ids) for ids in row[IDS]] for e, row in by_example.items()}
        new = [e for e in keys if not self._known.get(e, {}).keys() >= set(keys[e])]
        if new:
            self.phases.begin("grading prefixes of examples", len(new))
        found = [(e, self._of(by_example[e], keys[e])) for e in new]
        heard: dict[int, dict[bytes, int]] = {}
        for example, limits in self.processes.gather_list(found):
            # Should a grader differ between processes, the rows of a group still do not.
            before = heard.setdefault(example, limits)
            heard[example] = {key: min(limit, before[key]) for key, limit in limits.items()}
        self._known |= heard
        return {e: tuple(self._known[e][key] for key in keys[e]) for e in keys}

    def _of(self, row: Mapping[str, Any], keys: Sequence[bytes]) -> dict[bytes, int]:
        """The limits of the sources that an example has now, of which some may be known."""
        known, limits = self._known.get(int(row[EXAMPLE]), {}), {}
        for key, ids in zip(keys, row[IDS], strict=True):
            limits[key] = known[key] if key in known else self._longest(row, ids)
        self.phases.next()
        return limits

    def _longest(self, row: Mapping[str, Any], ids: Sequence[int]) -> int:
        """The longest prefix that is shorter than any which is correct alone."""
        prefixes = [list(ids[:length]) for length in range(1, len(ids))]
        correct = self._correct([row] * len(prefixes), prefixes)
        return correct.index(True) if True in correct else len(prefixes)

    def _correct(
        self, rows: Sequence[Mapping[str, Any]], prefixes: Sequence[list[int]]
    ) -> list[bool]:
        """Whether each prefix alone is correct."""
        if not prefixes:
            return []
        texts = self.renderer.completions(prefixes)
        return [v.status == CORRECT for v in grade_texts(self.graders[0], rows, texts, prefixes)]

    def metrics(self, generation: Generation) -> dict[str, float]:
        """Shares of hybrid rows, those of all processes; empty where there is no such row.

        ``prefix/leak`` is of those whose prefix alone is correct. ``prefix/guarded`` is of those
        that start earlier than was asked, with those that start at the prompt for that reason.

        Args:
            generation: the rows of this process.
        """
        shares = {}
        if self.logs:
            pairs = zip(generation.inputs, generation.plans, strict=True)
            hybrid = [(row, list(plan.prefix or plan.hint)) for row, plan in pairs if plan.hybrid]
            correct = self._correct([row for row, _ in hybrid], [ids for _, ids in hybrid])
            shares["prefix/leak"] = sum(correct), len(hybrid)
        if self.guards:
            guarded = [plan.guarded for plan in generation.plans if plan.hybrid or plan.guarded]
            shares["prefix/guarded"] = sum(guarded), len(guarded)
        found = {}
        for name, counts in shares.items():
            total = self.processes.sum(torch.tensor(counts, device=self.processes.device))
            part, rows = total.tolist()
            found |= {name: part / rows} if rows else {}
        return found


def _key(ids: Sequence[int]) -> bytes:
    """What stands for a source's tokens, of which none are kept."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).digest()
