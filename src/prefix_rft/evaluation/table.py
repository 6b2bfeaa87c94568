"""An evaluation's numbers as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefix_rft.evaluation.estimates import UNGRADED, Estimate
from prefix_rft.evaluation.sets import FORGET, RETAIN
from prefix_rft.support.console import say
from prefix_rft.support.untrusted import visible

Row = Mapping[str, Any]


def temperature_name(temperature: float) -> str:
    """``greedy`` or the number."""
    return "greedy" if temperature == 0 else f"{temperature:g}"


def show_eval(console: Console, result: Row) -> None:
    """One table for each set, one for each column it is split by, one of paired differences.

    Of sets named ``forget`` and ``retain`` one of unlearning, too.
    """
    sets = dict.fromkeys(r["set"] for r in result["results"])
    for name in sets:
        rows = [r for r in result["results"] if r["set"] == name]
        console.print(_numbers(name, rows))
        for column in rows[0]["by"]:
            console.print(_parts(name, column, rows))
    if {FORGET, RETAIN} <= sets.keys():
        console.print(_unlearning(result["results"]))
    if result["differences"]:
        console.print(_differences(result["differences"]))
    if not all(r["maj_at"] for r in result["results"]):
        say(console, "no maj@k: the grader names no answers to vote on", style="dim")


def _numbers(name: str, rows: Sequence[Row]) -> Table:
    k = max(r["samples"] for r in rows)
    votes = k > 1 and any(r["maj_at"] for r in rows)
    total = rows[0]["total"]
    table = Table(title=f"{visible(name)}: {total} problems, k = {k}, in %")
    columns = ["avg@k [95 % interval]", *[f"pass@{k}"] * (k > 1), *[f"maj@{k}"] * votes]
    _add_columns(table, rows, [*columns, "cut", "no answer", "tokens"])
    for row in rows:
        cells = [percent(_estimate(row["avg"]), of=total)]
        cells += [_at(row["pass_at"], k, total)] * (k > 1)
        cells += [_at(row["maj_at"], k, total)] * votes
        ungraded = f" ({row['ungraded']} ungraded)" if row["ungraded"] else ""
        cells += [f"{100 * row['truncated']:.1f}", f"{100 * row['no_answer']:.1f}{ungraded}"]
        _add_row(table, rows, row, [*cells, f"{row['tokens']:.1f}"])
    return table


def unlearning(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """UA and RA of each model and temperature, in percent, from the results of its sets.

    UA is 100 less the accuracy on the set to forget, RA the accuracy on the set to retain
    (arXiv 2410.03833); an accuracy is the share of samples that are right (pass@1). None where
    nothing could be graded.
    """
    found: dict[tuple[str, float], dict[str, Any]] = {}
    for row in rows:
        if row["set"] not in (FORGET, RETAIN):
            continue
        own = found.setdefault((row["model"], row["temperature"]), {})
        at = {int(k): v for k, v in row["pass_at"].items()}
        share = 100 * at[1]["mean"] if 1 in at else None
        if row["set"] == RETAIN:
            own["RA"] = share
        else:
            own["UA"] = None if share is None else 100 - share
    return [
        {"model": model, "temperature": temperature, **own}
        for (model, temperature), own in found.items()
    ]


def _unlearning(rows: Sequence[Row]) -> Table:
    table = Table(title="unlearning, accuracies in %")
    found = unlearning(rows)
    _add_columns(table, found, [f"UA (100 - {FORGET})", f"RA ({RETAIN})"])
    for row in found:
        numbers = (row["UA"], row["RA"])
        _add_row(table, found, row, ["ungraded" if x is None else f"{x:.1f}" for x in numbers])
    return table


def _parts(name: str, column: str, rows: Sequence[Row]) -> Table:
    table = Table(title=f"{visible(name)}: avg@k by {visible(column)} (problems)")
    labels = list(rows[0]["by"][column])
    counts = [rows[0]["by"][column][label]["total"] for label in labels]
    headers = [f"{visible(label)}\n({n})" for label, n in zip(labels, counts, strict=True)]
    _add_columns(table, rows, headers)
    for row in rows:
        parts = [_estimate(row["by"][column][label]["avg"]) for label in labels]
        cells = [percent(p, "\n", n) for p, n in zip(parts, counts, strict=True)]
        _add_row(table, rows, row, cells)
    return table


def _add_columns(table: Table, rows: Sequence[Row], columns: Sequence[str]) -> None:
    if len({r["model"] for r in rows}) > 1:
        table.add_column("model")
    table.add_column("T", justify="right")
    for column in columns:
        table.add_column(Text(column), justify="right")


def _add_row(table: Table, rows: Sequence[Row], row: Row, cells: Sequence[str]) -> None:
    several = len({r["model"] for r in rows}) > 1
    first = [row["model"]] if several else []
    table.add_row(*map(Text, [*first, temperature_name(row["temperature"]), *cells]))


def percent(estimate: Estimate, between: str = " ", of: int | None = None) -> str:
    """``25.2 [22.9, 27.8]``, in percent; ``(n = 6)`` behind it where fewer than ``of`` count."""
    if not estimate.n:
        return "ungraded"
    low, high = 100 * estimate.low, 100 * estimate.high
    few = few_of(estimate.n, of)
    return f"{100 * estimate.mean:.1f}{between}[{low:.1f}, {high:.1f}]{between * bool(few)}{few}"


def few_of(n: int, of: int | None) -> str:
    """``(n = 6)``, where a number is over fewer problems than the others beside it."""
    return "" if of is None or n >= of else f"(n = {n})"


def _estimate(found: Mapping[str, Any] | None) -> Estimate:
    return UNGRADED if found is None else Estimate(**found)


def _at(by_k: Mapping[Any, Any], k: int, of: int) -> str:
    estimates = {int(key): value for key, value in by_k.items()}
    if k not in estimates:
        return "-"
    few = few_of(estimates[k]["n"], of)
    return f"{100 * estimates[k]['mean']:.1f}{' ' * bool(few)}{few}"


def _differences(rows: Sequence[Row]) -> Table:
    table = Table(title="model less base, same problems, in points")
    table.add_column("set")
    table.add_column("T", justify="right")
    table.add_column("difference [95 %]", justify="right")
    for row in rows:
        estimate = Estimate(**{k: row[k] for k in ("mean", "low", "high", "n")})
        table.add_row(
            Text(visible(row["set"])), temperature_name(row["temperature"]), estimate.signed
        )
    return table
