"""SPEFT as an adapter: PEFT's SHiRA at the places that demonstrations choose.

SHiRA trains ``r (m + n)`` entries of each m x n matrix that it is put on, as many as LoRA would, as
a vector beside frozen weights: only these have optimizer states and are saved. That is SPEFT (arXiv
2412.13488) with a static mask and a fixed number for each layer; a choice over all layers together
is only there with ``parameter_mask``.
"""

from __future__ import annotations

import copy
import os
from itertools import islice
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from datasets import Dataset
from torch import Tensor

from prefix_rft.core.saliency import WITHOUT_GRADIENTS, keep_most_salient, salience
from prefix_rft.data import DataError, Renderer, tokenize_demonstrations
from prefix_rft.data.render import end_of_text_ids
from prefix_rft.engines.adapters import SPARSE
from prefix_rft.engines.models import without_weights
from prefix_rft.engines.new_adapter import KEY, MASK, OWN_MASK
from prefix_rft.engines.trl.clock import template_kwargs
from prefix_rft.engines.trl.update.example_gradients import Example, drawn, example_gradients
from prefix_rft.engines.trl.update.mask_options import EXAMPLES
from prefix_rft.support.errors import UserError, one_line


def choose_places(config: Any, model: Any, tokenizer: Any, rows: Dataset, args: Any) -> None:
    """Let a sparse adapter have the most salient places of each matrix that it is put on.

    Nothing is done for another adapter, or where peft draws the places itself. At most 1,024
    demonstrations are looked at, drawn with the run's seed; processes share them.

    Args:
        config: the new adapter's ``peft.PeftConfig``, which is changed; None where there is none.
        model: the model that it is to be put on, which is brought to this process's device.
        tokenizer: the model's.
        rows: the rows to train on.
        args: the trainer's configuration.

    Raises:
        UserError: the adapter does not fit the model, or the weights are spread over processes.
        DataError: no row has a demonstration within the budget.
    """
    score = getattr(config, MASK, OWN_MASK)
    if getattr(config, "peft_type", None) != SPARSE or score == OWN_MASK:
        return
    launched = (os.environ.get(f"ACCELERATE_USE_{x}", "") for x in ("FSDP", "DEEPSPEED"))
    if args.deepspeed or args.fsdp or any(x.lower() in ("true", "1") for x in launched):
        raise UserError(
            f"recipe key '{KEY}.{MASK}': '{score}' looks at whole weights, which FSDP and "
            f"DeepSpeed spread over processes: give {OWN_MASK}"
        )
    sizes = trained_of_each(config, model)
    matrices = {name: model.get_submodule(name).weight for name in sizes}
    totals: dict[str, Tensor] = {}
    if score not in WITHOUT_GRADIENTS:
        state = PartialState()
        model.to(state.device)
        renderer, examples = demonstrations(model, tokenizer, rows, args)
        share = examples[state.process_index :: state.num_processes]

        def all_sum(x: Tensor) -> Tensor:
            return reduce(x, "sum")  # pyright: ignore[reportArgumentType, reportReturnType]

        totals = example_gradients(model, renderer, share, matrices, score, all_sum)
    places = {}
    for name, weight in matrices.items():
        found = {name: salience(score, weight, totals.pop(name, None))}
        places[model.get_submodule(name)] = keep_most_salient(found, count=sizes[name])[name]
    config.mask_fn = lambda layer, r, **kwargs: places.pop(layer)


def trained_of_each(config: Any, model: Any) -> dict[str, int]:
    """How many entries of each matrix the adapter trains, by the name of the layer.

    Raises:
        UserError: the adapter does not fit the model.
    """
    from peft import get_peft_model
    from peft.tuners.shira.layer import ShiraLayer

    bare = without_weights(model.config)
    with torch.device("meta"):
        try:
            adapted: Any = get_peft_model(bare, copy.deepcopy(config))
        except (ValueError, TypeError) as error:
            raise UserError(f"recipe key '{KEY}': {one_line(error)}") from error
    layers = adapted.get_base_model().named_modules()
    return {n: m.shira_weight["default"].numel() for n, m in layers if isinstance(m, ShiraLayer)}


def demonstrations(
    model: Any, tokenizer: Any, rows: Dataset, args: Any
) -> tuple[Renderer, list[Example]]:
    """Those that are looked at, and what makes ids of their prompts.

    Raises:
        DataError: no row has a demonstration within the budget.
    """
    ends = end_of_text_ids(tokenizer, model.generation_config)
    renderer = Renderer(tokenizer, ends, template_kwargs(args, tokenizer))
    column, budget = args.demonstration_column, args.max_completion_length
    cells: Any = rows[column] if column in rows.column_names else [None] * len(rows)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed)).tolist()
    some = rows.select(list(islice((i for i in order if cells[i]), EXAMPLES)))
    if not len(some):
        raise DataError(f"{KEY}.{MASK} looks at demonstrations, and no row has one in '{column}'")
    found, _ = tokenize_demonstrations(some, tokenizer, budget, column, renderer)
    return renderer, drawn(found, EXAMPLES, args.seed)
