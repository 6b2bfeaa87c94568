"""What a trainer holds between two optimizer steps and transformers does not save.

Rollouts that wait for their updates, the place within their generation, and the metrics that wait
for the next line of the log. Each process has files of its own, ``run_state_P.json`` and, in the
middle of a generation, ``rollouts_P.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prefix_rft.engines.changes import refuse_changes, settings_of
from prefix_rft.engines.tensors import read_tensors, write_tensors
from prefix_rft.engines.trl.safety.made_of import refuse_others
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import write_text


class RunState:
    """The part of a trainer's memory that its checkpoints would lose.

    Raises:
        UserError: a checkpoint of other settings or a damaged one, in :meth:`load`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.loss: dict[str, Any] | None = None
        self.rates: dict[str, Any] | None = None

    @property
    def last_logged(self) -> int:
        """The optimizer step of the last line of the log."""
        return self.trainer._globalstep_last_logged

    def _settings(self) -> dict[str, Any]:
        found = settings_of(self.trainer.args)
        return {**found, "processes": self.trainer.accelerator.num_processes}

    def _paths(self, folder: Path) -> tuple[Path, Path]:
        process = self.trainer.accelerator.process_index
        return folder / f"run_state_{process}.json", folder / f"rollouts_{process}.safetensors"

    def _in_generation(self) -> bool:
        """Whether rollouts wait for updates."""
        trainer = self.trainer
        if getattr(trainer, "_buffered_inputs", None) is None:
            return False
        return trainer._step % (len(trainer._buffered_inputs) * trainer.num_iterations) != 0

    def save(self, folder: Path) -> None:
        """Write this process's files."""
        trainer = self.trainer
        state, rollouts = self._paths(folder)
        data: dict[str, Any] = {
            "settings": self._settings(),
            "made_of": trainer.made_of,
            "rates": (trainer.rates and trainer.rates.began) or None,
            "weights_only": trainer.args.save_only_model,
            "metrics": {mode: dict(m) for mode, m in trainer._metrics.items()},
            "loss": trainer._tr_loss.item(),
            "logged_loss": trainer._total_loss_scalar,
            "last_logged": trainer._globalstep_last_logged,
            "skipped": trainer.finite.skipped,
            "tripwires": [trainer.tripwires.counts, trainer.tripwires.last],
        }
        for name in ("_step", "_total_train_tokens"):
            if hasattr(trainer, name):
                data[name] = getattr(trainer, name)
        if getattr(trainer, "log_completions", False):
            data["completions"] = _lists(trainer._logs)
        if self._in_generation():
            tensors, data["scalars"] = {}, []
            for i, rows in enumerate(trainer._buffered_inputs):
                tensors |= {f"{i}/{k}": v for k, v in rows.items() if torch.is_tensor(v)}
                data["scalars"].append({k: v for k, v in rows.items() if not torch.is_tensor(v)})
            write_tensors(rollouts, {k: v.to("cpu", copy=True) for k, v in tensors.items()})
        write_text(state, json.dumps(data) + "\n")

    def read(self, folder: Path) -> dict[str, Any]:
        """What :meth:`save` wrote for this process, if this run can go on from it."""
        state, _ = self._paths(folder)
        if not state.is_file():
            raise UserError(
                f"checkpoint '{folder}' has no {state.name}: it is not one of this trainer's, or "
                "of fewer processes"
            )
        with _undamaged(state):
            data = dict(json.loads(state.read_text(encoding="utf-8")))
            self._check(folder, data)
        return data

    def load(self, folder: Path) -> None:
        """Restore what :meth:`save` wrote; :meth:`begin` does the rest."""
        trainer, data = self.trainer, self.read(folder)
        state, rollouts = self._paths(folder)
        with _undamaged(state):
            for mode, metrics in data["metrics"].items():
                trainer._metrics[mode].clear()
                trainer._metrics[mode].update({k: list(v) for k, v in metrics.items()})
            for name in ("_step", "_total_train_tokens"):
                if hasattr(trainer, name):
                    setattr(trainer, name, int(data[name]))
            trainer.finite.skipped = int(data["skipped"])
            trainer.tripwires.counts, trainer.tripwires.last = map(dict, data["tripwires"])
            if "completions" in data and getattr(trainer, "log_completions", False):
                _fill(trainer._logs, data["completions"])
            if "scalars" in data:
                trainer._buffered_inputs = self._rows(rollouts, data["scalars"])
            self.rates = data.get("rates")
            self.loss = {k: data[k] for k in ("loss", "logged_loss", "last_logged")}

    def _check(self, folder: Path, data: Mapping[str, Any]) -> None:
        if data["weights_only"]:
            raise UserError(
                f"checkpoint '{folder}' was saved with save_only_model: it can be used as a model, "
                "but no run goes on from it"
            )
        refuse_changes(
            folder,
            data["settings"],
            self._settings(),
            self.trainer.method,
            waiting="scalars" in data,
            deepspeed=self.trainer.is_deepspeed_enabled,
        )
        if "made_of" in data:  # as it is in all checkpoints since there is such a thing
            refuse_others(folder, data["made_of"], self.trainer.made_of)

    def _rows(self, path: Path, scalars: list[dict[str, Any]]) -> list[dict[str, Any]]:
        tensors = read_tensors(path)
        device = self.trainer.accelerator.device
        rows = [dict(s) for s in scalars]
        for key, tensor in tensors.items():
            i, _, name = key.partition("/")
            rows[int(i)][name] = tensor.to(device)
        return rows

    def begin(self) -> None:
        """Restore what transformers has set to zero since :meth:`load`; when training begins."""
        if self.loss is not None:
            trainer = self.trainer
            trainer._tr_loss += self.loss["loss"]
            trainer._total_loss_scalar = self.loss["logged_loss"]
            trainer._globalstep_last_logged = self.loss["last_logged"]
            self.loss = None


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """What a file holds is as it should be.

    Raises:
        UserError: it is not.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is damaged: {type(error).__name__}: {error}") from error


def _lists(logs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: {n: list(x) for n, x in v.items()} if isinstance(v, dict) else list(v)
        for k, v in logs.items()
        if k != "images"
    }


def _fill(logs: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    for key, values in saved.items():
        if isinstance(values, dict):
            for name, inner in values.items():
                logs[key][name].extend(inner)
        else:
            logs[key].extend(values)
