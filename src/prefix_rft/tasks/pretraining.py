"""What the tiny base models of the bundled tasks share: words for tokens, and a loop over texts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"


def word_tokenizer(
    words: Sequence[str], longest: int, special: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word between blanks.

    Args:
        words: the words, before which there are only the special ones.
        longest: the most tokens that a model of it has positions for.
        special: special ones beside those that every tokenizer has.
    """
    every = (PAD, EOS, UNK, *special, *words)
    vocabulary = {word: index for index, word in enumerate(every)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=list(special),
        padding_side="left",
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, hidden: int, layers: int, kv_heads: int
) -> Qwen3ForCausalLM:
    """An untrained Qwen3 with four heads, in float32, from a seed."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=hidden // 4,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        pad_token_id=0,  # the first words of the vocabulary
        bos_token_id=None,
        eos_token_id=1,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def pretrain(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[int], Sequence[tuple[str, str]]],
    steps: int,
    learning_rate: float,
    report_every: int = 100,
) -> None:
    """Train on the completions of fresh texts at every step, and print the loss per token.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        draw: prompts and completions of a step, from 1; all of one length, so nothing is padded.
        steps: optimizer steps.
        learning_rate: its peak, in one cycle.
        report_every: steps between two lines.
    """

    def loss_of(step: int) -> Tensor:
        pairs = draw(step)
        texts = [f"{prompt} {completion} {EOS}" for prompt, completion in pairs]
        encoded: Any = tokenizer(texts, return_tensors="pt")
        prompt_length = len(tokenizer(pairs[0][0])["input_ids"])
        return loss_behind(prompt_length, model, {"input_ids": encoded["input_ids"]})

    descend(model, loss_of, steps, learning_rate, report_every)


def loss_behind(prompt_length: int, model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """The loss per token of completions.

    Args:
        prompt_length: tokens before the completions.
        model: the model.
        inputs: what it is given: ids, all of one length, and what else belongs to them.
    """
    ids_BT = inputs["input_ids"]
    logits_BTV = model(**inputs).logits[:, prompt_length - 1 : -1]
    return cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, prompt_length:].flatten())


def descend(
    model: Any,
    loss_of: Callable[[int], Tensor],
    steps: int,
    learning_rate: float,
    report_every: int = 100,
) -> None:
    """Train on the losses of steps from 1, and print them now and then.

    Args:
        model: the model.
        loss_of: the loss of a step.
        steps: optimizer steps.
        learning_rate: its peak, in one cycle.
        report_every: steps between two lines.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.05
    )
    model.train()
    for step in range(1, steps + 1):
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % report_every == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss.item():.4f}", flush=True)
    model.eval()


def from_command_line(task: str, make_base: Callable[[Path, int, int], Any], steps: int) -> None:
    """Make a task's base model as the command line says: the folder, the steps and the seed.

    Args:
        task: the name of the task.
        make_base: called with these three.
        steps: its optimizer steps, unless others are given.
    """
    args = command_line(task, steps).parse_args()
    make_base(args.out, args.steps, args.seed)


def command_line(task: str, steps: int) -> argparse.ArgumentParser:
    """The options that the scripts which make a base model share.

    Args:
        task: the name of the task.
        steps: its optimizer steps, unless others are given.
    """
    parser = argparse.ArgumentParser(description=f"Make the base model of the {task} task.")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seed", type=int, default=0)
    return parser
