"""Checkpoints that are whole, and from which a run goes on exactly."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers.trainer_pt_utils import LengthGroupedSampler

from prefix_rft.engines.kept_weights import KeptWeights
from prefix_rft.engines.state import MethodState
from prefix_rft.engines.trl.clock import date_in, refuse_date
from prefix_rft.engines.trl.safety.finite import Finite
from prefix_rft.engines.trl.safety.own_state import OwnState
from prefix_rft.engines.trl.safety.rates import Rates, inner
from prefix_rft.engines.trl.safety.renamed_weights import load_renamed, not_loaded
from prefix_rft.engines.trl.safety.run_state import RunState
from prefix_rft.engines.trl.safety.whole_record import WholeRecord
from prefix_rft.engines.trl.update.parameter_mask import ParameterMask
from prefix_rft.runs.checkpoints import (
    WRITING,
    broken,
    fault,
    files_of,
    place,
    rotate,
    seal,
)
from prefix_rft.support.errors import UserError
from prefix_rft.support.phases import Phases
from prefix_rft.support.writing import write_json

PICKLE = "training_args.bin"
"""The arguments as transformers saves them: nothing reads it, and nobody should."""


class ResumesExactly:
    """Mixin for trainers: a run that is stopped anywhere ends as if it had not been.

    transformers and TRL restore weights, optimizer, scheduler and random states. Here are the rest:

    - the rollouts that wait for their updates and the place within their generation;
    - the order of the rows in every epoch (TRL's sampler begins with its first again);
    - metrics that wait for a line, and files that tell of steps which are done anew;
    - no step beyond ``max_steps``, which transformers takes when resumed from the last checkpoint;
    - settings of the optimizer and its schedule that are others than before: they act at once.

    A checkpoint is written beside its place and renamed when it is whole.
    """

    args: Any
    state: Any
    control: Any
    accelerator: Any
    finite: Finite
    phases: Phases
    own_state: OwnState

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._writing: Path | None = None
        self._renamed = False  # weights have other names in a checkpoint's files
        self._sampler: Any = None
        self._made: Any = None
        self.rates: Rates | None = None
        super().__init__(*args, **kwargs)
        trainer: Any = self
        self.run_state = RunState(trainer)
        self.record = WholeRecord(self.run_state)
        trainer.add_callback(self.record)

    @property
    def method_state(self) -> MethodState:
        """What the method remembers from step to step."""
        return self.own_state.method

    @property
    def reference(self) -> KeptWeights | None:
        """The policy that the method keeps for itself."""
        return self.own_state.reference

    @property
    def parameter_mask(self) -> ParameterMask | None:
        """Which weights are trained; None where all are."""
        return self.own_state.mask

    # ---- order of rows -------------------------------------------------------------------------

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        self._sampler = super()._get_train_sampler(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(self._sampler, LengthGroupedSampler) and self._sampler.generator is None:
            # The random state of the process is restored too late to give an epoch its order.
            self._sampler.generator = torch.Generator()
        return self._sampler

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if self.control.should_training_stop:  # a run goes on that had come to its end
            return
        order = getattr(self._sampler, "generator", None)
        if order is not None and getattr(self._sampler, "seed", None) is not None:
            # TRL's sampler takes one permutation after the other from a generator of its own.
            order.manual_seed(self._sampler.seed)
            for _ in range(epoch):
                torch.randperm(self._sampler.num_samples, generator=order)
        elif order is not None and isinstance(self._sampler, LengthGroupedSampler):
            order.manual_seed(1_000_003 * self.args.seed + epoch)
        super()._run_epoch(*args, epoch=epoch, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    # ---- writing -------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        own = super()._get_output_dir(trial)  # pyright: ignore[reportAttributeAccessIssue]
        return own if self._writing is None else str(self._writing)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint as a whole.

        Raises:
            UserError: a file cannot be written; older checkpoints are as they were.
            RunError: there are weights that are not finite, which nobody should go on from.
        """
        self.phases.begin("saving")
        self._look_at_weights()
        run = Path(self._get_output_dir(trial))
        final = run / f"checkpoint-{self.state.global_step}"
        with self._beside(final, f"the checkpoint of step {self.state.global_step}", True) as new:
            self._writing = new.parent
            try:
                super()._save_checkpoint(model, trial)  # pyright: ignore[reportAttributeAccessIssue]
            finally:
                self._writing = None
            self.run_state.save(new)
            self.own_state.save(new, self.args.should_save)
            if self.args.should_save:
                self._add(new, run)
        if self.args.should_save:
            step, best = self.state.global_step, self.state.best_model_checkpoint
            rotate(run, self.args.save_total_limit, best, step)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def save_whole_model(self, folder: Path, notes: Mapping[str, Any] | None = None) -> None:
        """Save the model to a folder that does not exist before it is whole.

        Args:
            folder: the model's folder.
            notes: plain data to be written beside it, by the name of the file.

        Raises:
            UserError: a file cannot be written.
            RunError: there are weights that are not finite.
        """
        trainer: Any = self
        self.phases.begin("saving the model")
        self._look_at_weights()
        with self._beside(folder, "the model", False) as new:
            trainer.save_model(str(new))
            if self.args.should_save:
                (new / PICKLE).unlink(missing_ok=True)
                for name, data in (notes or {}).items():
                    write_json(new / name, data)

    def _look_at_weights(self) -> None:
        trainer: Any = self
        self.finite.before_saving(trainer.policy, trainer.optimizer, self.state.global_step)

    @contextmanager
    def _beside(self, final: Path, what: str, listed: bool) -> Iterator[Path]:
        """A folder to write into, renamed to ``final`` when all processes have left the context."""
        beside, writes = final.parent / WRITING, self.args.should_save
        new = beside / final.name
        try:
            if writes:
                shutil.rmtree(beside, ignore_errors=True)
                new.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            yield new
            self.accelerator.wait_for_everyone()
            if writes:
                if not files_of(new):
                    raise UserError(
                        "nothing was written; a model that is sharded needs a state_dict_type of "
                        "full weights"
                    )
                seal(new, listed)
                place(new, final)
                shutil.rmtree(beside, ignore_errors=True)
        except Exception as error:
            if (why := _refused(error)) is None:
                raise
            if not isinstance(error, UserError):
                why = f"'{_culprit(error, new)}' cannot be written: {why}"
            shutil.rmtree(beside, ignore_errors=True)
            raise UserError(f"{what} is lost, older checkpoints are not: {why}") from error
        self.accelerator.wait_for_everyone()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._writing is None:  # what is not whole yet is pushed later
            super()._push_from_checkpoint(checkpoint_folder)  # pyright: ignore[reportAttributeAccessIssue]

    def _add(self, new: Path, run: Path) -> None:
        """Add what the trainer itself remembers to a new checkpoint of a run."""
        (new / PICKLE).unlink(missing_ok=True)
        best = run / f"checkpoint-{self.state.best_global_step}"
        if best.is_dir() or best.name == new.name:
            # transformers has looked for it among the folders that are being written.
            self.state.best_model_checkpoint = str(best)
            self.state.save_to_json(str(new / "trainer_state.json"))

    # ---- reading -------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kw: Any) -> None:
        folder = Path(resume_from_checkpoint)
        self._check(folder)
        trainer: Any = self
        date = date_in(folder)
        if date is not None and not trainer.date_given and not trainer.is_fsdp_enabled:
            trainer.tell(date)  # before any row is taken
        refuse_date(folder, date, trainer.args)
        self._look(folder)  # before anything is loaded
        made_here = inner(trainer.optimizer, "optimizer") is self._made
        if made_here and not trainer.is_fsdp_enabled:
            trainer.optimizer = None  # of an earlier call, with the settings of then
        self._renamed = False
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kw)  # pyright: ignore[reportAttributeAccessIssue]
        if self._renamed:
            load_renamed(trainer.policy, folder)
        self._restore(folder)

    def _load_best_model(self) -> None:
        self._renamed = False
        super()._load_best_model()  # pyright: ignore[reportAttributeAccessIssue]
        if self._renamed:
            trainer: Any = self
            load_renamed(trainer.policy, Path(self.state.best_model_checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # In place of transformers', which goes on without the weights.
        self._renamed = bool(not_loaded(load_result))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """transformers', and what it is set to before anything is loaded into it."""
        trainer: Any = self
        was_given = trainer.optimizer is not None
        optimizer = super().create_optimizer(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        inner_optimizer = inner(trainer.optimizer, "optimizer")
        if not was_given:
            self._made = inner_optimizer
        if self.rates is None or self.rates.optimizer is not inner_optimizer:
            self.rates = Rates(inner_optimizer)
        return optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """transformers', and what it begins with."""
        trainer: Any = self
        scheduler = super().create_scheduler(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if self.rates is not None and not trainer.is_deepspeed_enabled:  # which has its own
            self.rates.begin(trainer.lr_scheduler)
        return scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # pyright: ignore[reportAttributeAccessIssue]
        trainer: Any = self
        if checkpoint is None:
            return
        if trainer.is_deepspeed_enabled:
            # DeepSpeed loads the weights by itself.
            self._check(Path(checkpoint))
            self._restore(Path(checkpoint))
        elif self.rates is not None:
            self.rates.restore(self.run_state.rates, f"checkpoint '{checkpoint}'")

    def verify_checkpoint(self, folder: Path) -> None:
        """Look whether this trainer can go on from a checkpoint, and change nothing.

        Raises:
            UserError: it is damaged, or of other settings.
        """
        self._check(folder)
        refuse_date(folder, date_in(folder), self.args)
        self._look(folder)

    def _look(self, folder: Path) -> None:
        trainer: Any = self
        trainer.method_state.read(folder)
        self.run_state.read(folder)

    def _check(self, folder: Path) -> None:
        main = self.accelerator.is_main_process  # every file is read: one process is enough
        if why := gather_object([fault(folder) if main else None])[0]:
            raise UserError(
                f"checkpoint '{folder}' is damaged: {why}; resume from another, or let --resume "
                "find the newest whole one"
            )

    def _restore(self, folder: Path) -> None:
        self.record.resumed_from = folder
        self.own_state.load(folder)
        self.run_state.load(folder)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """TRL's, but the last line's loss is the mean of the whole run, not of its last part."""
        if "train_loss" in logs:
            trainer: Any = self
            logs["train_loss"] = trainer._total_loss_scalar / max(self.state.global_step, 0.001)
        super().log(logs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


def _refused(error: Exception) -> str | None:
    """Why a file was not written; None for an error of another kind."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, (SafetensorError, UserError)):
        return str(error)
    # The writers of torch and of tokenizers have no types of their own.
    if re.search("PytorchStreamWriter|inline_container|iostream error", str(error)):
        return "the disk does not take it"
    return str(error) if re.search(r"\(os error \d+\)", str(error)) else None


def _culprit(error: Exception, folder: Path) -> Any:
    """The file that was being written, as far as one can tell."""
    if name := getattr(error, "filename", None):
        return name
    files = files_of(folder) if folder.is_dir() else []
    files = files or [p for p in folder.parents[1].iterdir() if p.is_file()]
    if half := next((p for p in files if broken(p)), None):
        return half
    if isinstance(error, SafetensorError):  # which takes away what it could not finish
        return folder / "model.safetensors"
    return max(files, key=lambda p: p.stat().st_mtime_ns, default=folder)
