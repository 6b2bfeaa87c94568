"""``prefix-rft advise``: how far the start is from rewards, and what the measured table says of it.

The start model is sampled on rows that it is to train on; if asked, once more behind a short SFT on
a copy. Nothing of it touches the runs of the recipe.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from prefix_rft.engines.arguments import of_rollouts
from prefix_rft.engines.setup import Setup, set_up
from prefix_rft.evaluation.samples import Request
from prefix_rft.evaluation.start import MeasuredStart, measure_start
from prefix_rft.recipe.along import ALONG
from prefix_rft.recipe.recipe import BLOCKS, RecipeFile
from prefix_rft.recipe.stages import STAGES, stages_of
from prefix_rft.support.errors import UserError
from prefix_rft.training.train import train

START, SFT = "start", "sft"
SAMPLES = 16


@dataclass(frozen=True)
class Asked:
    """What is to be measured.

    Attributes:
        rows: the first rows only; None for all.
        samples: how many of each row; None for 16, or as many as a group has rows if that is more.
        seed: the seed of the samples.
        batch_size: rows sampled at once.
        sft_steps: steps of SFT on a copy, behind which it is measured again; None for none.
        folder: where samples and that copy are put.
    """

    rows: int | None
    samples: int | None
    seed: int
    batch_size: int
    sft_steps: int | None
    folder: Path


def advise(
    path: str,
    overrides: Sequence[str],
    asked: Asked,
    console: Console,
    progress: Callable[[str, int, int], None],
) -> dict[str, MeasuredStart]:
    """Measure the start model, and its copy behind SFT if asked.

    Args:
        path: the recipe; of several stages the first one that samples is what is advised on.
        overrides: ``key=value`` for it.
        asked: what to measure.
        console: the console for the SFT.
        progress: called with a job's name, the rows done, and those to do.

    Returns:
        what was measured, by ``start`` and perhaps ``sft``.

    Raises:
        UserError: the recipe cannot be used, it never samples, or the folder holds other samples.
    """
    file = RecipeFile.read(path, overrides)
    setups = resolved_stages(file)
    setup = next((s for s in setups if s.method.samples), None)
    if setup is None:
        raise UserError(
            "the recipe's method imitates and never samples, so no step of it has rows to solve: "
            "name one that does, such as method=dr_grpo"
        )

    request = Request(
        asked.samples or max(SAMPLES, setup.plan.generations),
        seed=asked.seed,
        batch_size=asked.batch_size,
    )

    def measured(model: str, name: str) -> MeasuredStart:
        return measure_start(setup, model, asked.rows, request, asked.folder / name, progress)

    found = {START: measured(setup.recipe.model_source(), START)}
    if asked.sft_steps is not None:
        name = f"{SFT}-{asked.sft_steps}"
        trained = asked.folder / name / "model"
        if not trained.is_dir():
            imitating = [i for i, s in enumerate(setups) if not s.method.samples]
            own = stages_of(file.data)[imitating[0]].keys if imitating else None
            keys = sft_keys(file.data, own, asked.sft_steps, name, asked.folder)
            train(path, [*overrides, *keys], console, resume=True)
        found[SFT] = measured(str(trained), f"behind-{name}")
    return found


def resolved_stages(file: RecipeFile) -> list[Setup]:
    """Every stage of a recipe, resolved."""
    setups = []
    for stage in range(len(file.stages)):
        with closing(set_up(file, stage)) as setup:
            setups.append(setup)
    return setups


def sft_keys(
    recipe: Mapping[str, Any], stage: Mapping[str, Any] | None, steps: int, name: str, folder: Path
) -> list[str]:
    """What makes of a recipe so many steps of imitation, as overrides.

    Args:
        recipe: its mapping.
        stage: the keys of a stage of it that imitates; None for ``sft`` with the recipe's keys.
        steps: optimizer steps.
        name: the run's name.
        folder: where the run's folder is put.
    """
    drop = [STAGES, *BLOCKS, *ALONG]
    keys: dict[str, Any] = dict(stage or {"method": SFT})
    if stage is None:
        drop += of_rollouts(recipe)
    keys |= {"max_steps": steps, "name": name, "runs": str(folder.resolve()), "eval_data": None}
    gone = [f"~{key}" for key in drop if key in recipe]
    return gone + [f"{k}={json.dumps(v)}" for k, v in keys.items()]
