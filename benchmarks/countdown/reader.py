"""A base for Countdown that reads what stands before a problem, for the comparison of teachers.

    python benchmarks/countdown/reader.py BASE OUT

The task's base has never seen anything but problems, so a demonstration in its prompt tells it
nothing. Here it reads on: a third of the texts are those it knows (a chain that leads anywhere), in
a third the chain stands before the problem whose target it reaches, in a third a problem and chain
of other numbers do, and the answer leads anywhere. It learns to use what fits and to pass over what
does not; of goals it learns nothing.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from prefix_rft.engines.models import load_model
from prefix_rft.tasks.countdown.base_model import BATCH, aimless_text
from prefix_rft.tasks.countdown.puzzle import Puzzle, Rules, aimless_chain, write_chain
from prefix_rft.tasks.pretraining import pretrain

STEPS = 1500
LEARNING_RATE = 1e-3
SEED = 7


def text(kind: str, operands: int, rules: Rules, rng: random.Random) -> tuple[str, str]:
    """A prompt and its answer, of one of three kinds."""
    prompt, chain = aimless_text(operands, rules, rng)
    if kind == "plain":
        return prompt, chain
    if kind == "other":
        before, other = aimless_text(operands, rules, rng)
        return f"{before}\n{other} ; {prompt}", chain
    numbers = rules.draw_numbers(operands, rng)
    steps = aimless_chain(numbers, rules.limit, rng)
    chain = write_chain(steps)
    return f"{chain} ; {Puzzle(numbers, steps[-1].c).prompt}", chain


def main() -> None:
    """Make the reader."""
    base, out = map(Path, sys.argv[1:3])
    model, tokenizer = load_model(str(base))
    rules, rng = Rules(), random.Random(f"reader:{SEED}")

    def draw(step: int) -> list[tuple[str, str]]:
        # One kind and number of operands a step, so that all texts have the same length.
        kind, operands = rng.choice(("plain", "fits", "other")), rng.choice(rules.operands)
        return [text(kind, operands, rules, rng) for _ in range(BATCH)]

    pretrain(model.train(), tokenizer, draw, STEPS, LEARNING_RATE)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
