"""What ``prefix-rft methods`` prints: the table of all, or one method's rows, streams, defaults."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from prefix_rft.core import Method, Schedule, Stream
from prefix_rft.core.schedules import Following
from prefix_rft.core.stream import ORIGINS
from prefix_rft.methods import BUILT_IN, load
from prefix_rft.support.console import say

KINDS = {
    "live": "the policy as it is",
    "frozen": "the policy of the start",
    "ema": "a moving average of the policy",
    "snapshot": "the policy of some steps ago",
    "adapter_off": "the model without its adapter",
    "model": "another model",
}
SHOWN = {
    "demonstration": "which sees a demonstration",
    "prefix": "which sees the beginning of a demonstration",
    "peer": "which sees a solved row of the group",
    "wrong": "which sees an unsolved row of the group",
    "column": "which sees column",
    "unrelated": "which sees another example",
    "none": "which sees what the policy sees",
}


def kind(method: Method) -> str:
    """What the method learns from."""
    if not method.samples or method.contrast is not None:
        return "demonstrations"
    if method.teachers:
        return "teacher, rewards" if method.reads_rewards else "teacher"
    if method.trains("prefix") or method.trains("demonstration"):
        return "both"
    if not method.rows.fixed or method.rows.num_hybrid:
        return "prefix as context"
    return "rewards"


def show_methods(console: Console) -> None:
    """The table of the built-in methods."""
    table = Table()
    for column in ("method", "learns from", "what it does", "source"):
        table.add_column(column, no_wrap=column == "method", overflow="fold")
    methods = [load(name) for name in BUILT_IN]
    for m in methods:
        name = f"{m.name} *" if m.about.unverified else m.name
        table.add_row(name, kind(m), m.about.summary, m.about.source)
    console.print(table)
    say(console, "* something could not be verified: prefix-rft methods NAME says what")
    say(console, "one of your own: method: {name: my_module:my_method}, see examples/")


def show_method(console: Console, method: Method) -> None:
    """One method's source, rows, streams and options."""
    say(console, f"{method.name}: {method.about.summary}")
    say(console, f"source: {method.about.source}")
    if method.about.unverified:
        say(console, f"not verified: {method.about.unverified}")
    for line in rows_of(method):
        say(console, line)
    streams = Table(title="streams")
    for column in ("stream", "tokens", "surrogate", "advantage", "coefficient", "normaliser"):
        streams.add_column(column, overflow="fold")
    for s in method.streams:
        streams.add_row(
            s.name,
            ", ".join(s.tokens),
            surrogate(s),
            str(s.advantage) + (gate(s) if s.gate else ""),
            describe(s.coefficient),
            normaliser(method, s),
        )
    console.print(streams)
    options = Table(title="options")
    options.add_column("option")
    options.add_column("default")
    for name, value in method.about.options.items():
        options.add_row(name, describe(value))
    console.print(options)


def rows_of(method: Method) -> list[str]:
    """Sentences on the rows of a group."""
    if not method.samples:
        return ["rows: whole demonstrations, nothing is sampled"]
    counts = [
        (method.rows.num_hybrid, "from a demonstration prefix"),
        (method.rows.num_demonstrations, "a whole demonstration"),
    ]
    special = ", ".join(f"{n} {what}" for n, what in counts if n)
    if not method.rows.fixed:
        special = f"as {describe(method.planner)} plans them"
    lines = [f"rows of a group: {special or 'all on-policy'}"]
    if special and method.rows.fixed:
        lines[0] += ", the rest on-policy"
    if method.reference.sampler == "reference":
        lines.append(f"sampled from: the reference policy, set {method.reference.stages} time(s)")
    if method.groups.interleave is not None:
        lines.append(
            "between them: generations of whole demonstrations, of prompts solved at a rate of "
            f"{method.groups.interleave.unsolved_at:g} or less"
        )
    if method.contrast is not None:
        lines.append(f"sequence advantages from: {describe(method.contrast)}")
    lines += [
        f"teacher {t.name}: {KINDS[t.weights]}, {SHOWN[t.shown]}"
        + (f" '{t.column}'" if t.shown == "column" else "")
        for t in method.teachers
    ]
    if method.selection is not None:
        chosen = method.selection
        lines.append(
            f"of prefix tokens: the {chosen.fraction:.0%} of {chosen.mode} entropy in each "
            f"{chosen.scope} keep their advantage"
        )
    return lines


def surrogate(stream: Stream) -> str:
    """The surrogate, its shape, level and weight."""
    parts = [stream.surrogate]
    if stream.shape is not None:
        parts.append(f"f = {stream.shape.name}")
    if stream.level != "token":
        parts.append(f"ratio of the {stream.level}")
    if stream.weight is not None:
        parts.append(f"weight {stream.weight.name}")
    return "; ".join(parts)


def gate(stream: Stream) -> str:
    """On which groups the stream acts."""
    assert stream.gate is not None  # noqa: S101
    low, high = stream.gate
    if low < 0:
        return f", solve rate <= {high:g}"
    return f", solve rate > {low:g}" + ("" if high >= 1 else f" and <= {high:g}")


def normaliser(method: Method, stream: Stream) -> str:
    """What the stream's sum is divided by."""
    aggregation = stream.aggregation or method.normaliser.aggregation
    counted = "all" if set(stream.counted) == set(ORIGINS) else ", ".join(stream.counted)
    trained = " trained" if stream.counts == "trained" else ""
    return aggregation if aggregation == "sum" else f"{aggregation} over{trained} {counted}"


def describe(value: Any) -> str:
    """A value as a person would write it."""
    if isinstance(value, Following):
        return f"1 -> 0 as {value.metric} reaches {value.reference:g}"
    if isinstance(value, Schedule):
        if value.kind == "constant":
            return f"{value.start:g}"
        over = "the run" if value.steps is None else f"{value.steps} steps"
        return f"{value.kind} {value.start:g} -> {value.end:g} over {over}"
    if is_dataclass(value):
        inner = ", ".join(f"{f.name}={describe(getattr(value, f.name))}" for f in fields(value))
        return f"{type(value).__name__}({inner})"
    return str(value)
