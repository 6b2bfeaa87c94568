"""The benchmark's pictures and how they are measured; the page has the table of its records."""

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks/diffusion"


def script(name: str) -> ModuleType:
    """A script of the benchmark as a module, without running it."""
    spec = importlib.util.spec_from_file_location(f"diffusion_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bars = script("bars")
clean, drawn, measured = bars.clean, bars.drawn, bars.measured
table = script("tables").table


def test_the_clean_pictures() -> None:
    pictures = clean()
    assert pictures.shape == (14, 1, 8, 8)
    assert pictures[3, 0, 5].tolist() == pytest.approx([-0.8] * 3 + [0.8] * 2 + [-0.8] * 3)
    assert torch.equal(pictures[7:], pictures[:7].transpose(2, 3))
    # Two that are next to one another differ in two lines of eight: far beyond what counts as near.
    assert (pictures[0] - pictures[1]).square().mean().item() == pytest.approx(16 * 1.6**2 / 64)


def test_what_samples_are() -> None:
    places = clean()
    samples = torch.stack(
        [places[0], places[0], places[1], places[1], places[9], (places[0] + places[1]) / 2]
    )
    found = measured(samples)
    assert found["vertical"] == pytest.approx(4 / 6)
    assert found["horizontal"] == pytest.approx(1 / 6)
    assert found["neither"] == pytest.approx(1 / 6)  # a blur of two: 16 * .8^2 / 64 = .16 from each
    assert found["places"] == pytest.approx(2)
    uneven = measured(torch.stack([places[0]] * 3 + [places[1]]))
    assert uneven["places"] == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )
    assert measured(places[7:])["places"] == 0


def test_noisy_pictures_are_of_their_mode() -> None:
    assert measured(drawn(200, [0], seed=5))["vertical"] == 1
    both = measured(drawn(200, [0, 1], seed=5))
    assert (both["vertical"], both["horizontal"]) == (0.5, 0.5)


def test_the_table_by_hand() -> None:
    base = {"vertical": 0.5, "neither": 0.02, "places": 7.0}
    records = [
        {
            "arm": arm,
            "seed": s,
            "vertical": v,
            "neither": 0.0,
            "places": 2.0,
            "winner_error": s + 0.05,
        }
        for arm, values in (("sft", (0.6, 0.7)), ("sspo", (0.8, 1.0)))
        for s, v in enumerate(values)
    ]
    lines = table({"base": base, "records": records}).splitlines()
    assert lines[2] == "| base | 50.0 |  |  | 2.0 | 7.0 |  |"
    # 12.706 standard errors: differences 20 and 30, 25 with an error of 5.
    assert (
        "| sspo | 90.0 [-37.1, 217.1] | 25.0 [-38.5, 88.5] |  | 0.0 [0.0, 0.0] | 2.0 | 0.05, 1.05 |"
        in lines
    )


def test_the_page_has_the_table_of_its_records() -> None:
    made = table(json.loads((FOLDER / "results.json").read_text()))
    assert made in (FOLDER / "README.md").read_text()
