"""The optimizer's settings and its schedule: of a run that goes on, those of now."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Adafactor

from prefix_rft.support.errors import UserError


class Rates:
    """What optimizer and schedule are when a run begins, before a checkpoint is loaded into them.

    A checkpoint holds the settings beside the moments, and the schedule's place beside its rates.
    Of these, moments and place stay.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = inner(optimizer, "optimizer")
        self.schedule: Any = None
        self.groups = [_settings(g) for g in self.optimizer.param_groups]
        self.began: dict[str, Any] = {}

    def begin(self, schedule: Any) -> None:
        """Take note of the schedule that a run begins with, if it is not known yet."""
        schedule = inner(schedule, "scheduler")
        if self.schedule is schedule:
            return
        self.schedule = schedule
        self.began = {
            "optimizer": _name(self.optimizer),
            "groups": [{k: _plain(v) for k, v in g.items()} for g in self.groups],
            "schedule": _name(self.schedule),
            "state": None if self._by_step else _hash(self.schedule.state_dict()),
        }

    @property
    def _by_step(self) -> bool:
        """Whether the schedule is a function of the step alone, as nearly all are."""
        return isinstance(self.schedule, LambdaLR)

    @property
    def _plain_groups(self) -> bool:
        """Whether the groups of parameters hold settings and no state of the optimizer's."""
        return isinstance(self.optimizer, Adafactor) or type(self.optimizer).__module__.startswith(
            "torch.optim."
        )

    def restore(self, before: Mapping[str, Any] | None, where: str) -> None:
        """Put the settings of now in place of those that a checkpoint has just brought.

        Args:
            before: ``began`` of the run that made it; None where it was not written.
            where: names the checkpoint.

        Raises:
            UserError: something differs that an optimizer or a schedule of this kind cannot change.
        """
        self._refuse(self.began if before is None else before, where)
        if self._plain_groups:
            for group, fresh in zip(self.optimizer.param_groups, self.groups, strict=True):
                for name in fresh.keys() & group.keys():
                    if _plain(group[name]) != _plain(fresh[name]):
                        group[name] = fresh[name]
        if self._by_step:
            schedule: Any = self.schedule
            schedule.base_lrs = [g["initial_lr"] for g in self.groups]
            rates = [
                base * factor(schedule.last_epoch)
                for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            ]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                if torch.is_tensor(group["lr"]):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
            schedule._last_lr = rates

    def _refuse(self, before: Mapping[str, Any], where: str) -> None:
        by_step = self._by_step and before["state"] is None
        for kind, changeable in (("optimizer", False), ("schedule", by_step)):
            if before[kind] != self.began[kind] and not changeable:
                raise UserError(
                    f"{where} was made with {kind} {before[kind]}, and this run has "
                    f"{self.began[kind]}: resume with what the run began with"
                )
        differing = _differing(before["groups"], self.began["groups"])
        if not by_step and (before["state"] != self.began["state"] or "initial_lr" in differing):
            raise UserError(
                f"{where} was made with another learning_rate or other settings of schedule "
                f"{self.began['schedule']}, which is no function of the step: resume with what the "
                "run began with"
            )
        other = [k for k in differing if k != "initial_lr"]
        if other and not self._plain_groups:
            raise UserError(
                f"{where} was made with another {other[0]}, and optimizer "
                f"{self.began['optimizer']} keeps its state among its settings: resume with what "
                "the run began with"
            )


def inner(outer: Any, name: str) -> Any:
    """What accelerate has wrapped."""
    while hasattr(outer, name) and hasattr(getattr(outer, name), "state_dict"):
        outer = getattr(outer, name)
    return outer


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's settings, with the rate that a schedule multiplies as ``initial_lr``."""
    found = {k: v for k, v in group.items() if k not in ("params", "lr", "param_names")}
    return {"initial_lr": group["lr"], **found}


def _differing(before: Any, now: Any) -> list[str]:
    if len(before) != len(now):
        return ["number of groups of parameters"]
    return sorted(
        {k for a, b in zip(before, now, strict=True) for k in a | b if a.get(k) != b.get(k)}
    )


def _name(thing: Any) -> str:
    return type(thing).__name__


def _plain(value: Any) -> Any:
    if torch.is_tensor(value):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _hash(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(
        repr(sorted((k, _plain(v)) for k, v in state.items())).encode()
    ).hexdigest()
