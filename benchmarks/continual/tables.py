"""The tables of README.md and docs/continual.md, from the records of the runs alone.

    python benchmarks/continual/tables.py            # seconds; prints them
    python benchmarks/continual/tables.py --write    # and puts them where they stand

``tests/test_continual_benchmark.py`` makes all of it again and compares.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from three_tasks import write_tasks  # beside this file

from prefix_rft.compare.continual import tables
from prefix_rft.compare.continual.command import read_board
from prefix_rft.compare.continual.results import all_ways
from prefix_rft.compare.continual.settings import Continual
from prefix_rft.compare.continual.tables import Ways
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.view import markdown

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BEGIN, END = "<!-- made by tables.py -->", "<!-- end -->"
PAGES = (HERE / "README.md", HERE.parents[1] / "docs/continual.md")


def board_in(folder: Path) -> tuple[Board, Continual]:
    """The board of the records, over rows that are written into a folder; they must be the same."""
    write_tasks(folder)
    recipe = shutil.copy(HERE / "recipe.yaml", folder / "recipe.yaml")
    board, continual = read_board(str(recipe), [], None, None, str(RESULTS))
    board.check()
    return board, continual


def made(board: Board, continual: Continual) -> tuple[str, str]:
    """What README.md and what the page in docs have."""
    ways: Ways = {t: all_ways(board, continual, t) for t in board.comparison.temperatures}
    short = [*tables.accuracy(board, continual, ways), *tables.forgotten(board, continual, ways)]
    every = tables.every(board, continual, ways)
    return "\n\n".join(map(markdown, every)), "\n\n".join(map(markdown, short))


def with_tables(page: str, text: str) -> str:
    """A page with a text between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main() -> None:
    """Print the tables, and write them where they stand if asked."""
    with tempfile.TemporaryDirectory() as folder:
        texts = made(*board_in(Path(folder)))
    print(texts[0])
    if "--write" in sys.argv[1:]:
        for path, text in zip(PAGES, texts, strict=True):
            page = path.read_text(encoding="utf-8")
            path.write_text(with_tables(page, text), encoding="utf-8")


if __name__ == "__main__":
    main()
