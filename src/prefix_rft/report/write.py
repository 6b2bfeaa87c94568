"""From run folders to one HTML file."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from prefix_rft.report.view import context
from prefix_rft.support.errors import UserError
from prefix_rft.support.untrusted import visible
from prefix_rft.support.writing import write_text

MOST_RUNS = 8
"""Runs that colours can tell apart."""


def write_report(runs: Sequence[str], output: str | None = None) -> Path:
    """Write a self-contained HTML file about runs; no script, no network.

    Args:
        runs: run folders; several are drawn in the same plots.
        output: a file that ends in .html; ``report.html`` in the first run folder by default. A
            file that is there is replaced.

    Returns:
        The file's path.

    Raises:
        UserError: no such run or folder, too many runs, one of them twice, or a damaged file.
    """
    if not 1 <= len(runs) <= MOST_RUNS:
        raise UserError(f"a report shows 1 to {MOST_RUNS} runs, got {len(runs)}")
    seen: set[Path] = set()
    for run in runs:
        folder = Path(run).resolve()
        if folder in seen:
            raise UserError(f"run folder '{run}' is given twice; give each run once")
        seen.add(folder)
    path = output_path(runs[0], output)
    page = render(context(runs))
    write_text(path, page)
    return path


def output_path(first: str, output: str | None) -> Path:
    """Where the report goes.

    Raises:
        UserError: not a name that ends in .html, or in a folder that does not exist.
    """
    if output is None:
        return Path(first) / "report.html"
    path = Path(output)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"the report is an HTML file: '{output}' must end in .html")
    if path.is_dir():
        raise UserError(f"'{output}' is a folder; give a file in it, like '{path / 'report.html'}'")
    if not path.parent.is_dir():
        raise UserError(f"folder '{path.parent}' does not exist; make it, or choose another output")
    return path


def render(
    variables: dict[str, Any],
    template: str = "report.html.jinja",
    package: str = "prefix_rft.report",
) -> str:
    """The page. Every value that goes into it is made visible and escaped, whatever it holds.

    Args:
        variables: the template's variables.
        template: its file.
        package: the package that holds it; what it does not hold, such as the style, is this
            package's.
    """
    return _environment(package).get_template(template).render(variables)


@functools.cache
def _environment(package: str) -> Environment:
    # Kept, since it compiles each template once.
    folders = [files(package), files("prefix_rft.report")]

    def load(name: str) -> str:
        folder = next(f for f in folders if (f / name).is_file())
        return (folder / name).read_text(encoding="utf-8")

    return Environment(
        loader=FunctionLoader(load),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _finalize(value: Any) -> Any:
    # Markup is what our own SVG functions return, which do the same with what they are given.
    return value if isinstance(value, Markup) else visible(str(value))
