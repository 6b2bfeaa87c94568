"""The tables of README.md and docs/choosing.md, and the score that ``prefix-rft advise`` quotes.

    python benchmarks/regimes/tables.py            # seconds; prints them
    python benchmarks/regimes/tables.py --write    # and puts them where they stand

``tests/test_regimes.py`` makes all of it again from the records and compares.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefix_rft.compare.work import DONE, HELD_OUT, VALIDATION, expand
from prefix_rft.evaluation import regimes
from prefix_rft.evaluation.estimates import Estimate, over_seeds, paired
from prefix_rft.evaluation.regimes import ABOVE, BELOW, Rule

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PACKAGED = Path(regimes.__file__).with_name("regimes.json")
SFT = "sft"
RL = ("sft+dr_grpo", "sft+dr_grpo_fresh", "sft+dr_grpo_wide", "sft+dr_grpo_slow", "sft+grpo")
CONTEXT = ("sft+adaback", "sft+control", "sft+control_jump")
LIFTED = 0.5
WINDOW = 20
READ = (("sampled", 2), ("prefilled", 2), ("forward", 2))
LABELS = {
    "base": "base",
    SFT: "SFT",
    "sft+dr_grpo": "SFT, then Dr. GRPO",
    "sft+dr_grpo_fresh": "the same, 5,000 other prompts",
    "sft+dr_grpo_wide": "the same, 2 prompts x 32 rows",
    "sft+dr_grpo_slow": "the same at 1e-4",
    "sft+grpo": "SFT, then GRPO",
    "sft+adaback": "SFT, then AdaBack",
    "sft+control": "SFT, then control",
    "sft+control_jump": "SFT, then control, jump",
    "sft+prefix_rft": "SFT, then Prefix-RFT",
    "sft+prefix_rft_fast": "the same at 6e-4",
    "sft+prefix_rft_group": "the same, prefixes a group of their own",
    "sft+prefix_rft_low": "the same, 20 % of lowest entropy",
}
WHERE = "runs on chains of 24 hidden steps (0.1 million parameters)"
HEAD = ["arm", "solved [95 %]", "less the best RL", "lifted off", "pass@4", "old rule", "FLOPs"]
PAGES = (HERE / "README.md", HERE.parents[1] / "docs/choosing.md")
BEGIN, END = "<!-- made by tables.py -->", "<!-- end -->"
Row = list[str]


@dataclass(frozen=True)
class Run:
    """One seed of a cell.

    Attributes:
        seed: of the demonstrations.
        solved: lambda of the SFT model.
        records: by arm.
        curves: of each arm and step, plain rows, solved ones, and tokens by kind.
    """

    seed: int
    solved: Estimate
    records: Mapping[str, Mapping[str, Any]]
    curves: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)

    def half(self, arm: str) -> tuple[int, float] | None:
        """The step and the operations behind SFT at which an arm solves half of what it does last.

        Of rows that started at the prompt, over the last ``WINDOW`` steps; None where it has none
        that do, or never does.
        """
        steps = self.curves.get(arm, ())
        target = float(np.nanmean(self.rewards(arm))) / 2
        costs = self.records[arm]["costs"]
        # What a token of each kind costs: 2 to read or sample, 6 to train, for each weight.
        price = costs["flops"] / sum(k * costs[name] for name, k in (*READ, ("trained", 6)))
        spent = 0.0
        for i, (_, _, sampled, prefilled, forward, trained) in enumerate(steps, 1):
            spent += price * (2 * (sampled + prefilled + forward) + 6 * trained)
            window = steps[max(0, i - WINDOW) : i]
            plain, solved = (sum(s[j] for s in window) for j in (0, 1))
            if i >= WINDOW and plain and target and solved / plain >= target:
                return i, spent
        return None

    def flops(self, arm: str) -> float:
        """Operations of an arm, those of the SFT that it starts from included."""
        arms = [arm, SFT] if arm.startswith(f"{SFT}+") else [arm]
        return sum(self.records[name]["costs"]["flops"] for name in arms)

    def rewards(self, arm: str, name: str = HELD_OUT) -> NDArray[np.float64]:
        """Mean reward of each problem."""
        table = expand(self.records[arm]["sets"][name]["1"])
        return np.array([math.nan if r is None else r for r in table["reward"]])


def cells(folder: Path = RESULTS) -> dict[str, list[Run]]:
    """The runs of every cell that have an advice and every arm of their comparison."""
    found: dict[str, list[Run]] = {}
    for path in sorted(folder.glob("*/seed-*/advice.json")):
        solved = json.loads(path.read_text(encoding="utf-8"))["start"]["lambda"]
        records = {"base": _read(path.parent / "base" / DONE)}
        for done in sorted((path.parent / "arms").glob(f"*/seed-0/{DONE}")):
            records[done.parent.parent.name] = _read(done)
        seed = int(path.parent.name.removeprefix("seed-"))
        curves = _read(path.with_name("curves.json"))
        run = Run(seed, Estimate(**solved), records, curves)
        found.setdefault(path.parent.parent.name, []).append(run)
    return {name: sorted(runs, key=lambda r: r.seed) for name, runs in found.items()}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def of_arm(runs: Sequence[Run], arm: str, name: str = HELD_OUT) -> NDArray[np.float64]:
    """Mean rewards, a row for each seed that has the arm."""
    return np.array([run.rewards(arm, name) for run in runs if arm in run.records])


def best(runs: Sequence[Run], arms: Sequence[str]) -> str:
    """Of some arms that every run has the best one on validation rows."""
    whole = [arm for arm in arms if all(arm in run.records for run in runs)]
    return max(whole, key=lambda arm: float(np.nanmean(of_arm(runs, arm, VALIDATION))))


def arms_of(runs: Sequence[Run]) -> list[str]:
    """The arms of a cell in the order of its table."""
    return [arm for arm in LABELS if any(arm in run.records for run in runs)]


def table(runs: Sequence[Run]) -> list[Row]:
    """Each arm of a cell: mean, less the best SFT-then-RL arm, lift-offs, pass@4, forgetting."""
    rival = best(runs, RL)
    rows = []
    for arm in arms_of(runs):
        own = [run for run in runs if arm in run.records]
        values = of_arm(own, arm)
        less = "" if arm == rival else paired(values, of_arm(own, rival)).signed
        high = sum(lifted(run, arm) for run in own)
        solved = [np.mean(np.array(_held(run, arm)["correct"]) > 0) for run in own]
        old = over_seeds(of_arm(own, arm, "old-rule"))
        rows.append(
            [
                LABELS[arm],
                str(over_seeds(values)),
                less,
                f"{high} of {len(own)}",
                f"{100 * float(np.mean(solved)):.1f}",
                f"{100 * old.mean:.1f}",
                f"{np.mean([run.flops(arm) for run in own]):.1e}",
            ]
        )
    return rows


def _held(run: Run, arm: str) -> Mapping[str, Any]:
    return run.records[arm]["sets"][HELD_OUT]["1"]


def by_seed(runs: Sequence[Run]) -> list[Row]:
    """Each seed: lambda, and the mean of every arm in %."""
    rows = []
    for run in runs:
        s = run.solved
        means = [
            f"{100 * float(np.nanmean(run.rewards(arm))):.1f}" if arm in run.records else ""
            for arm in arms_of(runs)
        ]
        rows.append([str(run.seed), f"{s.mean:.2g} [{s.low:.2g}, {s.high:.2g}]", *means])
    return rows


def halves(found: Mapping[str, Sequence[Run]]) -> list[Row]:
    """When AdaBack and the controller have come half of their way, in every run that has both."""
    rows = []
    for name, runs in found.items():
        for run in runs:
            if not all(arm in run.records for arm in CONTEXT[:2]):
                continue
            cells, spent = [], []
            for arm in CONTEXT[:2]:
                half = run.half(arm)
                cells.append("never" if half is None else f"{half[0]} ({half[1]:.2g})")
                spent.append(math.nan if half is None else half[1])
            ratio = spent[1] / spent[0]
            rows.append([name, str(run.seed), *cells, "" if math.isnan(ratio) else f"{ratio:.2f}"])
    return rows


def of_rl(run: Run) -> str:
    """The best SFT-then-RL arm of a run, on validation rows, among those that it has."""
    return best([run], RL)


def score(found: Mapping[str, Sequence[Run]]) -> Rule:
    """How often lambda above or below 1 foretold whether RL after SFT lifts off.

    RL has every chance that a run gave it: it has lifted off if its best arm has.
    """
    runs = [run for some in found.values() for run in some]
    scored = [r for r in runs if not BELOW <= r.solved.mean <= ABOVE]
    right = [r for r in scored if (r.solved.mean > 1) == lifted(r, of_rl(r))]
    return Rule(
        right=len(right),
        scored=len(scored),
        unscored=len(runs) - len(scored),
        low=min(r.solved.mean for r in runs),
        high=max(r.solved.mean for r in runs),
        where=WHERE,
        below=_means([r for r in runs if r.solved.mean < BELOW]),
        above=_means([r for r in runs if r.solved.mean > ABOVE]),
    )


def lifted(run: Run, arm: str) -> bool:
    """Whether an arm ends at a half at least."""
    return float(np.nanmean(run.rewards(arm))) >= LIFTED


def _means(runs: Sequence[Run]) -> tuple[float, float] | None:
    """Mean of the best RL arms after SFT, and of AdaBack after SFT."""
    if not runs:
        return None
    rl, context = (
        float(np.mean([np.nanmean(run.rewards(pick(run))) for run in runs]))
        for pick in (of_rl, lambda run: CONTEXT[0])
    )
    return round(rl, 4), round(context, 4)


def packaged(rule: Rule) -> str:
    """The text of the package's file."""
    return json.dumps(asdict(rule), indent=2) + "\n"


