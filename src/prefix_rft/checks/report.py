"""The report of ``prefix-rft check``: what was found, and what the run would cost."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefix_rft.checks.device_memory import estimate, has_head_norms
from prefix_rft.checks.evaluations import show_evaluations
from prefix_rft.checks.findings import Finding
from prefix_rft.checks.packing import advise_packing, why_whole
from prefix_rft.checks.precision import advise_precision
from prefix_rft.checks.rows import Checked, Scope, check_data
from prefix_rft.checks.start import show_start
from prefix_rft.checks.teaching import show_taught
from prefix_rft.checks.weights import count_weights
from prefix_rft.data.demonstrations import USABLE
from prefix_rft.data.render import end_of_text_ids
from prefix_rft.engines.models import (
    UncountedError,
    hub,
    load_configs,
    load_tokenizer,
    quiet,
)
from prefix_rft.engines.setup import Setup, set_up
from prefix_rft.recipe.recipe import RECOMPUTE, RecipeFile, recompute_key
from prefix_rft.recipe.reward_options import RewardLearning
from prefix_rft.rewards.verdict import STATUSES
from prefix_rft.support.console import say
from prefix_rft.support.display import Display
from prefix_rft.support.errors import UserError
from prefix_rft.support.untrusted import visible
from prefix_rft.support.writing import check_folder

SHOWN = 20
SCHEDULE_POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def run_check(
    path: str, overrides: Sequence[str], console: Console, limit: int | None = None
) -> bool:
    """Check a recipe and its data; whether nothing would waste time.

    Raises:
        UserError: a recipe that cannot be resolved.
    """
    quiet()
    file, count = RecipeFile.read(path, overrides), 0
    names = file.stages
    for stage, name in enumerate(names):
        if file.recipe(stage).turn:
            continue  # the same as the first stage of reward learning, on rows checked already
        if len(names) > 1:
            say(console, f"stage {stage + 1} of {len(names)}: {name}")
        with (
            closing(set_up(file, stage)) as setup,
            ThreadPoolExecutor(1) as graders,
        ):
            if words := setup.engine.verify_settings(setup.recipe, setup.args):
                say(console, words)
            count += check_setup(setup, console, graders, limit)
    if count:
        several = "problems" if count > 1 else "problem"
        problems = Text.assemble((f"{count} {several}:", "bold red"), " training would waste time")
        console.print(problems)
    else:
        ready = Text.assemble(("ready:", "bold green"), f" prefix-rft train {visible(path)}")
        console.print(ready, soft_wrap=True)
    return not count


def check_setup(
    setup: Setup, console: Console, graders: ThreadPoolExecutor, limit: int | None
) -> int:
    """Check the data and print the report; the number of problems."""
    recipe = setup.recipe
    check_folder(Path(setup.args.output_dir), "the run folder")
    source, where = recipe.model_source(), hub(recipe.model_options)
    tokenizer = load_tokenizer(source, recipe.folder, **where)
    config, generation = load_configs(source, recipe.folder, **where)
    eos_ids = end_of_text_ids(tokenizer, generation)
    positions = getattr(config, "max_position_embeddings", None)
    try:  # an adapter that does not fit the model is refused before the rows are read
        weights = count_weights(setup, config)
    except UncountedError as error:
        weights = str(error)

    say(console, f"{setup.method.name}: {setup.method.about.summary}")
    parts = []
    for data in [recipe.train_data, *([recipe.eval_data] if recipe.eval_data else [])]:
        with Display(console) as display:
            display.phases.begin("checking rows:")
            checked = check_data(
                setup,
                data,
                tokenizer,
                eos_ids,
                positions,
                graders,
                Scope(limit, training=not parts),
                display.phases.at,
            )
        parts.append(checked)
        show_data(console, checked)
        show_taught(console, setup, checked.taught)
    train = parts[0]
    if len(parts) > 1 and (both := len(train.prompts & parts[1].prompts)):
        parts[1].findings.add(
            f"{both} of its prompts are also in train_data: the evaluation will look too good",
            "drop them from one of the two",
            serious=False,
        )
    show_batches(console, setup, train)
    if setup.recipe.eval_every is not None and len(parts) > 1:
        show_evaluations(console, setup, steps_of(setup, train), train.findings, parts[1].rows)
    show_start(console, setup)
    show_reward_learning(console, setup, train)
    show_schedule(console, setup, train)
    show_memory(console, setup, train, config, weights)
    advise_precision(setup, weights, train.findings)
    advise_packing(setup, config, train.findings)
    for checked in parts:
        show_findings(console, f"notes on {checked.name}", checked.findings.notes, "yellow")
    for checked in parts:
        show_findings(console, f"problems in {checked.name}", checked.findings.problems, "red")
    return sum(len(checked.findings.problems) for checked in parts)


def show_reward_learning(console: Console, setup: Setup, train: Checked) -> None:
    """What the learnt reward of a stage is made of, which no other line counts."""
    if setup.recipe.reward_learning is None:
        return
    options = RewardLearning.read(setup.recipe.reward_learning)
    if not train.reasons[USABLE]:
        train.findings.add("reward_learning learns from demonstrations, and no row has one")
    rows = min(train.with_demonstration, options.prompts_per_stage or train.with_demonstration)
    say(
        console,
        f"reward_learning: {options.stages} stages, each of which samples at most {rows} prompts "
        f"{options.samples} times and trains a reward model on these pairs before its "
        "steps; that model's memory and time are not in the figures below",
    )


def show_data(console: Console, checked: Checked) -> None:
    """Rows, lengths, and what the rewards say of the demonstrations."""
    shape = f" read as {checked.shape}" if checked.shape else ""
    say(console, f"\n{checked.name}: {checked.rows} rows{shape}")
    kept = checked.reasons[USABLE]
    text = f"{kept} demonstrations in {checked.with_demonstration} rows"
    for why, n in checked.reasons.items():
        text += f"; {n} dropped: {why}" if why != USABLE else ""
    say(console, text)
    if not checked.rows:
        return
    table = numbers("tokens", "median", "90 %", "longest")
    for name, lengths in (
        ("prompt", checked.prompt_lengths),
        ("demonstration with EOS", checked.demonstration_lengths),
    ):
        if lengths:
            table.add_row(name, *(str(quantile(lengths, q)) for q in (0.5, 0.9, 1.0)))
    console.print(table)
    if any(checked.verdicts.values()):
        seen = [s for s in STATUSES if any(v[s] for v in checked.verdicts.values())]
        table = numbers("demonstrations to", *seen)
        for name, counts in checked.verdicts.items():
            table.add_row(name, *(str(counts[s]) for s in seen))
        console.print(table)


def numbers(first: str, *others: str, title: str | None = None) -> Table:
    """A table of numbers under these headings."""
    table = Table(first, *others, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def quantile(values: Sequence[int], q: float) -> int:
    """The smallest value that at least a share ``q`` of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def steps_of(setup: Setup, train: Checked) -> int:
    """The optimizer steps of the run, as far as its rows are known."""
    kept = train.kept
    return setup.total_steps(kept.rows if setup.method.samples else kept.demonstrations)


