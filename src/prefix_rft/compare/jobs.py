"""The runs of a comparison, what each one waits for, and what is known of it on disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefix_rft.compare.arm import Arm
from prefix_rft.compare.arms import Comparison
from prefix_rft.compare.costs import Costs
from prefix_rft.compare.further import one_further
from prefix_rft.compare.inputs import deciding, defaults_of, same_inputs
from prefix_rft.compare.job import BASE, Job, written
from prefix_rft.compare.work import DONE, HELD_OUT, VALIDATION, expand, sets_of
from prefix_rft.engines.fingerprint import fingerprint
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
        records: ``done.json`` by folder, as far as it was read.
    """

    comparison: Comparison
    recipe: str
    resolved: Recipe
    shared: Mapping[str, Any]
    folder: Path
    batch_size: int = 256
    usable: Callable[[Arm, Any], bool] = lambda arm, value: True
    records: dict[Path, dict[str, Any]] = field(default_factory=dict)
    _data: str | None = None

    # ---- runs ----------------------------------------------------------------------------------

    @property
    def base(self) -> Job:
        """The base model, evaluated like the others."""
        return Job(None, 0, None, self.folder / BASE)

    def job(self, arm: Arm, seed: int, value: Any = None) -> Job:
        """An arm's run at a seed."""
        folder = self.folder / "arms" / arm.name
        if arm.sweep:
            folder = folder / f"{next(iter(arm.sweep))}={written(value)}"
        return Job(arm, seed, value, folder / f"seed-{seed}")

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
        return 1 + len(arms) * self.comparison.seeds + swept

    def waits_for(self, job: Job) -> list[Job] | None:
        """Runs that must be done first; None while they are not known."""
        if job.arm is None:
            return []
        first = []
        for name in (job.arm.start, job.arm.match):
            if name is None:
                continue
            other = self.comparison.arm(name)
            if other.sweep and self.chosen(other) is None:
                return None
            first.append(self.final(other, job.seed))
        return first

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
        comparison = self.comparison
        sets = sets_of(self.resolved, comparison.validation_data, comparison.forgetting)
        inputs = json.loads(json.dumps({eval_set.name: eval_set.settings() for eval_set in sets}))
        defaults = json.loads(json.dumps(defaults_of(EvalSet), default=str))
        for job in self.jobs():
            record = self.record(job)
            if record is None or not self.ready(job):
                continue
            recorded, wanted = record["spec"], json.loads(json.dumps(self.spec(job)))
            other = [k for k in {**wanted, **recorded} if recorded.get(k) != wanted.get(k)]
            if other:
                raise UserError(
                    f"'{job.folder}' was run with another '{other[0]}' "
                    f"({recorded.get(other[0])!r}, now {wanted.get(other[0])!r}): give another "
                    "--output, or delete that folder"
                )
            if not same_inputs(record["inputs"], inputs, defaults):
                raise UserError(
                    f"'{job.folder}' was evaluated on other rows: give another --output, or delete "
                    "that folder"
                )

    def ready(self, job: Job) -> bool:
        """Whether everything that a run waits for is known."""
        first = self.waits_for(job)
        return first is not None and all(self.record(j) is not None for j in first)

    def able(self, job: Job) -> bool:
        """Whether a run can start: it is ready, and the model it starts from is there."""
        return self.ready(job) and all(self.done(j) for j in self.waits_for(job) or ())

    def done(self, job: Job) -> bool:
        """Whether a run has left its record, and its model if a run to come starts from it.

        Records alone are enough for tables; a model that went missing is trained again.
        """
        if self.record(job) is None:
            return False
        return job.arm is None or (job.folder / "model").is_dir() or not self._starts_one(job)

    def _starts_one(self, job: Job) -> bool:
        """Whether a run that has no record yet starts from this one's model."""
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
        """The runs of an arm at a seed, those of its sweep included."""
        runs = self.sweep(arm) if seed == 0 else []
        return runs or [self.final(arm, seed)]

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
        """Of the run and of those that it starts from."""
        record = self.record(job)
        assert record is not None  # noqa: S101  (asked for finished runs only)
        own_costs = Costs(**record["costs"])
        if job.arm is None or job.arm.start is None:
            return own_costs
        return self.costs(self.final(self.comparison.arm(job.arm.start), job.seed)) + own_costs

    # ---- orders --------------------------------------------------------------------------------

    def keys(self, job: Job) -> dict[str, Any]:
        """Recipe keys of a run that waits for nothing.

        Raises:
            UserError: there is no step left within the compute that it is to match.
        """
        arm = job.arm
        assert arm is not None  # noqa: S101  (the base is not trained)
        keys = {**self.shared, **arm.keys, "seed": job.seed}
        for key in arm.sweep:
            keys[key] = job.value
        if arm.start is not None:
            start = self.final(self.comparison.arm(arm.start), job.seed)
            keys["model"] = str((start.folder / "model").resolve())
        if arm.match is not None:
            keys["max_steps"] = self._matched_steps(arm, job.seed)
        return keys

    def _matched_steps(self, arm: Arm, seed: int) -> int:
        """Steps within the total compute of the matched arm, at what one of its steps costs."""
        other = self.comparison.arm(arm.match or "")
        job = self.final(other, seed)
        record = self.record(job)
        assert record is not None  # noqa: S101  (waited for)
        steps, own_flops = record["spec"]["steps"], Costs(**record["costs"]).flops
        budget = self.costs(job).flops
        if arm.start is not None:
            budget -= self.costs(self.final(self.comparison.arm(arm.start), seed)).flops
        matched = int(budget / (own_flops / steps))
        if matched < 1:
            raise UserError(
                f"arm '{arm.name}' has no step left within the compute of '{arm.match}': its start "
                "costs as much"
            )
        return matched

    def spec(self, job: Job) -> dict[str, Any]:
        """Everything that decides a run's numbers, as plain data."""
        comparison = self.comparison
        keys = {} if job.arm is None else self.keys(job)
        steps = keys.get("max_steps", self.resolved.trainer.get("max_steps"))
        return {
            "arm": BASE if job.arm is None else job.arm.name,
            "seed": job.seed,
            # Savings change no number, and older records know none.
            "keys": {k: v for k, v in keys.items() if k not in ("model", "savings")},
            "start": None if job.arm is None else job.arm.start,
            "steps": steps,
            "recipe": self._recipe_hash(),
            "samples": comparison.samples,
            "temperatures": list(comparison.temperatures),
        }

    def order(self, job: Job) -> dict[str, Any]:
        """What the process of a run is told."""
        comparison = self.comparison
        return {
            "spec": self.spec(job),
            "folder": str(job.folder),
            "recipe": self.recipe,
            "shared": dict(self.shared),
            "train": job.arm is not None,
            "model": self.resolved.model_source(),
            "keys": {} if job.arm is None else self.keys(job),
            "samples": comparison.samples,
            "temperatures": list(comparison.temperatures),
            "eval_seed": 0,
            "eval_batch_size": self.batch_size,
            "validation_data": comparison.validation_data,
            "forgetting": comparison.forgetting,
            "trajectory": comparison.trajectory,
            "by": list(comparison.by),
        }

    def _recipe_hash(self) -> str:
        """Of the shared recipe, its files of rows, and the base model."""
        if self._data is None:
            digest = hashlib.sha256(repr(deciding(self.resolved)).encode())
            for data in (self.resolved.train_data, self.resolved.eval_data):
                path = self.resolved.folder / str(data)
                if path.is_file():
                    digest.update(path.read_bytes())
            model = fingerprint(self.resolved.model_source())
            digest.update(str(model.get("sha256", model["source"])).encode())
            self._data = digest.hexdigest()[:16]
        return self._data
