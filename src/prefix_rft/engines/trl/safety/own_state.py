"""What of a run has a state of its own, beside the weights and what transformers saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefix_rft.core import Method
from prefix_rft.core.teacher import KEPT
from prefix_rft.data import load_rows
from prefix_rft.data.forgetting import refuse_shared
from prefix_rft.data.render import Renderer
from prefix_rft.engines.adapters import copy_to_reference
from prefix_rft.engines.kept_weights import KeptWeights, move, precisions
from prefix_rft.engines.state import MethodState, hash_of_rows
from prefix_rft.engines.trl.policy import refuse_frozen
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.update.example_gradients import drawn, example_gradients, retained
from prefix_rft.engines.trl.update.mask_options import MaskOptions
from prefix_rft.engines.trl.update.parameter_mask import LookAt, ParameterMask
from prefix_rft.support.errors import UserError

FSDP2 = "FSDP2 (fsdp_config: {version: 2})"


@dataclass(frozen=True)
class OwnState:
    """The memory of a method, its reference policy and the mask on its weights.

    Attributes:
        method: what the method remembers from step to step.
        reference: the policy that the method keeps for itself; None where it keeps none.
        mask: which weights are trained; None where all are.
        teachers: the weights that are kept for teachers, by their names.
    """

    method: MethodState
    reference: KeptWeights | None
    mask: ParameterMask | None
    teachers: Mapping[str, KeptWeights] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        method: Method,
        args: Any,
        model: torch.nn.Module,
        data: Callable[[], tuple[Any, Renderer]],
        processes: Processes,
        sharded: bool,
    ) -> OwnState:
        """The state that a run begins with.

        Args:
            method: the method that is trained.
            args: the trainer's configuration.
            model: the policy, neither sharded nor wrapped.
            data: gives the rows as token ids, and how texts become ids; both may be others once a
                run goes on.
            processes: the processes that share the run.
            sharded: the weights are spread over processes.

        Raises:
            UserError: the method or the mask cannot be used with these arguments, or nothing of the
                model can be trained.
        """
        refuse_frozen(model)
        copy_to_reference(model)
        options = None
        if args.parameter_mask:
            options = MaskOptions.read(args.parameter_mask).of(method.samples)
        rows = hash_of_rows(data()[0])
        state = MethodState(method.name, asdict(options) if options else None, rows)
        keeps = not sharded or processes.fsdp2
        if method.needs_own_reference and not keeps:
            raise UserError(
                f"method '{method.name}' keeps a reference policy, which cannot be done with "
                f"sharded weights of FSDP1 or DeepSpeed: use {FSDP2}"
            )
        reference = KeptWeights(model) if method.needs_own_reference else None
        teachers = kept_for(method, model, sharded, keeps)
        if options is None:
            return cls(state, reference, None, teachers)
        if sharded:
            raise UserError("parameter_mask cannot be used with sharded weights (FSDP, DeepSpeed)")
        if options.kind == "mifo" and method.groups.interleave is None:
            raise UserError(
                "parameter_mask kind mifo masks steps of imitation, which method "
                f"'{method.name}' does not have: use mifo or relift"
            )
        look_at = _look_at(options, args, model, data, processes)
        return cls(state, reference, ParameterMask(options, model, args.seed, look_at), teachers)

    def enter_stage(self, method: Method, step: int, total_steps: int) -> None:
        """Make the policy of now the reference where a new stage of the method begins.

        Args:
            method: the method whose stages these are.
            step: optimizer steps done.
            total_steps: the optimizer steps of the run.
        """
        if self.reference is None:
            return
        stages = method.reference.stages
        stage = min(stages - 1, step * stages // total_steps)
        if stage != self.method.stage:
            self.method.stage = stage
            self.reference.renew()

    def move_teachers(self, method: Method, step: int) -> None:
        """Have the teachers that follow the policy do so, before its update that begins now.

        Args:
            method: the method with its teachers.
            step: optimizer steps done.
        """
        move(self.teachers, method.teachers, step)

    def save(self, folder: Path, main: bool) -> None:
        """Write all of it into the folder of a checkpoint; called by all processes together.

        Args:
            folder: the folder.
            main: this process writes what all have alike.

        Raises:
            UserError: a file cannot be written.
        """
        for part in self._parts():
            if isinstance(part, KeptWeights):
                part.save(folder, main)
            elif main:
                part.save(folder)

    def load(self, folder: Path) -> None:
        """Take over what :meth:`save` wrote.

        Raises:
            UserError: a file is missing, damaged, or of another run.
        """
        for part in self._parts():
            part.load(folder)

    def _parts(self) -> list[MethodState | KeptWeights | ParameterMask]:
        parts = (self.method, self.reference, self.mask, *self.teachers.values())
        return [p for p in parts if p is not None]


def kept_for(
    method: Method, model: torch.nn.Module, sharded: bool, keeps: bool
) -> Mapping[str, KeptWeights]:
    """The weights that are kept for a method's teachers, by their names.

    Args:
        method: the method with its teachers.
        model: the policy, neither sharded nor wrapped.
        sharded: its weights are spread over processes.
        keeps: weights can be kept beside them all the same.

    Raises:
        UserError: they cannot, or there is no adapter to do without.
    """
    for teacher in method.teachers:
        has = f"teacher '{teacher.name}' has weights: {teacher.weights}"
        if teacher.weights in KEPT and not keeps:
            raise UserError(
                f"{has}, which cannot be done with sharded weights of FSDP1 or DeepSpeed: use "
                f"{FSDP2}, or live or model"
            )
        if teacher.weights == "adapter_off" and sharded:
            raise UserError(
                f"{has}, which cannot be done with sharded weights yet: use frozen, with {FSDP2}"
            )
        if teacher.weights == "adapter_off" and not hasattr(model, "disable_adapter"):
            raise UserError(f"{has}, but the model has no adapter: use frozen")
    return {
        name: KeptWeights(model, name, dtype) for name, dtype in precisions(method.teachers).items()
    }


def _look_at(
    options: MaskOptions,
    args: Any,
    model: torch.nn.Module,
    data: Callable[[], tuple[Any, Renderer]],
    processes: Processes,
) -> LookAt:
    """How a mask looks at demonstrations; each process looks at its share of them."""
    most, budget = options.examples or 0, args.max_completion_length

    def look_at(weights: Mapping[str, torch.nn.Parameter], choice: int) -> dict[str, Tensor]:
        rows, renderer = data()
        if options.data is not None:
            if options.forget is not None:
                forget, retain = (
                    load_rows(x, folder=Path()) for x in (options.forget, options.data)
                )
                refuse_shared(forget, retain, "parameter_mask: forget and data")
            examples = retained(renderer, options.data, most, budget)
        else:
            examples = drawn(rows, most, args.seed + choice)
        share = examples[processes.index :: processes.count]
        score = options.score or ""
        return example_gradients(model, renderer, share, weights, score, processes.sum)

    return look_at