def show_batches(console: Console, setup: Setup, train: Checked) -> None:
    """The batch arithmetic in words."""
    plan, method = setup.plan, setup.method
    kept = train.kept
    rows = kept.rows if method.samples else kept.demonstrations
    steps = steps_of(setup, train)
    iterations = setup.engine.iterations(setup.args)
    say(console, f"\n{plan}")
    share = kept.with_demonstration / kept.rows if kept.rows else 0.0
    for number, what in (
        (method.rows.num_hybrid, "start from a demonstration"),
        (method.rows.num_demonstrations, "are whole demonstrations"),
    ):
        if method.samples and number and train.rows and method.rows.fixed:
            say(
                console,
                f"about {plan.prompts * number * share:.1f} of the {plan.rows} rows of a step "
                f"{what} ({number} of {plan.generations} in a group that has one)",
            )
    if method.samples and (lost := train.rows - kept.rows):
        say(console, f"{kept.rows} rows are trained on; {lost} dropped: unreadable gold answer")
    usable = train.reasons[USABLE]
    if setup.recipe.only_correct_demonstrations and usable > kept.demonstrations:
        lost = usable - kept.demonstrations
        say(console, f"{kept.demonstrations} demonstrations are used; {lost} dropped: not correct")
    text = f"{steps} optimizer steps"
    if method.samples:
        updates = setup.args.steps_per_generation // setup.args.gradient_accumulation_steps
        text += f", {updates * iterations} for each generation of rollouts"
        epochs = steps * plan.prompts / iterations / rows if rows else 0.0
    else:
        epochs = steps / setup.steps_of_epoch(rows) if rows else 0.0
    say(console, f"{text}; {epochs:.2f} passes over the data{proviso(setup, train)}")


