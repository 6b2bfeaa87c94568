"""What a check found: alike findings in one line, with the rows they are about."""

from __future__ import annotations

from dataclasses import dataclass, field

from prefix_rft.support.console import ROWS_NAMED, named


@dataclass
class Finding:
    """Something about the data, and the rows it is true of.

    Attributes:
        what: a sentence.
        fix: what to do about it.
        serious: training as the data stands would waste time.
        rows: the first ones, by number and, where there are several files, by file.
        count: the number of all its rows; 0 for something that is not about rows.
        example: the first row's own words.
    """

    what: str
    fix: str = ""
    serious: bool = True
    rows: list[str] = field(default_factory=list)
    count: int = 0
    example: str = ""

    def __str__(self) -> str:
        where = ""
        if self.rows:
            several = "rows" if self.count > 1 else "row"
            where = f"{several} {named(self.rows, self.count)}: "
        example = f" ({self.example})" if self.example else ""
        return f"{where}{self.what}{example}" + (f". Fix: {self.fix}" if self.fix else "")


class Findings:
    """Findings by what they say, in the order in which they came up."""

    def __init__(self) -> None:
        self.found: dict[str, Finding] = {}

    def add(
        self,
        what: str,
        fix: str = "",
        row: str | None = None,
        example: str = "",
        serious: bool = True,
    ) -> None:
        """One more row of which ``what`` is true, or a finding about no row."""
        finding = self.found.setdefault(what, Finding(what, fix, serious, example=example))
        if row is not None:
            finding.count += 1
            if len(finding.rows) < ROWS_NAMED:
                finding.rows.append(row)

    @property
    def problems(self) -> list[Finding]:
        """Those that make training a waste of time."""
        return [f for f in self.found.values() if f.serious]

    @property
    def notes(self) -> list[Finding]:
        """The others."""
        return [f for f in self.found.values() if not f.serious]
