"""The runs of a comparison, what each one waits for, and what is known of it on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prefix_rft.compare.arm import Arm
from prefix_rft.compare.arms import Comparison
from prefix_rft.compare.collection import ROWS, decides
from prefix_rft.compare.costs import Costs
from prefix_rft.compare.further import one_further
from prefix_rft.compare.inputs import defaults_of, recipes_hash, same_inputs
from prefix_rft.compare.job import BASE, Job, written
from prefix_rft.compare.prices import steps_within
from prefix_rft.compare.task import ContinualTask
from prefix_rft.compare.work import DONE, HELD_OUT, VALIDATION, expand, sets_of
from prefix_rft.evaluation.sets import EvalSet
from prefix_rft.recipe.recipe import Recipe
from prefix_rft.support.errors import UserError


@dataclass
class Board:
    """All runs of a comparison and their records.

    Attributes:
        comparison: what is compared.
        recipe: path of the shared recipe.
        resolved: the shared recipe.
        shared: keys that every run has been given beside the recipe.
        folder: the comparison's folder.
        batch_size: rows sampled at once in evaluations.
        usable: whether an arm can be run with a value that its sweep does not have.
        tasks: what its runs train on one after the other; none where all have the recipe's rows.
        records: ``done.json`` by folder, as far as it was read.
    """

    comparison: Comparison
    recipe: str
    resolved: Recipe
    shared: Mapping[str, Any]
    folder: Path
    batch_size: int = 256
    usable: Callable[[Arm, Any], bool] = lambda arm, value: True
    tasks: Sequence[ContinualTask] = ()
    records: dict[Path, dict[str, Any]] = field(default_factory=dict)
    _data: str | None = None

    # ---- runs ----------------------------------------------------------------------------------

    @property
    def base(self) -> Job:
        """The base model, evaluated like the others."""
        return Job(None, 0, None, self.folder / BASE)

    def job(self, arm: Arm, seed: int, value: Any = None) -> Job:
        """An arm's run at a seed."""
        folder = self.folder / "arms" / arm.place
        if arm.sweep:
            folder = folder / f"{next(iter(arm.sweep))}={written(value)}"
        return Job(arm, seed, value, folder / f"seed-{seed}")

    def collection(self, arm: Arm, seed: int) -> Job:
        """The run that samples what an arm trains on at a seed, whatever its swept value."""
        folder = self.folder / "collected" / arm.place / f"seed-{seed}"
        return Job(arm, seed, None, folder, collects=True)

    def swept(self, arm: Arm) -> list[Any]:
        """The values that an arm's is chosen from.

        Those of its sweep, and one further where the best of them lies at an edge.
        """
        values = [value for values in arm.sweep.values() for value in values]
        if not self.comparison.further or (best := self._best(arm, values)) is None:
            return values
        beyond = one_further(values, best)
        return values if beyond is None or not self.usable(arm, beyond) else [*values, beyond]

    def sweep(self, arm: Arm) -> list[Job]:
        """The runs that an arm's value is chosen from."""
        return [self.job(arm, 0, value) for value in self.swept(arm)]

    def jobs(self) -> Iterator[Job]:
        """Every run that is known to be needed now; chosen ones are known once sweeps are done."""
        yield self.base
        for arm in self.comparison.arms:
            yield from self.sweep(arm)
        for seed in range(self.comparison.seeds):
            for arm in self.comparison.arms:
                if arm.collect is not None:
                    yield self.collection(arm, seed)
                if arm.sweep and (seed == 0 or self.chosen(arm) is None):
                    continue
                yield self.final(arm, seed)

    def final(self, arm: Arm, seed: int) -> Job:
        """An arm's run with the chosen value."""
        return self.job(arm, seed, self.chosen(arm))

    def total(self) -> int:
        """How many runs there are in all."""
        arms = self.comparison.arms
        swept = sum(len(self.sweep(a)) - 1 for a in arms if a.sweep)
        collecting = sum(a.collect is not None for a in arms)
        return 1 + (len(arms) + collecting) * self.comparison.seeds + swept

    def waits_for(self, job: Job) -> list[Job] | None:
        """Runs that must be done first; None while they are not known."""
        if job.arm is None:
            return []
        first = []
        for name in (job.arm.start, None if job.collects else job.arm.match):
            if name is None:
                continue
            other = self.comparison.arm(name)
            if other.sweep and self.chosen(other) is None:
                return None
            first.append(self.final(other, job.seed))
        if job.arm.collect is not None and not job.collects:
            first.append(self.collection(job.arm, job.seed))
        return first

    def before(self, job: Job) -> Job | None:
        """The run whose rows or model a run goes on from; None where that is the base."""
        arm = job.arm
        if arm is not None and arm.collect is not None and not job.collects:
            return self.collection(arm, job.seed)
        if arm is None or arm.start is None:
            return None
        return self.final(self.comparison.arm(arm.start), job.seed)

    # ---- records -------------------------------------------------------------------------------

    def record(self, job: Job) -> dict[str, Any] | None:
        """What a finished run has left; None while it is not done.

        Raises:
            UserError: it is damaged, or of other settings.
        """
        path = job.folder / DONE
        if path not in self.records:
            if not path.is_file():
                return None
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                record["sets"] = {
                    name: {t: expand(table) for t, table in tables.items()}
                    for name, tables in record["sets"].items()
                }
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"'{path}' is damaged: delete the folder of this run") from error
            self.records[path] = record
        return self.records[path]

    def reread(self, job: Job) -> dict[str, Any] | None:
        """The record as it is now on disk."""
        self.records.pop(job.folder / DONE, None)
        return self.record(job)

    def check(self) -> None:
        """See that finished runs are of the same settings.

        Raises:
            UserError: one is not.
        """
        inputs = json.loads(json.dumps({one.name: one.settings() for one in self.sets()}))
        defaults = json.loads(json.dumps(defaults_of(EvalSet), default=str))
        for job in self.jobs():
            record = self.record(job)
            if record is None:
                continue
            recorded, ready = record["spec"], self.ready(job)
            wanted = json.loads(json.dumps(self.spec(job) if ready else _collecting(job.arm)))
            compared = {**wanted, **recorded} if ready else wanted
            other = [k for k in compared if recorded.get(k) != wanted.get(k)]
            if other:
                raise UserError(
                    f"'{job.folder}' was run with another '{other[0]}' "
                    f"({recorded.get(other[0])!r}, now {wanted.get(other[0])!r}): give another "
                    "--output, or delete that folder"
                )
            if not job.collects and not same_inputs(record["inputs"], inputs, defaults):
                raise UserError(
                    f"'{job.folder}' was evaluated on other rows: give another --output, or delete "
                    "that folder"
                )

    def ready(self, job: Job) -> bool:
        """Whether everything that a run waits for is known."""
        first = self.waits_for(job)
        return first is not None and all(self.record(j) is not None for j in first)

    def able(self, job: Job) -> bool:
        """Whether a run can start: it is ready, and the model or rows it starts from are there."""
        return self.ready(job) and all(self.done(j) for j in self.waits_for(job) or ())

    def done(self, job: Job) -> bool:
        """Whether a run has left its record, and its model or rows if a run to come needs them.

        Records alone are enough for tables; what went missing is made again.
        """
        if self.record(job) is None:
            return False
        left = job.folder / (ROWS if job.collects else "model")
        return job.arm is None or left.exists() or not self._starts_one(job)

    def _starts_one(self, job: Job) -> bool:
        """Whether a run that has no record yet starts from this one's model or rows."""
        if job.collects and job.arm is not None:
            return any(self.record(j) is None for j in self._runs_at(job.arm, job.seed))
        for arm in self.comparison.arms:
            if arm.start is None or self.comparison.arm(arm.start) is not job.arm:
                continue
            if self.final(self.comparison.arm(arm.start), job.seed).folder != job.folder:
                continue
            seeded = [j for j in self._runs_at(arm, job.seed) if self.record(j) is None]
            if seeded:
                return True
        return False

    def _runs_at(self, arm: Arm, seed: int) -> list[Job]:
        """The runs of an arm at a seed, those of its sweep and what it collects included."""
        first = [] if arm.collect is None else [self.collection(arm, seed)]
        swept = self.sweep(arm) if seed == 0 else []
        return [*first, *(swept or [self.final(arm, seed)])]

    def chosen(self, arm: Arm) -> Any:
        """The value of the swept key with the best mean reward; None until the sweep is done.

        Of equal values the first one counts.
        """
        return self._best(arm, self.swept(arm))

    def _best(self, arm: Arm, values: Sequence[Any]) -> Any:
        """The best of some values of the swept key; None where one has no record yet."""
        best, reward = None, -math.inf
        for value in values:
            job = self.job(arm, 0, value)
            record = self.record(job)
            if record is None:
                return None
            mean = self.chosen_on(record)
            if best is None or mean > reward:
                best, reward = job.value, mean
        return best

    def chosen_on(self, record: Mapping[str, Any]) -> float:
        """Mean reward on the rows that swept values are chosen on."""
        sets = record["sets"]
        rows = sets.get(VALIDATION, sets[HELD_OUT])
        rewards = rows[f"{self.comparison.temperatures[0]:g}"]["reward"]
        graded = [r for r in rewards if r is not None]
        return sum(graded) / len(graded) if graded else -math.inf

    def costs(self, job: Job) -> Costs:
        """Of the run and of all that it goes on from."""
        record = self.record(job)
        assert record is not None  # noqa: S101  (asked for finished runs only)
        own_costs, before = Costs(**record["costs"]), self.before(job)
        return own_costs if before is None else self.costs(before) + own_costs

    # ---- settings ------------------------------------------------------------------------------

    def sets(self) -> list[EvalSet]:
        """The sets of problems that every model is evaluated on.

        Raises:
            UserError: a suite that cannot be used.
        """
        comparison, tasks = self.comparison, [task.problems for task in self.tasks]
        return sets_of(self.resolved, comparison.validation_data, comparison.forgetting, tasks)

    def whole(self) -> dict[str, Any]:
        """Keys with which the recipe is whole: of several tasks, those of the first one too."""
        return {**self.shared, **(self.tasks[0].keys if self.tasks else {})}

    def keys(self, job: Job) -> dict[str, Any]:
        """Recipe keys of a run that waits for nothing, those of the rows that it collects aside.

        Raises:
            UserError: there is no step left within the compute that it is to match.
        """
        arm = job.arm
        assert arm is not None  # noqa: S101  (the base is not trained)
        own_keys = {k: v for k, v in arm.keys.items() if not job.collects or decides(k)}
        keys = {**self.shared, **own_keys, "seed": job.seed}
        for key in () if job.collects else arm.sweep:
            keys[key] = job.value
        if arm.start is not None:
            start = self.final(self.comparison.arm(arm.start), job.seed)
            keys["model"] = str((start.folder / "model").resolve())
        if arm.match is not None and not job.collects:
            keys["max_steps"] = self._matched_steps(arm, arm.match, job)
        return keys

    def _matched_steps(self, arm: Arm, match: str, job: Job) -> int:
        """Steps within the total compute of the matched arm, at what one of its steps costs."""
        other = self.final(self.comparison.arm(match), job.seed)
        record = self.record(other)
        assert record is not None  # noqa: S101  (waited for)
        step = Costs(**record["costs"]).flops / record["spec"]["steps"]
        before = self.before(job)
        spent = 0.0 if before is None else self.costs(before).flops
        return steps_within(arm, self.costs(other).flops - spent, step)

    def spec(self, job: Job) -> dict[str, Any]:
        """Everything that decides a run's numbers, as plain data."""
        comparison = self.comparison
        keys = {} if job.arm is None else self.keys(job)
        if job.collects and job.arm is not None:
            return {
                "arm": job.arm.name,
                "seed": job.seed,
                "keys": {k: v for k, v in keys.items() if k != "model" and decides(k)},
                "start": job.arm.start,
                "recipe": self._recipe_hash(),
                **_collecting(job.arm),
            }
        steps = keys.get("max_steps", self.resolved.trainer.get("max_steps"))
        return {
            "arm": BASE if job.arm is None else job.arm.name,
            "seed": job.seed,
            # Savings change no number, and older records know none.
            "keys": {k: v for k, v in keys.items() if k not in ("model", "savings")},
            "start": None if job.arm is None else job.arm.start,
            **_collecting(job.arm),
            "steps": steps,
            "recipe": self._recipe_hash(),
            "samples": comparison.samples,
            "temperatures": list(comparison.temperatures),
        }

    def _recipe_hash(self) -> str:
        if self._data is None:
            self._data = recipes_hash([t.recipe for t in self.tasks] or [self.resolved])
        return self._data


def _collecting(arm: Arm | None) -> dict[str, Any]:
    """What an arm collects; records of arms that do not, do not say so."""
    return {} if arm is None or arm.collect is None else {"collect": asdict(arm.collect)}