def proviso(setup: Setup, train: Checked) -> str:
    """What the number of steps hangs on, where it is not known."""
    if setup.args.max_steps > 0:
        return ""
    parts = [f"; of these {train.rows} rows alone"] if not train.whole else []
    parts += ["; at most: rif leaves out prompts before"] if setup.recipe.rif is not None else []
    return "".join(parts)


def show_schedule(console: Console, setup: Setup, train: Checked) -> None:
    """The law of the prefix length along the run."""
    sampler = setup.method.rows.prefix
    steps = setup.total_steps(train.kept.rows)
    if (
        sampler is None
        or not setup.method.rows.num_hybrid
        or not train.demonstration_lengths
        or not steps
    ):
        return
    mean_length = sum(train.demonstration_lengths) / len(train.demonstration_lengths)
    headings = ("step", "shortest", "longest", "mean", "mean tokens")
    table = numbers(*headings, title="prefix of a demonstration")
    table.columns[0].justify = "right"
    for step in dict.fromkeys(round(point * (steps - 1)) for point in SCHEDULE_POINTS):
        low, high = sampler.interval(step, steps)
        mean = low + (high - low) * sampler.alpha / (sampler.alpha + sampler.beta)
        table.add_row(
            str(step), f"{low:.0%}", f"{high:.0%}", f"{mean:.0%}", f"{mean * mean_length:.0f}"
        )
    console.print(table)


def show_memory(
    console: Console, setup: Setup, train: Checked, config: Any, weights: tuple[int, int] | str
) -> None:
    """The estimated peak, part by part.

    Args:
        console: the console to print on.
        setup: the resolved recipe.
        train: what was seen of the rows to train on.
        config: the model's transformers config.
        weights: the number of weights, and of those that are trained; or why it is not known.
    """
    if isinstance(weights, str):
        say(console, f"memory: not estimated, {weights}")
        return
    parameters, trained = weights
    args, method = setup.args, setup.method
    dtype = str(setup.recipe.model_options.get("dtype", "float32"))
    weight_bytes = 2 if "16" in dtype else 4
    mixed = bool(args.bf16 or args.fp16)
    samples = method.samples and not getattr(args, "use_vllm", False)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rows = args.generation_batch_size // processes if samples else 0
    try:
        # Rows that imitate have prompts of their own.
        group = getattr(args, "num_generations", 1)
        memory = estimate(
            config,
            parameters=parameters,
            trained=trained,
            micro_batch_size=setup.plan.micro_batch_size,
            generation_rows=rows,
            prompt_length=max(train.prompt_lengths, default=0),
            completion_length=args.max_completion_length,
            weight_bytes=weight_bytes,
            compute_bytes=2 if mixed else weight_bytes,
            activation_checkpointing=any(getattr(args, k, False) for k in RECOMPUTE),
            # Without its adapter, or with another copy of it, the policy is its own reference.
            reference_model=method.needs_reference and trained == parameters,
            samples=samples,
            triton=torch.cuda.is_available(),
            packed=group if why_whole(setup, config) is None else None,
            head_norms=has_head_norms(config),
            accumulates=args.gradient_accumulation_steps > 1,
        )
    except UserError as error:
        say(console, f"memory: not estimated, {error}")
        return
    title = f"{parameters:,} parameters"
    title += f", {trained:,} trained" if trained < parameters else ""
    table = numbers("memory of one process", "MiB", title=title)
    for name, size in memory.parts.items():
        table.add_row(name, f"{size / 2**20:,.0f}")
    for name in ("training", "sampling") if samples else ("training",):
        table.add_row(
            f"together while {name}", f"{getattr(memory, name) / 2**20:,.0f}", style="bold"
        )
    console.print(table)
    if torch.cuda.is_available():
        there = torch.cuda.get_device_properties(0).total_memory
        if memory.peak > there:
            train.findings.add(
                f"about {memory.peak / 2**30:.0f} GiB are needed at the peak, the device has "
                f"{there / 2**30:.0f}",
                f"lower micro_batch_size, or set {recompute_key(vars(args))}: true",
            )


def show_findings(console: Console, title: str, findings: list[Finding], colour: str) -> None:
    """One line for each finding."""
    if not findings:
        return
    console.print()
    console.print(Text(visible(title), style=f"bold {colour}"), soft_wrap=True)
    for finding in findings[:SHOWN]:
        say(console, f"- {finding}")
    if len(findings) > SHOWN:
        say(console, f"- and {len(findings) - SHOWN} more")
