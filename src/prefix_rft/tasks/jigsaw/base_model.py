"""The processor and the tiny base model of the jigsaw task, made from a seed.

The base has found discs in shuffled pictures, and has read answers to jigsaws: half of them right,
half with reasoning that is random and an end that follows from it. It sees pictures, knows the form
and how an answer follows from where pieces belong, and says seldom where they do.

``python -m prefix_rft.tasks.jigsaw.base_model OUT [--rows M --columns N] [--steps N] [--seed S]``
makes it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlavaForConditionalGeneration

from prefix_rft.tasks.jigsaw.grade import ANSWER, THINK
from prefix_rft.tasks.jigsaw.picture import MOST, SIDE, Cut
from prefix_rft.tasks.jigsaw.puzzle import (
    Jigsaw,
    inverse,
    jigsaw,
    other_prompt_of,
    prompt_of,
    reasoned,
    shuffled,
)
from prefix_rft.tasks.pretraining import (
    command_line,
    descend,
    loss_behind,
    word_tokenizer,
)
from prefix_rft.tasks.tiny_llava import IMAGE, MODEL, USER, make_llava, make_processor

STEPS = 400
BATCH = 32
LEARNING_RATE = 3e-3
SEEN, PATCH = SIDE // 2, 6
"""Pixels of a side of what the base sees, and of a patch: both divide by 2 and by 3."""
RIGHT = 0.5
"""The share of jigsaws whose answer it reads is right; with less it does not learn to see them."""
WORDS = sorted({word for ask in (prompt_of, other_prompt_of) for word in ask(Cut(1, 1)).split()})
VISION = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4
}  # fmt: skip
TEXT = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.1,
}  # fmt: skip


def make_base_processor() -> Any:
    """A processor with one token for each word, number, tag and patch."""
    words = [word for word in WORDS if not word.isdigit()]
    numbers = map(str, range(1, MOST + 1))
    tokenizer = word_tokenizer((*words, *numbers, *THINK, *ANSWER), 128, (IMAGE, USER, MODEL))
    return make_processor(tokenizer, SEEN, PATCH)


def text(puzzle: Jigsaw, known: bool, homes: Sequence[int]) -> tuple[str, str]:
    """A question and an answer.

    Args:
        puzzle: the picture.
        known: ask where the disc is, and answer that.
        homes: where the pieces belong, as an answer to the jigsaw reasons.
    """
    if known:
        return other_prompt_of(puzzle.grid), reasoned([puzzle.disc], [puzzle.disc])
    return prompt_of(puzzle.grid), reasoned(homes, inverse(homes))


def inputs_of(processor: Any, puzzles: Sequence[Jigsaw], texts: Sequence[tuple[str, str]]) -> Any:
    """Pictures with questions and answers of one length, as the model is given them."""
    from PIL import Image

    end = processor.tokenizer.eos_token
    whole = []
    for question, answer in texts:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        asked = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        whole.append(f"{asked}{answer}{end}")
    pictures = [[Image.fromarray(puzzle.pixels)] for puzzle in puzzles]
    return processor(images=pictures, text=whole, return_tensors="pt")


def make_base(
    folder: Path, steps: int = STEPS, seed: int = 0, cut: Cut | None = None
) -> tuple[LlavaForConditionalGeneration, Any]:
    """Make the base model from its seed and save it with its processor in Hugging Face layout."""
    cut = cut or Cut()
    cut.refuse()
    processor = make_base_processor()
    model = make_llava(processor, seed, VISION, TEXT)
    rng = random.Random(f"pretrain:{seed}")
    begins = processor.tokenizer.convert_tokens_to_ids(MODEL)

    def loss_of(step: int) -> Tensor:
        known = step % 2 > 0  # one question a step: no padding
        puzzles = [jigsaw(cut, rng) for _ in range(BATCH)]
        homes = [p.homes if rng.random() < RIGHT else shuffled(cut, rng) for p in puzzles]
        texts = [text(puzzle, known, own) for puzzle, own in zip(puzzles, homes, strict=True)]
        inputs = inputs_of(processor, puzzles, texts)
        length = inputs["input_ids"][0].tolist().index(begins) + 1
        return loss_behind(length, model, inputs)

    descend(model, loss_of, steps, LEARNING_RATE)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def main() -> None:
    """Entry point of ``python -m prefix_rft.tasks.jigsaw.base_model``."""
    parser = command_line("jigsaw", STEPS)
    parser.add_argument("--rows", type=int, default=Cut().rows)
    parser.add_argument("--columns", type=int, default=Cut().columns)
    args = parser.parse_args()
    make_base(args.out, args.steps, args.seed, Cut(args.rows, args.columns))


if __name__ == "__main__":
    main()
