"""The tokenizer and the tiny base model of the Countdown task, made from a seed.

The base has read correct chains over the prompt's numbers, under targets that say nothing about
the chain: it knows arithmetic and the format and has no goal, so it solves puzzles by chance.

``python -m prefix_rft.tasks.countdown.base_model OUT [--operands 2 3] [--steps N] [--seed S]``
makes it.
"""

from __future__ import annotations

import random
from pathlib import Path

from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from prefix_rft.tasks.countdown.puzzle import Puzzle, Rules, aimless_chain, write_chain
from prefix_rft.tasks.pretraining import command_line, pretrain, tiny_model, word_tokenizer

STEPS = 2500
BATCH = 256
LEARNING_RATE = 3e-3
WORDS = ("numbers", "target", ":", ";", "=", "+", "-", "*", "/")


def make_tokenizer(limit: int) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word: the signs of the format and the numbers 0..``limit``."""
    return word_tokenizer((*WORDS, *map(str, range(limit + 1))), 64)


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """An untrained Qwen3 of about 0.34 million parameters, in float32."""
    return tiny_model(tokenizer, seed, hidden=96, layers=3, kv_heads=2)


def aimless_text(operands: int, rules: Rules, rng: random.Random) -> tuple[str, str]:
    """A prompt and a correct chain. The target is where another chain over the same numbers ends.

    Given the numbers, target and chain are independent: the prompt's target tells nothing.
    """
    numbers = rules.draw_numbers(operands, rng)
    chain = aimless_chain(numbers, rules.limit, rng)
    target = aimless_chain(numbers, rules.limit, rng)[-1].c
    return Puzzle(numbers, target).prompt, write_chain(chain)


def make_base(
    folder: Path, steps: int = STEPS, seed: int = 0, rules: Rules | None = None
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Make the base model from its seed and save it with its tokenizer in Hugging Face layout."""
    rules = rules or Rules()
    tokenizer = make_tokenizer(rules.limit)
    model = make_model(tokenizer, seed)
    rng = random.Random(f"pretrain:{seed}")

    def draw(step: int) -> list[tuple[str, str]]:
        # One number of operands a step, so that all texts have the same length: no padding.
        operands = rng.choice(rules.operands)
        return [aimless_text(operands, rules, rng) for _ in range(BATCH)]

    pretrain(model, tokenizer, draw, steps, LEARNING_RATE)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def main() -> None:
    """Entry point of ``python -m prefix_rft.tasks.countdown.base_model``."""
    parser = command_line("Countdown", STEPS)
    parser.add_argument("--operands", type=int, nargs="+", default=Rules().operands)
    args = parser.parse_args()
    make_base(args.out, args.steps, args.seed, Rules(operands=tuple(args.operands)))


if __name__ == "__main__":
    main()
