"""``prefix-rft inspect``: one row of a group, token by token, coloured by what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from prefix_rft.core import select_prefix
from prefix_rft.data import DataError, Renderer, find_source, read_rows
from prefix_rft.data.demonstrations import EXAMPLE, IDS, USABLE, usable_or_why
from prefix_rft.data.pictures import asked, names
from prefix_rft.data.render import end_of_text_ids
from prefix_rft.engines.hints import hinted
from prefix_rft.engines.models import (
    give_template,
    hub,
    load_configs,
    load_model,
    load_tokenizer,
    quiet,
)
from prefix_rft.engines.pictures import model_inputs, prompt_inputs, together
from prefix_rft.engines.plan import RowPlan, RunPoint, plan_rows
from prefix_rft.engines.sampling import SamplingSettings, generate, sample, supported
from prefix_rft.engines.setup import Setup, configure
from prefix_rft.engines.trl.clock import template_kwargs
from prefix_rft.rewards import grade_texts
from prefix_rft.rewards.checked import name_of
from prefix_rft.support.console import say
from prefix_rft.support.errors import UserError
from prefix_rft.support.untrusted import visible

PROMPT, PREFIX, CHOSEN = "prompt", "prefix", "prefix, of highest entropy"
CONTEXT, TRAINED, WHOLE = "prefix, as context", "prefix, all of it", "demonstration"
SAMPLED, END, REST = "continuation", "EOS", "rest of the demonstration"
SEEN, ANSWER = "what the teacher sees beside it", "answer"
LIKELIER, UNLIKELIER = "answer, likelier to the teacher", "answer, less likely to it"
STYLES = {
    PROMPT: "blue",
    PREFIX: "green",
    CHOSEN: "bold black on green",
    CONTEXT: "bright_black",
    TRAINED: "green",
    WHOLE: "green",
    SAMPLED: "yellow",
    END: "bold white on red",
    REST: "bright_black",
    SEEN: "magenta",
    ANSWER: "yellow",
    LIKELIER: "bold green",
    UNLIKELIER: "bold red",
}
MARKS = {CHOSEN: "«»", LIKELIER: "«»", UNLIKELIER: "»«"}
"""What stands around some, for lack of colours."""


NOTABLE = 0.5
"""Nats: of a token that a teacher finds so much likelier, or less likely, it is said."""
Prompt = tuple[list[int], dict[str, Tensor]]
"""Its token ids, and what a model is given of its pictures beside them."""


@dataclass(frozen=True)
class Token:
    """An id and its role."""

    id: int
    role: str


def run_inspect(
    path: str,
    overrides: Sequence[str],
    console: Console,
    number: int = 1,
    step: int = 0,
    model: str | None = None,
    ids: bool = False,
) -> None:
    """Show the ``number``-th row of the training data as the first row of its group at ``step``.

    Args:
        path: the recipe.
        overrides: ``key=value`` strings.
        console: the console to print on.
        number: counts from 1.
        step: optimizer step, which decides the prefix.
        model: folder or Hub name; with it, prefix tokens are selected and a continuation sampled.
        ids: print token ids too.

    Raises:
        UserError: there is no such row or step, or the recipe cannot be resolved.
    """
    quiet()
    with closing(configure(path, overrides)) as setup:
        show_row(setup, console, number, step, model, ids)


def show_row(
    setup: Setup, console: Console, number: int, step: int, model: str | None, ids: bool
) -> None:
    """Show one row of a resolved recipe."""
    source = model or setup.recipe.model_source()
    net: Any = None
    if model is not None:
        net, tokenizer = load_model(source)
        generation = net.generation_config
    else:
        where, beside = hub(setup.recipe.model_options), setup.recipe.folder
        tokenizer, generation = (
            load_tokenizer(source, beside, **where),
            load_configs(source, **where)[1],
        )
    values, rows = _row(setup, number)
    give_template(tokenizer, values["prompt"])
    template = template_kwargs(setup.args, tokenizer)
    render = Renderer(tokenizer, end_of_text_ids(tokenizer, generation), template)
    steps = setup.total_steps(rows)
    if not 0 <= step < max(1, steps):
        raise UserError(f"--step must be from 0 to {max(0, steps - 1)}, got {step}")

    question = asked(values)
    texts = values["demonstration"]
    ids_of = render.demonstrations(texts, not isinstance(values["prompt"], str))
    demonstrations = [
        i
        for i, t in zip(ids_of, texts, strict=True)
        if usable_or_why(i, t, render, setup.args.max_completion_length) == USABLE
    ]
    plan = None
    if setup.method.samples:
        plan = first_row(setup, render, demonstrations, number, step, steps)
        if (hint := setup.method.planner.hint) is not None and plan.hint:
            question = hinted(question, plan.hint, hint, render)
    prompt, pictures = prompt_inputs(render, question)
    tokens = [Token(i, PROMPT) for i in prompt]
    if plan is not None:
        tokens += hybrid_row(setup, render, (prompt, pictures), demonstrations, plan, net)
    elif demonstrations:
        tokens += ended(demonstrations[0], WHOLE, render)
    if held := names(values):
        say(console, f"with {', '.join(held)}")
    show(console, tokens, render, ids)
    for reward in setup.rewards:
        read = render.completions(ids_of)
        for index, (text, text_ids) in enumerate(zip(read, ids_of, strict=True), 1):
            verdict = grade_texts(reward, [values], [text], [text_ids])[0]
            words = f": {verdict.detail}" if verdict.detail else ""
            line = f"demonstration {index} is '{verdict.status}' to '{name_of(reward)}'{words}"
            say(console, line)


def _row(setup: Setup, number: int) -> tuple[dict[str, Any], int]:
    """The row with that number, and how many there are."""
    if number < 1:
        raise UserError(f"--row counts from 1, got {number}")
    source = find_source(setup.recipe.train_data, setup.recipe.folder)
    rows = read_rows(source, setup.recipe.reading(setup.args.seed))
    pair = next(islice(rows, number - 1, None), None)
    if pair is None:
        raise DataError(f"{source.name} has no row {number}")
    return pair[1], number + sum(1 for _ in rows)


def first_row(
    setup: Setup,
    render: Renderer,
    demonstrations: list[list[int]],
    number: int,
    step: int,
    steps: int,
) -> RowPlan:
    """The plan of the group's first row, as training makes it."""
    return plan_rows(
        setup.method,
        [{IDS: demonstrations, EXAMPLE: number - 1}],
        RunPoint(
            setup.plan.generations,
            setup.args.seed,
            step,
            steps,
            setup.args.max_completion_length,
            render.newlines if setup.method.planner.needs_boundaries else {},
        ),
    )[0]


