"""Small ingredients that tests make for themselves: a tokenizer, a model, rows, a reward."""

import os
import random
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainingArguments,
)

from prefix_rft.recipe.recipe import recompute_key


def limit_savings(names: Sequence[str]) -> None:
    """Have ``savings: all``, which is the default, mean no others than these in this process."""
    from prefix_rft.engines.trl import config, imitation_config, savings

    def limited(given: object, known: Sequence[str] = savings.SAVINGS) -> list[str]:
        found = savings.read_savings(given, known)
        return [x for x in found if given != "all" or x in names]

    config.read_savings = imitation_config.read_savings = limited


if "TEST_SAVINGS" in os.environ:
    limit_savings(os.environ["TEST_SAVINGS"].split(","))

RECOMPUTE = recompute_key(TrainingArguments.__dataclass_fields__)
NO_RECOMPUTE = {RECOMPUTE: False}

CHARACTERS = "0123456789+-*=() abcdefghijklmnopqrstuvwxyz:;.?\n#"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A character tokenizer."""
    vocab = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {c: i + 3 for i, c in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )


CHAT_CHARACTERS = CHARACTERS + "ABCDEFGHIJKLMNOPQRSTUVWXYZ\\{}[]<>/$,!'^_|%&"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_chat_tokenizer(
    template: str | None = CHAT_TEMPLATE, bos: bool = False
) -> PreTrainedTokenizerFast:
    """A character tokenizer with a chat template, whose turns end with EOS."""
    special = ["<pad>", "<|end|>", "<unk>", "<s>", "<|system|>", "<|user|>", "<|assistant|>"]
    vocab = {word: i for i, word in enumerate([*special, *CHAT_CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|end|>",
        unk_token="<unk>",
        bos_token="<s>" if bos else None,
        additional_special_tokens=special[4:],
        padding_side="left",
    )
    fast.chat_template = template
    return fast


def make_model(tokenizer: Any, hidden: int = 32, layers: int = 1, seed: int = 0) -> Any:
    """A random Qwen3 of about 10,000 parameters."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=hidden // 2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def make_rows(n: int = 32, seed: int = 0, missing: int = 0) -> Dataset:
    """Sums with worked demonstrations; the first ``missing`` rows have none."""
    rng = random.Random(seed)
    rows: dict[str, list[Any]] = {"prompt": [], "demonstration": [], "answer": []}
    for i in range(n):
        a, b, c = (rng.randint(1, 9) for _ in range(3))
        rows["prompt"].append(f"q:{a}+{b}+{c}=?\n")
        rows["demonstration"].append(
            None if i < missing else f"{a}+{b}={a + b};{a + b}+{c}={a + b + c};#{a + b + c}"
        )
        rows["answer"].append(str(a + b + c))
    return Dataset.from_dict(rows)


def shaped_reward(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """Right answer, plus shaping so that a random model shows spread."""
    return [
        float(c.split("#")[-1].strip() == a if "#" in c else 0)
        + 0.1 * ("#" in c)
        + 0.01 * sum(ch.isdigit() for ch in c[:20])
        for c, a in zip(completions, answer, strict=True)
    ]


def make_config(folder: Any, **overrides: Any) -> Any:
    """Small, quiet, CPU-only training arguments."""
    from prefix_rft import PrefixRFTConfig

    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "num_generations": 8,
        "max_completion_length": 24,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        **NO_RECOMPUTE,
        "disable_tqdm": True,
        "seed": 3,
        "max_grad_norm": 1e9,
    }
    return PrefixRFTConfig(**{**settings, **overrides})


def make_imitation_config(folder: Any, **overrides: Any) -> Any:
    """The same for imitation; what is not said here is as its users get it."""
    from prefix_rft.engines.trl.imitation_config import DemonstrationConfig

    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        **NO_RECOMPUTE,
        "disable_tqdm": True,
    }
    return DemonstrationConfig(**{**settings, **overrides})
