"""The work that ``step.py`` times: trainers on the same prompts, lengths and rewards.

Each measurement is a process of its own: one trainer is in memory at a time, and the largest
resident size is that of one trainer. On a CPU it forks off behind the imports.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import datasets
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from prefix_rft import PrefixRFTConfig, PrefixRFTTrainer
from prefix_rft.engines.trl.savings import SAVINGS
from tiny import NO_RECOMPUTE, make_model

GROUP = 8
"""Rollouts of a prompt."""
VARIANTS: dict[str, tuple[str, Any]] = {
    "trl": ("", None),
    "dr_grpo": ("dr_grpo", "all"),
    "prefix_rft": ("prefix_rft", "all"),
    **{
        f"dr_grpo without {name}": ("dr_grpo", [s for s in SAVINGS if s != name])
        for name in SAVINGS
    },
    "dr_grpo, savings none": ("dr_grpo", "none"),
}
"""Method and savings of each; stock TRL has none."""


@dataclass(frozen=True)
class Work:
    """What every variant does.

    Attributes:
        model: a Hugging Face folder; None for the toy.
        bf16: products in bfloat16 under autocast, weights in float32.
        device: cpu or cuda.
        prompts: prompts of a step, with 8 rollouts each.
        prompt_tokens: tokens of every prompt.
        completion_tokens: tokens of every completion, prefix included.
        micro_batch: rows of a forward and backward.
        vocabulary: words of the toy's vocabulary.
        settings: shares of the groups whose rewards are all the same, one step after another.
        steps: steps that are timed at each setting.
        warmup: steps before them that are not.
    """

    model: str | None = None
    bf16: bool = False
    device: str = "cpu"
    prompts: int = 16
    prompt_tokens: int = 20
    completion_tokens: int = 100
    micro_batch: int = 16
    vocabulary: int = 64
    settings: tuple[float, ...] = (0.0, 0.5)
    steps: int = 3
    warmup: int = 1

    @property
    def rows(self) -> int:
        """Rollouts of a step."""
        return self.prompts * GROUP


# ---- what is trained ----------------------------------------------------------------------------


def toy_tokenizer(words: int) -> Any:
    """A tokenizer of digits, and of words that fill the vocabulary up."""
    special = ["<pad>", "<eos>", "<unk>"]
    known = [*special, *"0123456789"]
    known += [f"<{i}>" for i in range(words - len(known))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    pad, eos, unk = special
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=eos, unk_token=unk
    )


def load(work: Work) -> tuple[Any, Any]:
    """Model, weights in float32, and tokenizer."""
    if work.model is None:
        tokenizer = toy_tokenizer(work.vocabulary)
        return make_model(tokenizer, hidden=256, layers=4), tokenizer
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(work.model)


def digits(tokenizer: Any, tokens: int, rng: random.Random) -> str:
    """A text of so many tokens."""
    ids = tokenizer("".join(rng.choices("0123456789", k=4 * tokens)))["input_ids"][:tokens]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if len(tokenizer(text)["input_ids"]) != tokens:
        raise SystemExit(f"no text of digits has {tokens} tokens with this tokenizer")
    return text


def make_rows(work: Work, tokenizer: Any, steps: int) -> Dataset:
    """Prompts, and demonstrations as long as completions."""
    rng = random.Random(0)
    lengths = {"prompt": work.prompt_tokens, "demonstration": work.completion_tokens - 1}
    many = work.prompts * (steps + 1)
    return Dataset.from_dict(
        {name: [digits(tokenizer, n, rng) for _ in range(many)] for name, n in lengths.items()}
    )


def make_reward(work: Work) -> Callable[..., list[float | None]]:
    """Rewards by step and place: half of a group's rows are right, but all or none if it is flat.

    What was sampled plays no part, so that all variants have the same.
    """

    def reward(completions: list[str], trainer_state: Any, **kwargs: Any) -> list[float | None]:
        step = trainer_state.global_step
        rng = random.Random(step)
        groups = len(completions) // GROUP
        share = work.settings[max(0, step - work.warmup) % len(work.settings)]
        flat = rng.sample(range(groups), round(share * groups))
        values: list[float | None] = []
        for group in range(groups):
            right = rng.choice((0, GROUP)) if group in flat else GROUP // 2
            values += rng.sample([1.0] * right + [0.0] * (GROUP - right), GROUP)
        return values

    return reward


def make_trainer(variant: str, work: Work, folder: str, clock: Clock) -> Any:
    """The trainer of a variant, for all steps of a measurement."""
    method, savings = VARIANTS[variant]
    steps = work.warmup + work.steps * len(work.settings)
    settings: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": work.micro_batch,
        "gradient_accumulation_steps": work.rows // work.micro_batch,
        "num_generations": GROUP,
        "max_completion_length": work.completion_tokens,
        "learning_rate": 1e-7,
        "max_steps": steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": work.device == "cpu",
        "bf16": work.bf16,
        **NO_RECOMPUTE,
        "disable_tqdm": True,
    }
    model, tokenizer = load(work)
    shared: dict[str, Any] = {
        "train_dataset": make_rows(work, tokenizer, steps),
        "processing_class": tokenizer,
        "callbacks": [clock],
    }
    if variant == "trl":
        args = GRPOConfig(loss_type="dr_grpo", scale_rewards="none", **settings)
        trainer: Any = GRPOTrainer(model, make_reward(work), args, **shared)
    else:
        args = PrefixRFTConfig(method=method, savings=savings, **settings)
        trainer = PrefixRFTTrainer(model, make_reward(work), args, **shared)
        refused = trainer.scorer.why_whole
        if "packing" in args.savings and refused is not None:
            raise SystemExit(f"this model's rows are not packed: {refused}")
    trainer.remove_callback(PrinterCallback)
    # Rows end at their budgets: what ends a row is an id that no logit stands for.
    never = [len(model.get_output_embeddings().weight)]
    trainer.eos_token_ids = never
    trainer.generation_config.eos_token_id = never
    trainer.generation_kwargs["eos_token_id"] = never
    return trainer


# ---- one measurement ----------------------------------------------------------------------------


class Clock(TrainerCallback):
    """Seconds of each step, those of its sampling, and tokens behind which the head stood.

    CPU seconds on a CPU; elsewhere those of a clock, with nothing left on the device.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.start = self.sampled = self.scored = 0.0
        self.steps: list[tuple[float, float, float]] = []

    def now(self) -> float:
        """A moment in seconds."""
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin anew."""
        self.sampled = self.scored = 0.0
        self.start = self.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the step's."""
        self.steps.append((self.now() - self.start, self.sampled, self.scored))

    def watch(self, trainer: Any) -> None:
        """Time what samples, and count what is scored with gradient."""
        draw = trainer._generate_single_turn

        def drawn(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            found = draw(*args, **kwargs)
            self.sampled += self.now() - start
            return found

        trainer._generate_single_turn = drawn
        if not isinstance(trainer, PrefixRFTTrainer):
            return
        score = trainer.scorer.of

        def scored(model: Any, rows: Any, wanted_BT: Any, *args: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled():
                whole = trainer.scorer.why_whole is not None
                self.scored += wanted_BT.numel() if whole else int(wanted_BT.sum())
            return score(model, rows, wanted_BT, *args, **kwargs)

        trainer.scorer.of = scored


def matrix_rate(work: Work, clock: Clock) -> float:
    """Floating-point operations a second of a square product in the precision of the work."""
    n = 2048 if work.device == "cpu" else 8192
    dtype = torch.bfloat16 if work.bf16 else torch.float32
    a, b = (torch.randn(n, n, device=work.device).to(dtype) for _ in range(2))
    torch.mm(a, b)
    times = []
    for _ in range(3 if work.device == "cpu" else 10):
        start = clock.now()
        torch.mm(a, b)
        times.append(clock.now() - start)
    return 2 * n**3 / min(times)


def measure(variant: str, work: Work) -> dict[str, Any]:
    """The steps of a variant in this process, and what they took.

    Returns:
        ``settings``: for each share of flat groups the medians over its steps; ``peak_bytes`` of
        the process or the device; ``matrix_rate``; ``parameters``.
    """
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    clock = Clock(work.device)
    rate = matrix_rate(work, clock)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(variant, work, folder, clock)
        clock.watch(trainer)
        trainer.train()
    log = [line for line in trainer.state.log_history if "completions/mean_length" in line]
    check(work, log)
    if work.device == "cpu":
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        peak = torch.cuda.max_memory_allocated()
    head = trainer.model.get_output_embeddings().weight.numel()
    parameters = sum(p.numel() for p in trainer.model.parameters())
    tied = trainer.model.config.get_text_config().tie_word_embeddings
    layers = parameters - (head if tied else 2 * head)
    found = {}
    for i, share in enumerate(work.settings):
        steps = range(work.warmup + i, len(clock.steps), len(work.settings))
        rows = [of_step(work, clock.steps[k], log[k], layers, head) for k in steps]
        found[str(share)] = {k: statistics.median(row[k] for row in rows) for k in rows[0]}
    return {
        "settings": found,
        "peak_bytes": peak,
        "matrix_rate": rate,
        "parameters": parameters,
    }


def of_step(
    work: Work, times: tuple[float, float, float], line: dict[str, Any], layers: int, head: int
) -> dict[str, float]:
    """The numbers of one step."""
    whole, sampling, scored = times
    # Stock TRL computes every row with its padding, and the head behind every completion.
    tokens = line.get("tokens/trained", work.rows * (work.prompt_tokens + work.completion_tokens))
    scored = scored if "tokens/trained" in line else work.rows * work.completion_tokens
    return {
        "seconds": whole,
        "sampling_seconds": sampling,
        "update_seconds": whole - sampling,
        "trained_tokens": tokens,
        "scored_tokens": scored,
        "update_flop": 6.0 * (layers * tokens + head * scored),
    }


def check(work: Work, log: Sequence[dict[str, Any]]) -> None:
    """Whether all rows had their lengths and groups were flat as planned.

    Raises:
        RuntimeError: they were not, so that variants did not do the same.
    """
    for k, line in enumerate(log):
        lengths = {line[f"completions/{name}_length"] for name in ("min", "max")}
        flat = work.settings[max(0, k - work.warmup) % len(work.settings)]
        if lengths != {float(work.completion_tokens)} or line["frac_reward_zero_std"] != flat:
            raise RuntimeError(
                f"step {k}: completions of {sorted(lengths)} tokens, "
                f"{line['frac_reward_zero_std']} of the groups flat"
            )


def in_a_fresh_process(variant: str, work: Work) -> dict[str, Any]:
    """:func:`measure`, in a process that ends with it.

    Raises:
        RuntimeError: the process failed; what it said stands above.
    """
    # A process that forks off cannot use CUDA if an import has as much as looked for it.
    context: Any = multiprocessing.get_context("fork" if work.device == "cpu" else "spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=send_measured, args=(there, variant, work))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError as error:
        raise RuntimeError(f"the process of '{variant}' failed") from error
    finally:
        process.join()


def send_measured(there: Any, variant: str, work: Work) -> None:
    """:func:`measure`, into a pipe."""
    there.send(measure(variant, work))