def hybrid_row(
    setup: Setup,
    render: Renderer,
    prompt: Prompt,
    demonstrations: list[list[int]],
    plan: RowPlan,
    net: Any,
) -> list[Token]:
    """The completion of the group's first row: the prefix that training draws, and what follows."""
    prefix, method = list(plan.prefix), setup.method
    if plan.whole:
        return ended(prefix, WHOLE, render)
    role = CONTEXT
    if method.trains("prefix"):
        role = PREFIX if method.selection is not None else TRAINED
    row = [Token(i, role) for i in prefix]
    if net is None:
        rest = next((d[len(prefix) :] for d in demonstrations if d[: len(prefix)] == prefix), [])
        return row + (ended(rest, REST, render) if prefix else [])
    if role == PREFIX:
        kept = chosen(setup, net, prompt, prefix)
        row = [Token(i, CHOSEN if k else PREFIX) for i, k in zip(prefix, kept, strict=True)]
    return row + ended(continuation(setup, net, render, prompt, prefix), SAMPLED, render)


def ended(ids: list[int], role: str, render: Renderer) -> list[Token]:
    """Tokens of one role, with the end of the sequence marked."""
    return [Token(i, END if i in render.eos_ids else role) for i in ids]


@torch.no_grad()
def chosen(setup: Setup, net: Any, prompt: Prompt, prefix: list[int]) -> list[bool]:
    """Which prefix tokens keep their advantage if this row's prefix were ranked alone."""
    if not prefix:
        return []
    prompt_ids, pictures = prompt
    inputs = model_inputs(prompt_ids, pictures, prefix, net.device)
    logits: Tensor = net(**inputs).logits[:, len(prompt_ids) - 1 : -1].float()
    logits = logits / setup.args.temperature
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    every = torch.ones_like(entropy, dtype=torch.bool)
    return select_prefix(setup.method, every, entropy, setup.args.seed)[0].tolist()


def continuation(
    setup: Setup, net: Any, render: Renderer, prompt: Prompt, prefix: list[int]
) -> list[int]:
    """One sample of the policy behind prompt and prefix, within the completion budget."""
    args = setup.args
    pad: Any = render.tokenizer.pad_token_id
    settings = SamplingSettings(
        render.eos_ids, pad, args.temperature, args.top_k, args.top_p, args.min_p
    )
    budget = args.max_completion_length - len(prefix)
    more = dict(args.generation_kwargs or {})
    if args.repetition_penalty != 1.0:
        more = {"repetition_penalty": args.repetition_penalty, **more}
    net.eval()
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        ids, pictures = prompt
        if supported(net) and not more:
            return sample(net, [ids], [budget], settings, [prefix])[0]
        shown = [together([pictures], [len(prefix)])] if pictures else []
        return generate(net, [[*ids, *prefix]], budget, settings, more, shown)[0]


def show(console: Console, tokens: list[Token], render: Renderer, ids: bool) -> None:
    """The legend with counts, then the row.

    Args:
        console: the console to print on.
        tokens: the row.
        render: how ids become texts.
        ids: print token ids too.
    """
    reasons = {
        PROMPT: "not trained",
        PREFIX: "not trained",
        CHOSEN: "trained with the row's advantage",
        CONTEXT: "not trained",
        TRAINED: "trained",
        WHOLE: "trained",
        SAMPLED: "sampled and trained",
        END: "trained where the row has it",
        REST: "not in the row: the policy goes on from the prefix",
        SEEN: "the policy does not",
        ANSWER: "the policy's own, which the teacher scores; log q - log p is near 0",
        LIKELIER: f"log q - log p is above {NOTABLE:g} nats: «»",
        UNLIKELIER: f"log q - log p is below -{NOTABLE:g} nats: »«",
    }
    roles = [t.role for t in tokens]
    if CHOSEN not in roles:
        reasons[PREFIX] = "its tokens of highest entropy are trained; give --model to see them"
    for role, reason in reasons.items():
        if n := roles.count(role):
            count = f" {n} token{'s' if n > 1 else ''}, {reason}"
            line = Text.assemble((f" {role} ", STYLES[role]), count)
            console.print(line, soft_wrap=True)
    console.print()
    text, done, before = Text(), 0, ""
    for role, run in groupby(tokens, key=lambda t: t.role):
        run_ids = [t.id for t in run]
        done += len(run_ids)
        # What this run adds to the text: alone, it could lose spaces or half a character.
        after: Any = render.tokenizer.decode([t.id for t in tokens[:done]])
        words = visible(after.removeprefix(before)).replace("\n", "↵\n")
        left, right = MARKS.get(role, ("", ""))
        text.append(f"{left}{words}{right}", style=STYLES[role])
        if ids:
            text.append(f"{run_ids}", style="dim")
        before = after
    console.print(text, soft_wrap=True)
    console.print()
