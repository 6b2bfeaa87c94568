"""A model and its scheduler in a folder, as pipelines of diffusers store them, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prefix_rft.diffusion.library import library
from prefix_rft.diffusion.loss import Predict
from prefix_rft.diffusion.process import Process, process_of
from prefix_rft.support.errors import UserError, one_line
from prefix_rft.support.imports import load_function

PARTS = ("unet", "transformer")
"""Where a pipeline has its model: in the first of these folders that is there."""
SCHEDULER = "scheduler"


@dataclass(frozen=True)
class Model:
    """A model in float32 without dropout, and how noise gets on its examples.

    Attributes:
        network: the network.
        part: the name of its folder, one of ``PARTS``.
        scheduler: the scheduler's config.
        process: the process that it describes.
    """

    network: Any
    part: str
    scheduler: Mapping[str, Any]
    process: Process

    def save(self, folder: Path) -> None:
        """Write network and scheduler into a folder that :func:`load` reads."""
        self.network.save_pretrained(folder / self.part, safe_serialization=True)
        (folder / SCHEDULER).mkdir()
        text = json.dumps(dict(self.scheduler), indent=2)
        (folder / SCHEDULER / "scheduler_config.json").write_text(text + "\n", encoding="utf-8")


def load(folder: Path) -> Model:
    """Read a model of diffusers, a UNet or a transformer, from safetensors alone.

    Dropout is off for good: policy and reference are compared on the same draw, where each would
    drop something else.

    Raises:
        UserError: no such folder, a part of it is missing or damaged, or of another kind.
    """
    if not folder.is_dir():
        raise UserError(
            f"model '{folder}' is no folder: get one of the Hub's with hf download NAME "
            f"--local-dir {folder}"
        )
    part = next((p for p in PARTS if (folder / p / "config.json").is_file()), None)
    if part is None:
        raise UserError(
            f"model '{folder}' has neither {' nor '.join(f'{p}/config.json' for p in PARTS)}: give "
            "the folder of a pipeline of diffusers"
        )
    scheduler = _config(folder / SCHEDULER / "scheduler_config.json")
    process = process_of(scheduler, folder / SCHEDULER / "scheduler_config.json")
    diffusers = library()
    name = str(_config(folder / part / "config.json").get("_class_name"))
    kind: Any = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        raise UserError(f"'{folder / part / 'config.json'}': diffusers has no model {name!r}")
    try:
        network = kind.from_pretrained(str(folder / part), use_safetensors=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(
            f"model '{folder / part}' cannot be loaded: {one_line(error)}; its weights must be "
            "whole, and in safetensors"
        ) from error
    return Model(network.float().eval(), part, scheduler, process)


def _config(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"'{path}' does not exist: save the scheduler beside the model") from None
    except ValueError as error:
        raise UserError(f"'{path}' is damaged: it is no JSON") from error
    if not isinstance(data, dict):
        raise UserError(f"'{path}' is damaged: it is no mapping")
    return data


def predict_of(network: nn.Module, path: str | None, folder: Path, labels: bool) -> Predict:
    """How a network is called.

    A network with twice the channels of what goes in predicts variances in the second half (DiT,
    arXiv 2212.09748): neither the loss nor DDIM reads them, and they get no gradient.

    Args:
        network: the network.
        path: the import path of a function ``(network, x_t, t_B, condition) -> prediction``; None
            for the call that UNets and transformers of diffusers share.
        folder: modules in it can be named, too.
        labels: conditions are labels of classes; otherwise embeddings, or None.

    Raises:
        UserError: the function cannot be imported.
    """
    if path is not None:
        function = load_function(path, folder, "predict")
        return lambda x, t_B, condition: function(network, x, t_B, condition)
    key = "class_labels" if labels else "encoder_hidden_states"

    def predict(x: Tensor, t_B: Tensor, condition: Any) -> Tensor:
        given = {} if condition is None else {key: condition}
        output = network(x, timestep=t_B, **given, return_dict=False)[0]
        return output[:, : x.shape[1]] if output.shape[1] == 2 * x.shape[1] else output

    return predict


def classes_of(network: Any) -> int | None:
    """How many classes a network's labels may name; None where it does not say."""
    for key in ("num_class_embeds", "num_embeds_ada_norm"):
        if (count := network.config.get(key)) is not None:
            return int(count)
    return None
