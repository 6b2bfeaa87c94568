"""What a recipe of ``prefix-rft diffusion`` says; a key that its method ignores is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from prefix_rft.diffusion.loss import FLIPS
from prefix_rft.diffusion.pool import SOURCES, Pool
from prefix_rft.recipe.mapping import read_recipe
from prefix_rft.recipe.resolved import resolved_value
from prefix_rft.support.errors import (
    UserError,
    check_range,
    check_types,
    choose,
    refuse_unknown,
)

COMMAND = "diffusion"
METHODS = ("sspo", "dpo", "sft")


@dataclass(frozen=True)
class DiffusionRecipe:
    """A recipe. Paths are relative to its folder, ``runs`` to the working directory.

    Attributes:
        model: the folder of a pipeline of diffusers: unet/ or transformer/, and scheduler/.
        train_data: the jsonl file of rows.
        learning_rate: the rate of AdamW, constant; the paper's is not known, so there is no
            default.
        method: ``sspo``; ``dpo``, Diffusion-DPO on pairs (rows with a ``loser``); or ``sft``.
        max_steps: updates.
        batch_size: rows of an update.
        micro_batch_size: rows in one forward, each with its winner and its sample; all by default.
        weight_decay: the decay of AdamW.
        max_grad_norm: the norm to which gradients are cut; 0 leaves them.
        beta: coefficient in front of the difference of mean squared errors (sspo, dpo; 2000).
        flip: ``sign``, ``indicator`` or ``none`` (sspo; sign).
        reference: ``uniform``, ``first`` or ``latest`` of the checkpoints (sspo; uniform).
        pool: the most checkpoints to draw from (sspo with reference: uniform; 7).
        shared_noise: winner and sample get the same noise (sspo, dpo; true). Times are shared
            always.
        save_every: updates between checkpoints, which are the stages of sspo.
        sample_steps: steps of the sampler, of training and of the pictures in the report.
        pictures: pictures of a grid in the report; 0 for none.
        predict: ``module:function`` that calls the network, where diffusers' usual call does not.
        seed: decides the order of rows, noise, times and references.
        name: the run folder's name.
        runs: the folder in which run folders go.
        folder: the recipe's folder.
    """

    model: str
    train_data: str
    learning_rate: float
    method: str = "sspo"
    max_steps: int = 210
    batch_size: int = 16
    micro_batch_size: int | None = None
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    beta: float | None = None
    flip: str | None = None
    reference: str | None = None
    pool: int | None = None
    shared_noise: bool | None = None
    save_every: int = 30
    sample_steps: int = 20
    pictures: int = 16
    predict: str | None = None
    seed: int = 0
    name: str = "diffusion"
    runs: str = "runs"
    folder: Path = Path()

    @property
    def checkpoints(self) -> Pool:
        """Which checkpoints are references, and when they are taken."""
        if self.method != "sspo":
            return Pool(self.save_every, 1, "first")
        return Pool(self.save_every, self.pool or 1, str(self.reference))

    def resolved(self) -> dict[str, Any]:
        """All that decides the run, as plain data."""
        keys = {k: v for k, v in asdict(self).items() if k != "folder" and v is not None}
        return resolved_value({"command": COMMAND, **keys})


DEFAULTS: dict[str, dict[str, Any]] = {
    "sspo": {"beta": 2000.0, "shared_noise": True, "flip": "sign", "reference": "uniform"},
    "dpo": {"beta": 2000.0, "shared_noise": True},
    "sft": {},
}
"""The keys that not every method has, and their defaults."""
POOL = 7
LEAST = {
    "max_steps": 1, "batch_size": 1, "micro_batch_size": 1, "save_every": 1, "sample_steps": 1,
    "pool": 1, "pictures": 0, "weight_decay": 0, "max_grad_norm": 0,
}  # fmt: skip


def read(path: str | Path, overrides: Sequence[str] = ()) -> DiffusionRecipe:
    """Read a recipe.

    Raises:
        UserError: a key that is missing, unknown, of a wrong type or value, or without effect.
    """
    data = read_recipe(path, overrides)
    known = {f.name: str(f.type) for f in fields(DiffusionRecipe) if f.name != "folder"}
    refuse_unknown(f"key of a {COMMAND} recipe", data, known)
    for key in ("model", "train_data", "learning_rate"):
        if key not in data:
            raise UserError(f"recipe '{path}' needs the key '{key}'")
    check_types("recipe key", data, known)
    _check_values(data)
    method = data.get("method", METHODS[0])
    own = dict(DEFAULTS[method])
    for key in ("beta", "flip", "reference", "pool", "shared_noise"):
        if data.get(key) is not None and key not in (*own, "pool"):
            raise UserError(f"recipe key '{key}' has no effect with method: {method}")
    data = {**own, **{k: v for k, v in data.items() if v is not None}}
    if data.get("reference") == "uniform":
        data.setdefault("pool", POOL)
    elif "pool" in data:
        raise UserError("recipe key 'pool' has no effect without method: sspo, reference: uniform")
    return DiffusionRecipe(**data, folder=Path(path).parent)


def _check_values(data: dict[str, Any]) -> None:
    for key, names in (("method", METHODS), ("flip", FLIPS), ("reference", SOURCES)):
        if data.get(key) is not None:
            choose(f"value of recipe key '{key}'", data[key], names)
    for key, least in LEAST.items():
        if data.get(key) is not None:
            check_range(f"recipe key '{key}'", data[key], least)
    for key in ("beta", "learning_rate"):
        if data.get(key) is not None and data[key] <= 0:
            raise UserError(f"recipe key '{key}' must be above 0, got {data[key]}")
    name = data.get("name", COMMAND)
    if "/" in name or name in ("", ".", ".."):
        raise UserError(f"recipe key 'name' is the name of a folder, not a path: {name!r}")
