"""TRL's GRPOConfig with the few keys that Prefix-RFT adds."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from trl import GRPOConfig

from prefix_rft.core import Method
from prefix_rft.engines.options import (
    SHARED,
    KeepsMethod,
    check_rows,
    parse_options,
    resolve,
    with_const,
)
from prefix_rft.engines.trl.clock import HELP
from prefix_rft.engines.trl.ranges import check_numbers
from prefix_rft.engines.trl.safety.watch import WatchConfig
from prefix_rft.engines.trl.savings import HELP as SAVINGS_HELP
from prefix_rft.engines.trl.savings import read_savings
from prefix_rft.engines.trl.settings import (
    HARMFUL,
    RL,
    check_generation,
    on_what_there_is,
    refuse_without_effect,
)


@dataclass
class PrefixRFTConfig(KeepsMethod, WatchConfig, GRPOConfig):
    """Arguments of :class:`PrefixRFTTrainer`: everything in TRL's ``GRPOConfig``, and these.

    ``epsilon``, ``epsilon_high``, ``delta``, ``beta`` and ``entropy_coef`` keep their TRL names and
    reach the method; settings that the method replaces (``loss_type``, ``scale_rewards``, ...) are
    refused unless they are left at TRL's default.
    """

    method: str = field(
        default="prefix_rft",
        metadata={"help": "Built-in method, or package.module:function that returns a Method."},
    )
    method_options: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Options of the method, e.g. {'entropy_keep': 0.5}; a dict or JSON."},
    )
    demonstration_column: str = field(
        default="demonstration",
        metadata={"help": "Column with a demonstration (text), or several (list of texts)."},
    )
    chat_template_date: str | None = field(default=None, metadata={"help": HELP})
    fast_generation: bool = field(
        default=True,
        metadata={
            "help": "With the plain transformers backend, drop finished rows and prefill each "
            "distinct context once. Off: model.generate."
        },
    )
    savings: list[str] | str = field(default="all", metadata={"help": SAVINGS_HELP})
    sampler_correction: float = field(
        default=0.0,
        metadata={
            "help": "Weigh each token that our sampler drew by its probability under the trainer "
            "over that under the sampler, at most by this (2 is usual); 0 is never."
        },
    )
    log_rollouts: bool = field(
        default=False,
        metadata={
            "help": "Write every rollout to output_dir/rollouts/step_N.jsonl, and which prefix "
            "tokens its first update keeps to kept_N.jsonl."
        },
    )
    log_prefix_leak: bool = field(
        default=False,
        metadata={
            "help": "Grade the prefix of every hybrid row alone and log as prefix/leak how many "
            "contain the answer already."
        },
    )
    guard_prefix_leak: bool = field(
        default=False,
        metadata={
            "help": "Start no row behind the longest prefix that is shorter than any which is "
            "correct alone: every prefix of what rows start from is graded once."
        },
    )
    gradient_shares_every: int = field(
        default=0,
        metadata={
            "help": "Every so many optimizer steps, log the norm of the gradient of each source "
            "(prefix, continuation, policy, ...), by backward passes of its own; 0 is never."
        },
    )

    parameter_mask: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Train some weights only, e.g. {'kind': 'speft', 'fraction': 0.05}."},
    )

    def __post_init__(self) -> None:
        check_numbers(vars(self))
        refuse_without_effect(self, GRPOConfig, RL, HARMFUL)
        on_what_there_is(self)
        super().__post_init__()
        check_generation(self)
        for name in ("method_options", "parameter_mask", "tripwires"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, parse_options(name, getattr(self, name)))
        self.savings = read_savings(self.savings)
        self.check_watch()
        steps: Any = self.steps_per_generation
        if steps % self.gradient_accumulation_steps != 0:
            raise ValueError(
                f"steps_per_generation ({self.steps_per_generation}) must be a multiple of "
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}), so that every "
                "optimizer step is made of rollouts that are known when it starts"
            )
        method = self.resolve_method()
        if method.needs_unit_temperature and self.temperature != 1.0:
            raise ValueError(
                f"method '{self.method}' reads likelihoods of demonstrations, which are those of "
                f"temperature 1, got {self.temperature}"
            )
        if self.guard_prefix_leak and method.planner.fixed and not method.planner.num_hybrid:
            raise ValueError(
                f"guard_prefix_leak has no effect with method '{self.method}', which starts no row "
                "from a prefix: leave it out"
            )
        rows: Any = self.generation_batch_size
        waits = method.groups.interleave
        if waits is not None and waits.prompts is not None and waits.prompts > rows:
            raise ValueError(
                f"method '{self.method}' wants {waits.prompts} demonstrations in a step, "
                f"but a generation has {rows} rows"
            )
        if method.contrast is not None and steps != self.gradient_accumulation_steps:
            raise ValueError(
                f"method '{self.method}' compares the rows of whole groups, so each generation "
                "must be one optimizer step: leave steps_per_generation and "
                "generation_batch_size alone"
            )

    def _decides(self) -> Any:
        names = ("method", *SHARED, "num_generations", "max_completion_length")
        options: Any = self.method_options or {}
        return {name: getattr(self, name) for name in names}, dict(options)

    def _load(self) -> Method:
        options: Any = self.method_options or {}
        defaults = {f.name: f.default for f in fields(GRPOConfig)}
        shared = {k: v for k in SHARED if (v := getattr(self, k)) != defaults[k]}
        return resolve(self.method, options, shared, "in the config", "in method_options")

    def _fit(self, method: Method) -> Method:
        for key in SHARED:
            if key in method.about.options:
                setattr(self, key, method.about.options[key])
        generations: Any = self.num_generations
        check_rows(method, self.method, generations)
        return with_const(method, self.max_completion_length)
