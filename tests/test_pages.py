"""Pages for strangers: links lead somewhere, lists are whole, the first page is short."""

import re
from pathlib import Path

import pytest

from prefix_rft.methods.registry import BUILT_IN as METHODS
from prefix_rft.recipe.recipe import ENGINES
from prefix_rft.rewards.registry import BUILT_IN as REWARDS

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "benchmarks/README.md",
    ROOT / "benchmarks/countdown/README.md",
]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = [x for x in LINK.findall(page.read_text()) if "://" not in x]
    assert [x for x in links if not (page.parent / x).exists()] == []


def test_the_first_page_is_short_and_has_every_room() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 115
    tree = text[text.index("src/prefix_rft/\n") :]
    rooms = {p.name for p in (ROOT / "src/prefix_rft").iterdir() if p.is_dir()} - {"__pycache__"}
    assert set(re.findall(r"\b([a-z]+)/ ", tree)) == rooms
    assert [engine for engine in ENGINES if f"{engine}/" not in tree] == []


def test_every_method_is_in_the_index_and_has_a_page() -> None:
    index = (ROOT / "docs/methods/README.md").read_text()
    assert [m for m in METHODS if f"| [{m}]({m}.md) |" not in index] == []
    assert f"the {len(METHODS) - 1} methods" in (ROOT / "README.md").read_text()


def test_every_reward_is_described() -> None:
    text = (ROOT / "docs/data.md").read_text()
    assert [r for r in REWARDS if f"`{r}`" not in text] == []


def test_every_shape_of_data_is_described() -> None:
    """Under the name that messages call it."""
    source = (ROOT / "src/prefix_rft/data/shapes.py").read_text()
    shapes = re.findall(r'RowShape\(\s*"([^"]+)"', source)
    text = (ROOT / "docs/data.md").read_text()
    assert len(shapes) >= 6
    assert [shape for shape in shapes if f"| {shape}" not in text] == []


def test_files_that_a_page_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(
        r"`((?:tests|docs|engines|methods|rewards|data|runs|tasks)/[a-z_/.]+)`", text
    )
    places = [ROOT, ROOT / "src/prefix_rft"]
    missing = {n for n in named if not any((p / n.rstrip(".")).exists() for p in places)}
    modules = {
        n for n in missing if not any((p / f"{n.partition('.')[0]}.py").exists() for p in places)
    }
    assert modules == set()
