"""``reward_learning``: a stage's reward, learnt before its policy is trained (arXiv 2405.17888).

Algorithm 1: in each stage the policy as it stands answers the prompts that have a demonstration;
a reward model learns to tell demonstrations from these answers; then the policy is trained on that
reward, with the KL to the policy that the first stage began with.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset

from prefix_rft.data.demonstrations import IDS
from prefix_rft.engines.adapters import find_adapter
from prefix_rft.engines.models import hub
from prefix_rft.engines.setup import Setup
from prefix_rft.engines.state import hash_of_columns
from prefix_rft.engines.trl.pair_trainer import train_reward_model
from prefix_rft.engines.trl.reward_model import LearntReward, load_reward_model
from prefix_rft.evaluation.along import same_random_state
from prefix_rft.evaluation.samples import drawn
from prefix_rft.recipe.recipe import Recipe
from prefix_rft.recipe.reward_options import KEY, RewardLearning
from prefix_rft.support.console import say
from prefix_rft.support.display import Display
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import write_json
from prefix_rft.training.held_out import request_of

MODEL, RECORD = "reward_model", "reward_learning.json"
"""What a stage leaves in its run folder: the reward model, and how it was learnt."""

LAST = 10
"""Lines of a stage's log whose mean says how well the reward tells pairs apart in the end."""

Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class LearningStage:
    """What a stage of reward learning starts from.

    Attributes:
        options: the recipe's ``reward_learning``.
        reward_from: the folder or name of what the reward model starts from.
        reference: the model that the first stage began with.
    """

    options: RewardLearning
    reward_from: str
    reference: str

    @classmethod
    def of(cls, setup: Setup) -> LearningStage | None:
        """The stage that a recipe describes; None where it learns no reward.

        Raises:
            UserError: the stage before it has left no reward model, or a later stage of an adapter
                has no model without it to compare with.
        """
        recipe = setup.recipe
        if recipe.reward_learning is None:
            return None
        options, source = RewardLearning.read(recipe.reward_learning), recipe.model_source()
        if recipe.turn == 0:
            return cls(options, options.model or source, source)
        before = Path(source).parent
        if not (before / MODEL).is_dir() or not (before / RECORD).is_file():
            raise UserError(
                f"{KEY}: stage {recipe.turn + 1} goes on with the reward of the stage before, "
                f"which is not in '{before}': begin again"
            )
        reference = str(record_in(before)["reference"])
        if setup.args.beta and find_adapter(reference) is not None:
            raise UserError(
                f"{KEY} with beta compares with the model that it began with, but '{reference}' is "
                "an adapter: merge it first (prefix-rft merge), or leave out beta"
            )
        return cls(options, str(before / MODEL), reference)

    def options_of(self, recipe: Recipe) -> dict[str, Any]:
        """The options with which the recipe's model is loaded, where the reward starts from it."""
        own = recipe.turn == 0 and self.options.model is None
        return recipe.model_options if own else {}

    @contextmanager
    def compares(self, model: Any) -> Iterator[None]:
        """While the trainer is made, TRL finds its reference model where the first stage began.

        TRL loads it from where the model's config says that the model is from.
        """
        config = model.config
        named, config._name_or_path = config._name_or_path, self.reference
        try:
            yield
        finally:
            config._name_or_path = named


def compare_with_base(policy: Any, turn: int) -> None:
    """Have TRL compare an adapter of a later stage with its base, with which the first one began.

    Args:
        policy: the policy; TRL takes its base where there is no adapter ``ref``.
        turn: the stages of reward learning before this one.
    """
    if turn > 0 and "ref" in getattr(policy, "peft_config", {}):
        policy.delete_adapter("ref")


def rows_of_stage(rows: Dataset, options: RewardLearning, turn: int, seed: int) -> Dataset:
    """The rows of a stage: all, or the next of an order that the seed decides.

    Args:
        rows: the rows of the run.
        options: the recipe's ``reward_learning``.
        turn: the stages before it.
        seed: the run's seed.
    """
    size = options.prompts_per_stage
    if size is None or size >= len(rows):
        return rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return rows.select([order[(turn * size + i) % len(rows)] for i in range(size)])