def markdown(head: Sequence[str], rows: Sequence[Row]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def of_page(found: Mapping[str, Sequence[Run]]) -> str:
    """What README.md has of every cell."""
    parts = []
    for name, runs in found.items():
        arms = [LABELS[arm] for arm in arms_of(runs)]
        parts += [f"### {name}\n", markdown(HEAD, table(runs))]
        parts += [markdown(["seed", "lambda", *arms], by_seed(runs))]
    head = ["cell", "seed", *(f"{LABELS[arm]}: step (FLOPs)" for arm in CONTEXT[:2]), "ratio"]
    parts += ["### Half of the way\n", markdown(head, halves(found))]
    words = "The rule, lambda above or below 1, was right in {} that it was scored on.\n"
    parts.append(words.format(score(found).score))
    return "\n".join(parts)


def of_guide(found: Mapping[str, Sequence[Run]]) -> str:
    """What docs/choosing.md has: every run, by lambda."""
    runs = [(name, run) for name, some in found.items() for run in some]
    rows = []
    for name, run in sorted(runs, key=lambda x: x[1].solved.mean):
        tried = ", ".join(
            f"{100 * float(np.nanmean(run.rewards(arm))):.1f}" for arm in RL if arm in run.records
        )
        sft, *context = (
            f"{100 * float(np.nanmean(run.rewards(arm))):.1f}" for arm in (SFT, *CONTEXT[:2])
        )
        n = name.split("-")[1].removeprefix("N")
        rows.append([f"{run.solved.mean:.2g}", n, str(run.seed), sft, tried, *context])
    head = ["lambda", "demonstrations", "seed", LABELS[SFT], "SFT, then RL: 3e-4, 1e-4"]
    return markdown([*head, *(LABELS[arm] for arm in CONTEXT[:2])], rows)


def with_tables(page: str, text: str) -> str:
    """A page with a text between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def main() -> None:
    """Print the tables, and write them where they stand if asked."""
    found = cells()
    made = dict(zip(PAGES, (of_page(found), of_guide(found)), strict=True))
    rule = packaged(score(found))
    print(*made.values(), rule, sep="\n")
    if "--write" in sys.argv[1:]:
        from picture import FILE, draw  # beside this file

        PACKAGED.write_text(rule, encoding="utf-8")
        FILE.write_text(draw(found), encoding="utf-8")
        for path, text in made.items():
            page = path.read_text(encoding="utf-8")
            path.write_text(with_tables(page, text), encoding="utf-8")


if __name__ == "__main__":
    main()
