"""The science: pure functions on tensors and small frozen dataclasses. No I/O, no framework."""

from prefix_rft.core.advantage import group_advantage
from prefix_rft.core.batch import Batch
from prefix_rft.core.credit import advantages, dropped, step_credit, with_sequence
from prefix_rft.core.method import Method
from prefix_rft.core.objective import LossOutput, loss, share_of_loss, token_losses
from prefix_rft.core.planner import Group, Planner, Start
from prefix_rft.core.prefix import PrefixSampler, draw_prefix, prefix_length
from prefix_rft.core.schedules import Schedule
from prefix_rft.core.select import keep_fraction
from prefix_rft.core.statistics import statistics
from prefix_rft.core.stream import Selection, Stream
from prefix_rft.core.targets import Targets, prepare, select_prefix, selection_seed

__all__ = [
    "Batch",
    "Group",
    "LossOutput",
    "Method",
    "Planner",
    "PrefixSampler",
    "Schedule",
    "Selection",
    "Start",
    "Stream",
    "Targets",
    "advantages",
    "draw_prefix",
    "dropped",
    "group_advantage",
    "keep_fraction",
    "loss",
    "prefix_length",
    "prepare",
    "select_prefix",
    "selection_seed",
    "share_of_loss",
    "statistics",
    "step_credit",
    "token_losses",
    "with_sequence",
]
