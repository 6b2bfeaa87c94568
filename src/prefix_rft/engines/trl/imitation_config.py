"""TRL's SFTConfig with the few keys that imitation methods add."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig

from prefix_rft.core import Method
from prefix_rft.engines.options import KeepsMethod, parse_options, with_const
from prefix_rft.engines.trl.clock import HELP
from prefix_rft.engines.trl.ranges import check_numbers
from prefix_rft.engines.trl.safety.watch import WatchConfig
from prefix_rft.engines.trl.savings import read_savings
from prefix_rft.engines.trl.settings import SFT, on_what_there_is, refuse_without_effect
from prefix_rft.methods import load


@dataclass
class DemonstrationConfig(KeepsMethod, WatchConfig, SFTConfig):
    """Arguments of :class:`DemonstrationTrainer`: everything in TRL's ``SFTConfig``, and these."""

    method: str = field(default="sft", metadata={"help": "Imitation method."})
    method_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of the method; a dict or JSON."}
    )
    demonstration_column: str = field(
        default="demonstration",
        metadata={"help": "Column with a demonstration (text), or several (list of texts)."},
    )
    chat_template_date: str | None = field(default=None, metadata={"help": HELP})
    max_completion_length: int = field(
        default=256, metadata={"help": "Longer demonstrations (EOS included) are dropped."}
    )

    savings: list[str] | str = field(
        default="all",
        metadata={"help": "'all' or 'none': whether rows are packed without padding."},
    )
    parameter_mask: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Train some weights only, e.g. {'kind': 'speft', 'fraction': 0.05}."},
    )

    def __post_init__(self) -> None:
        check_numbers(vars(self))
        refuse_without_effect(self, SFTConfig, SFT)
        on_what_there_is(self)
        super().__post_init__()
        for name in ("method_options", "parameter_mask", "tripwires"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, parse_options(name, getattr(self, name)))
        self.savings = read_savings(self.savings, ("packing",))
        self.check_watch()
        kwargs: Any = self.dataset_kwargs or {}
        self.dataset_kwargs = {**kwargs, "skip_prepare_dataset": True}

    def _decides(self) -> Any:
        options: Any = self.method_options or {}
        return self.method, dict(options), self.max_completion_length

    def _load(self) -> Method:
        options: Any = self.method_options or {}
        return load(self.method, **options)

    def _fit(self, method: Method) -> Method:
        return with_const(method, self.max_completion_length)
