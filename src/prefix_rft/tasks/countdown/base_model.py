"""The tokenizer and the tiny base model of the Countdown task, made from a seed.

The base has read correct chains over the prompt's numbers, under targets that say nothing about
the chain: it knows arithmetic and the format and has no goal, so it solves puzzles by chance.

``python -m prefix_rft.tasks.countdown.base_model OUT [--operands 2 3] [--steps N] [--seed S]``
makes it.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from prefix_rft.tasks.countdown.puzzle import Puzzle, Rules, aimless_chain, write_chain

STEPS = 2500
BATCH = 256
LEARNING_RATE = 3e-3
PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
WORDS = ("numbers", "target", ":", ";", "=", "+", "-", "*", "/")


def make_tokenizer(limit: int) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word: the signs of the format and the numbers 0..``limit``."""
    words = (PAD, EOS, UNK, *WORDS, *map(str, range(limit + 1)))
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """An untrained Qwen3 of about 0.34 million parameters, in float32."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,  # the first words of the vocabulary
        bos_token_id=None,
        eos_token_id=1,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def aimless_text(operands: int, rules: Rules, rng: random.Random) -> tuple[str, str]:
    """A prompt and a correct chain. The target is where another chain over the same numbers ends.

    Given the numbers, target and chain are independent: the prompt's target tells nothing.
    """
    numbers = rules.draw_numbers(operands, rng)
    chain = aimless_chain(numbers, rules.limit, rng)
    target = aimless_chain(numbers, rules.limit, rng)[-1].c
    return Puzzle(numbers, target).prompt, write_chain(chain)


def pretrain(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rules: Rules,
    steps: int,
    seed: int,
    report_every: int = 100,
) -> None:
    """Train on aimless texts, fresh ones at every step, and print the loss per token."""
    rng = random.Random(f"pretrain:{seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05
    )
    model.train()
    for step in range(1, steps + 1):
        # One number of operands a step, so that all texts have the same length: no padding.
        operands = rng.choice(rules.operands)
        pairs = [aimless_text(operands, rules, rng) for _ in range(BATCH)]
        texts = [f"{prompt} {chain} {EOS}" for prompt, chain in pairs]
        ids_BT = tokenizer(texts, return_tensors="pt")["input_ids"]
        prompt_length = len(tokenizer(pairs[0][0])["input_ids"])
        logits_BTV = model(input_ids=ids_BT).logits[:, prompt_length - 1 : -1]
        loss = cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, prompt_length:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % report_every == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss.item():.4f}", flush=True)
    model.eval()


def make_base(
    folder: Path, steps: int = STEPS, seed: int = 0, rules: Rules | None = None
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Make the base model from its seed and save it with its tokenizer in Hugging Face layout."""
    rules = rules or Rules()
    tokenizer = make_tokenizer(rules.limit)
    model = make_model(tokenizer, seed)
    pretrain(model, tokenizer, rules, steps, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def main() -> None:
    """Entry point of ``python -m prefix_rft.tasks.countdown.base_model``."""
    parser = argparse.ArgumentParser(description="Make the base model of the Countdown task.")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--operands", type=int, nargs="+", default=Rules().operands)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_base(args.out, args.steps, args.seed, Rules(operands=tuple(args.operands)))


if __name__ == "__main__":
    main()
