"""The tokenizer and the tiny base model of the programs task, made from a seed.

The base has read programs behind descriptions in other words, and behind the task's own words
programs whose operators are random: it knows how a program is written and where to look, and not
what these words mean.

``python -m prefix_rft.tasks.programs.base_model OUT [--steps N] [--seed S]`` makes it.
"""

from __future__ import annotations

import random
from pathlib import Path

from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from prefix_rft.tasks.pretraining import from_command_line, pretrain, tiny_model, word_tokenizer
from prefix_rft.tasks.programs.problem import (
    CONSTANTS,
    LONGEST,
    WORDS,
    Operation,
    draw_chain,
    program_of,
    prompt_of,
)

STEPS = 1600
BATCH = 64
LEARNING_RATE = 3e-3
SIGNS = ("def", "f", "(", "x", ")", ":", "=", ";", "return", "then")
KNOWN = {"+": "plus", "-": "minus", "*": "times", "//": "over", "%": "modulo"}
"""Words whose meaning the base has read."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word of a description and of a program."""
    return word_tokenizer((*SIGNS, *WORDS, *KNOWN, *KNOWN.values(), *map(str, CONSTANTS)), 64)


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """An untrained Qwen3 of about 0.1 million parameters, in float32."""
    return tiny_model(tokenizer, seed, hidden=64, layers=2, kv_heads=2)


def text(length: int, rng: random.Random, known: bool) -> tuple[str, str]:
    """A description and a program: right in known words, else with operators drawn at random."""
    told = draw_chain(length, rng)
    if known:
        words = [f"{KNOWN[WORDS[word]]} {constant}" for word, constant in told]
        return " then ".join(words) + " :", program_of(told)
    others = draw_chain(length, rng)
    written = [Operation(b.word, a.constant) for a, b in zip(told, others, strict=True)]
    return prompt_of(told), program_of(tuple(written))


def make_base(
    folder: Path, steps: int = STEPS, seed: int = 0
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Make the base model from its seed and save it with its tokenizer in Hugging Face layout."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed)
    rng = random.Random(f"pretrain:{seed}")

    def draw(step: int) -> list[tuple[str, str]]:
        # One length a step: no padding.
        length = rng.randint(1, LONGEST)
        return [text(length, rng, known=n % 4 > 0) for n in range(BATCH)]

    pretrain(model, tokenizer, draw, steps, LEARNING_RATE)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def main() -> None:
    """Entry point of ``python -m prefix_rft.tasks.programs.base_model``."""
    from_command_line("programs", make_base, STEPS)


if __name__ == "__main__":
    main()
