"""The tokenizer and the tiny base model of the chain task, made from a seed.

The base has read right chains of another rule, and chains of the task's name whose states are
random: it knows the form, where to look, and what a rule is, but not the task's.

``python -m prefix_rft.tasks.chain.base_model OUT [--steps N] [--seed S]`` makes it.
"""

from __future__ import annotations

import random
from pathlib import Path

from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from prefix_rft.tasks.chain.rule import (
    DIGITS,
    NAMES,
    STATES,
    SYMBOLS,
    Link,
    demonstrate,
    draw_symbols,
    prompt_of,
    table_of,
    write_chain,
)
from prefix_rft.tasks.pretraining import from_command_line, pretrain, tiny_model, word_tokenizer

STEPS = 4000
BATCH = 64
LEARNING_RATE = 3e-3
LONGEST = 24
"""Steps of the longest chain that it reads."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each step's number, symbol and state."""
    markers = (f"s{i}" for i in range(1, LONGEST + 1))
    return word_tokenizer((*NAMES, ";", *SYMBOLS, *DIGITS, *markers), 160)


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """An untrained Qwen3 of about 0.11 million parameters, in float32."""
    return tiny_model(tokenizer, seed, hidden=64, layers=2, kv_heads=4)


def text(length: int, rng: random.Random, name: str) -> tuple[str, str]:
    """A prompt and a chain: right under the old rule, and random under the new one."""
    symbols = draw_symbols(length, rng)
    if name == "old":
        chain = demonstrate(symbols, table_of(name), rng)
    else:
        chain = [Link(x, rng.randrange(STATES), rng.randrange(STATES)) for x in symbols]
    return prompt_of(name, symbols), write_chain(chain)


def make_base(
    folder: Path, steps: int = STEPS, seed: int = 0
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Make the base model from its seed and save it with its tokenizer in Hugging Face layout."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed)
    rng = random.Random(f"pretrain:{seed}")

    def draw(step: int) -> list[tuple[str, str]]:
        # Short chains first: to copy what stands behind a number is learnt from them.
        longest = min(LONGEST, 4 + 2 * step * LONGEST // steps)
        length = rng.choice((longest, rng.randint(1, longest)))
        names = ["old"] * (3 * BATCH // 4) + ["new"] * (BATCH // 4)
        return [text(length, rng, name) for name in names]

    pretrain(model, tokenizer, draw, steps, LEARNING_RATE)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def main() -> None:
    """Entry point of ``python -m prefix_rft.tasks.chain.base_model``."""
    from_command_line("chain", make_base, STEPS)


if __name__ == "__main__":
    main()