def learn_reward(
    setup: Setup, stage: LearningStage, trainer: Any, learnt: LearntReward, display: Display
) -> None:
    """Learn the stage's reward, or read it where the run has learnt it already.

    Args:
        setup: the resolved recipe.
        stage: what the stage starts from.
        trainer: the run's trainer, before its first step.
        learnt: the reward that the trainer has, which becomes what is learnt here.
        display: hears how far it is.

    Raises:
        UserError: the model is sharded, has pictures, or no row has a demonstration that counts.
    """
    refuse(trainer)
    args, folder = setup.args, Path(setup.args.output_dir)
    tokenizer, device = trainer.processing_class, trainer.accelerator.device
    rows = with_demonstrations(trainer.train_dataset)
    decided = decided_by(setup, stage, rows)
    there = recorded(folder, decided)
    micro_batch = args.per_device_train_batch_size
    with same_random_state(device):
        if there is None:
            display.soon()
            pairs = pairs_of(setup, stage, trainer, rows, display)
            torch.manual_seed(args.seed)
            beside, where = setup.recipe.folder, hub(stage.options_of(setup.recipe))
            model = load_reward_model(stage.reward_from, tokenizer, beside, **where)
            display.phases.begin("learning the reward")
            lines = train_reward_model(
                *(model, tokenizer, pairs, stage.options, args),
                folder / MODEL,
                max(1, micro_batch // 2),
            )
            there = {"decided_by": decided, "reference": stage.reference, "turn": setup.recipe.turn}
            there |= {"pairs": lengths_of(pairs), "log": lines}
            if trainer.accelerator.is_main_process:
                write_json(folder / RECORD, there)
            trainer.accelerator.wait_for_everyone()
        model = load_reward_model(str(folder / MODEL), tokenizer, folder).to(device)
    learnt.become(model, trainer.renderer, micro_batch, trainer.accelerator.autocast)
    for words in told(there):
        say(display.console, words)


def refuse(trainer: Any) -> None:
    """Refuse what a reward cannot be learnt with.

    Raises:
        UserError: the weights are sharded, or the model reads pictures.
    """
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise UserError(f"{KEY} needs whole weights on each process: leave out DeepSpeed and FSDP")
    if trainer._is_vlm:
        raise UserError(f"{KEY} reads texts only, and the model reads pictures: leave it out")


def with_demonstrations(rows: Dataset) -> Dataset:
    """The rows that have a demonstration.

    Raises:
        UserError: none has.
    """
    places = [i for i, ids in enumerate(rows[IDS]) if ids]
    if not places:
        raise UserError(f"{KEY} learns from demonstrations, but no row has one")
    return rows.select(places)


def pairs_of(
    setup: Setup, stage: LearningStage, trainer: Any, rows: Dataset, display: Display
) -> list[Pair]:
    """A demonstration and a sample of the policy as it stands, both behind their prompt.

    Each sample of a row has the next of its demonstrations; pairs that are the same are left out.

    Raises:
        UserError: all pairs are the same.
    """
    render, seed = trainer.renderer, seed_of(setup.args.seed, setup.recipe.turn)
    asked = request_of(setup, trainer.processing_class, stage.options.samples, seed)
    request = replace(asked, temperature=setup.args.temperature)
    display.phases.begin("sampling what the reward is to tell from demonstrations:", len(rows))
    mine = list(range(trainer.processes.index, len(rows), trainer.processes.count))
    found: list[tuple[int, int, Pair]] = []
    if mine:
        model, places = trainer.policy, iter(mine)
        tick = lambda done: display.phases.at(done * len(rows) // len(mine))  # noqa: E731
        with trainer.accelerator.autocast():
            parts = drawn(model, render, rows.select(mine), request, mine, tick)
            for part, sampled in parts:
                found += placed(part, sampled, render.prompts(list(part["prompt"])), places)
    pairs = [pair for _, _, pair in sorted(gather_object(found)) if pair[0] != pair[1]]
    if not pairs:
        raise UserError(f"{KEY}: every sample is its demonstration: there is nothing to learn")
    return pairs


def placed(
    rows: Dataset, sampled: Sequence[list[int]], prompts: list[list[int]], places: Iterator[int]
) -> list[tuple[int, int, Pair]]:
    """The pairs of some rows, each with the place of its row and the number of its sample."""
    k, found = len(sampled) // len(rows), []
    for i, (demonstrations, prompt) in enumerate(zip(rows[IDS], prompts, strict=True)):
        place = next(places)
        for j, own in enumerate(sampled[i * k : (i + 1) * k]):
            demonstration = demonstrations[j % len(demonstrations)]
            found.append((place, j, ([*prompt, *demonstration], [*prompt, *own])))
    return found


def seed_of(seed: int, turn: int) -> int:
    """The seed of a stage's samples, which no evaluation has."""
    return -((seed + 1) << 20) - turn


def decided_by(setup: Setup, stage: LearningStage, rows: Dataset) -> dict[str, Any]:
    """What decides a stage's reward, as plain data."""
    args, recipe = setup.args, setup.recipe
    drop = ("stages", "prompts_per_stage")
    return {
        **{k: v for k, v in asdict(stage.options).items() if k not in drop},
        "policy": recipe.model_source(),
        "reward_from": stage.reward_from,
        "turn": recipe.turn,
        "seed": args.seed,
        "temperature": args.temperature,
        "bf16": args.bf16,
        "max_completion_length": args.max_completion_length,
        "processes": args.world_size,
        "rows": hash_of_columns(rows, ["prompt", IDS]),
    }


def recorded(folder: Path, decided: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a reward that was learnt in this folder from the same; another one goes."""
    place = folder / RECORD
    if place.is_file() and (folder / MODEL).is_dir():
        there = record_in(folder)
        if there["decided_by"] == json.loads(json.dumps(decided)):
            return there
    place.unlink(missing_ok=True)
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    return None


def record_in(folder: Path) -> dict[str, Any]:
    """What a stage has written down.

    Raises:
        UserError: the file is damaged.
    """
    place = folder / RECORD
    try:
        there = json.loads(place.read_text(encoding="utf-8"))
        missing = {"decided_by", "reference", "turn", "pairs", "log"} - there.keys()
    except (ValueError, AttributeError) as error:
        raise UserError(f"'{place}' is damaged: {type(error).__name__}: {error}") from error
    if missing:
        raise UserError(f"'{place}' is damaged: it lacks {', '.join(sorted(missing))}")
    return there


def lengths_of(pairs: Sequence[Pair]) -> dict[str, float]:
    """What length alone says of pairs: the first thing that a reward may learn in place of more.

    The share is that of the better of two rules: the longer one is the demonstration, or the
    shorter one is; a pair of equal lengths counts half.
    """
    gaps = [len(a) - len(b) for a, b in pairs]
    longer = sum(1.0 if g > 0 else 0.5 if g == 0 else 0.0 for g in gaps) / len(gaps)
    return {
        "number": len(pairs),
        "demonstration_longer_by": sum(gaps) / len(gaps),
        "told_by_length": max(longer, 1.0 - longer),
    }


def told(record: dict[str, Any]) -> Iterator[str]:
    """What was learnt, in words."""
    pairs, log = record["pairs"], record["log"]
    longer = pairs["demonstration_longer_by"]
    last = [line["accuracy"] for line in log[-LAST:]]
    yield (
        f"reward of stage {record['turn'] + 1}: {pairs['number']} pairs, demonstrations "
        f"{abs(longer):.1f} tokens {'longer' if longer >= 0 else 'shorter'} than samples; in the "
        f"right order: {pairs['told_by_length']:.0%} by length alone"
        + (f", {sum(last) / len(last):.0%} by the reward in its last steps" if last else "")
    )
