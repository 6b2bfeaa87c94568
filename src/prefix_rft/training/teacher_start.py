"""The start model, its teachers and the first rows that it is to train on, ready to be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from prefix_rft.checks.teaching import limits_of
from prefix_rft.core.teacher import Teacher
from prefix_rft.data import Renderer, load_rows, tokenize_demonstrations
from prefix_rft.data.render import end_of_text_ids
from prefix_rft.engines.contexts import Contexts
from prefix_rft.engines.models import (
    give_template,
    hub,
    load_configs,
    load_model,
    load_tokenizer,
)
from prefix_rft.engines.setup import Setup
from prefix_rft.engines.teachers import check_columns
from prefix_rft.engines.trl.clock import template_kwargs
from prefix_rft.engines.trl.teachers import teacher_model
from prefix_rft.evaluation.samples import Request, Sample, graded, key_of, sampled_behind
from prefix_rft.rewards import missing_columns, visible
from prefix_rft.support.errors import UserError

Answer = tuple[list[int], Sample]
"""Ids of a completion, and what the grader says of it."""


@dataclass(frozen=True)
class StartModel:
    """The start model and the first rows that it is to train on.

    Attributes:
        setup: the resolved recipe.
        render: how texts become ids, and back.
        examples: the rows, with demonstrations as token ids.
        contexts: writes the prompts of teachers.
        model: the start model; None where nothing is to be sampled.
        others: the models of teachers that are others, by name.
    """

    setup: Setup
    render: Renderer
    examples: Dataset
    contexts: Contexts
    model: Any
    others: Mapping[str, Any]

    @classmethod
    def load(cls, setup: Setup, source: str, limit: int, samples: bool) -> StartModel:
        """Read rows, and load models if something is to be sampled.

        Args:
            setup: the resolved recipe, whose method has teachers.
            source: the start model's folder or name.
            limit: the first rows only.
            samples: whether something is to be sampled.

        Raises:
            UserError: a model, rows or a column that cannot be used, or nothing can be graded.
        """
        recipe, args, method = setup.recipe, setup.args, setup.method
        reading = recipe.reading(args.seed)
        rows = load_rows(recipe.train_data, folder=recipe.folder, reading=reading, limit=limit)
        where = hub(recipe.model_options)
        model: Any = None
        if samples:
            _check_reward(setup, rows)
            model, tokenizer = load_model(source, recipe.folder, dtype="auto", **where)
            config, generation = model.config, model.generation_config
        else:
            tokenizer = load_tokenizer(source, recipe.folder, **where)
            config, generation = load_configs(source, recipe.folder, **where)
        give_template(tokenizer, rows[0]["prompt"])
        ends = end_of_text_ids(tokenizer, generation)
        render = Renderer(tokenizer, ends, template_kwargs(args, tokenizer))
        if render.processor is not None:
            raise UserError(f"method '{method.name}' has teachers, which read no pictures yet")
        check_columns(method, rows)
        budget = args.max_completion_length
        examples: Any = tokenize_demonstrations(rows, render.tokenizer, budget, renderer=render)[0]
        limits = limits_of(setup, getattr(config, "max_position_embeddings", None))
        others: Mapping[str, Any] = {}
        if samples:
            if torch.accelerator.is_available():
                model.to(torch.accelerator.current_accelerator())
            others = {
                t.name: teacher_model(t, tokenizer).to(model.device)
                for t in method.teachers
                if t.weights == "model"
            }
        return cls(setup, render, examples, Contexts(render, examples, limits), model, others)

    def voice(self, teacher: Teacher) -> tuple[Any, AbstractContextManager[Any]]:
        """A teacher's model at the start, and a context in which it has the teacher's weights."""
        if teacher.weights == "model":
            return self.others[teacher.name], nullcontext()
        without = getattr(self.model, "disable_adapter", None)
        off = teacher.weights == "adapter_off" and without is not None
        return self.model, without() if off and without is not None else nullcontext()

    def answers(
        self,
        model: Any,
        prompts: Sequence[tuple[int, int, list[int]]],
        request: Request,
        tick: Callable[[int], None],
    ) -> list[Answer]:
        """Sampled and graded answers behind prompts, each with its example and row in the group.

        Args:
            model: the model that answers.
            prompts: for each its example, its row, and its ids.
            request: how to sample.
            tick: called now and then with how many have ended.
        """
        keys = [key_of(request, example, row) for example, row, _ in prompts]
        asked = [(ids, dict[str, Tensor]()) for _, _, ids in prompts]
        said = sampled_behind(model, self.render, asked, keys, request, tick)
        names = visible(self.examples.column_names)
        plain = self.examples.select_columns(names)
        reward, owners = self.setup.rewards[0], [dict(plain[i]) for i, _, _ in prompts]
        verdicts: list[Sample] = []
        for at in range(0, len(said), request.batch_size):
            part = slice(at, at + request.batch_size)
            verdicts += graded(self.render, owners[part], reward, said[part])
        return list(zip(said, verdicts, strict=True))


def _check_reward(setup: Setup, rows: Dataset) -> None:
    """Raise UserError where nothing says which answers to the rows are right."""
    if not setup.rewards:
        raise UserError(
            "the recipe has no reward, so nothing says which answers are right: give one, or "
            "--examples 0 for the prompts alone"
        )
    if missing := missing_columns(setup.rewards[:1], rows.column_names):
        raise UserError(missing[0])


@torch.no_grad()
def log_ratios(
    start: StartModel, teacher: Teacher, asked: list[int], shown: list[int], said: list[int]
) -> list[float]:
    """``D = log q - log p`` of each token of an answer, as the first step has it.

    Args:
        start: the start model, p.
        teacher: the teacher, q.
        asked: ids of the policy's prompt.
        shown: ids of the teacher's prompt.
        said: ids of the answer.
    """
    temperature = start.setup.args.temperature
    model, weights = start.voice(teacher)
    own = _log_probs(start.model, asked, said, temperature)
    with weights:
        told = _log_probs(model, shown, said, temperature)
    return (told - own).tolist()


def _log_probs(model: Any, prompt: list[int], said: list[int], temperature: float) -> Tensor:
    model.eval()
    ids = torch.tensor([[*prompt, *said]], device=model.device)
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float() / temperature
    return logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0].cpu()
