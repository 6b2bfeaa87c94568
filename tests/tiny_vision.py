"""Small models that read pictures, and rows with pictures, made on the spot."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from prefix_rft.tasks import tiny_llava
from prefix_rft.tasks.tiny_llava import chat_template, make_processor

SPECIAL = ("<pad>", "<end>", "<image>", "<video>", "<vision>", "</vision>", "<user>", "<model>")
SIDE = 28
PATCHES = 4
"""Tokens of a picture of ``SIDE`` pixels a side, in all of these models."""


def make_byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {word: i for i, word in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=list(SPECIAL[2:]),
        padding_side="left",
    )
    for name in ("image", "video"):
        setattr(fast, f"{name}_token", f"<{name}>")
    for name in ("image", "video"):
        setattr(fast, f"{name}_token_id", vocab[f"<{name}>"])
    return fast


TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
}


def make_llava(seed: int = 0) -> tuple[Any, Any]:
    """LLaVA of about 75,000 parameters, and its processor."""
    processor = make_processor(make_byte_tokenizer(), SIDE, 14)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text = {name: value for name, value in TEXT.items() if not name.endswith("_token_id")}
    model = tiny_llava.make_llava(processor, seed, {**vision, "num_attention_heads": 2}, text)
    return finished(model), processor


def make_qwen2_5(seed: int = 0) -> tuple[Any, Any]:
    """Qwen2.5-VL of about 115,000 parameters; its processor wants torchvision elsewhere."""
    tokenizer = make_byte_tokenizer()
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(
            size={"shortest_edge": SIDE**2, "longest_edge": (2 * SIDE) ** 2}
        ),
        tokenizer=tokenizer,
        video_processor=None,
        chat_template=chat_template("<vision><image></vision>", "<end>"),
    )
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [2, 3, 3],
                "rope_theta": 1e4,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        **token_ids(tokenizer),
    )
    return finished(Qwen2_5_VLForConditionalGeneration(config)), processor


def make_qwen3(seed: int = 0) -> tuple[Any, Any]:
    """Qwen3-VL of about 145,000 parameters; its processor wants torchvision elsewhere."""
    tokenizer = make_byte_tokenizer()
    side = 2 * 32
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(
            size={"shortest_edge": side**2, "longest_edge": side**2}, patch_size=16
        ),
        tokenizer=tokenizer,
        video_processor=None,
        chat_template=chat_template("<vision><image></vision>", "<end>"),
    )
    torch.manual_seed(seed)
    config = Qwen3VLConfig(
        text_config={
            **TEXT,
            "head_dim": 16,
            "vocab_size": len(tokenizer),
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
                "rope_theta": 1e4,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 16,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
        **token_ids(tokenizer),
    )
    return finished(Qwen3VLForConditionalGeneration(config)), processor


def token_ids(tokenizer: Any) -> dict[str, Any]:
    """Qwen's names of the tokens of pictures."""
    ids = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": ids("<image>"),
        "video_token_id": ids("<video>"),
        "vision_start_token_id": ids("<vision>"),
        "vision_end_token_id": ids("</vision>"),
    }


def finished(model: Any) -> Any:
    """A model that ends where the tokenizer does, whose tokens are unlike enough."""
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(5.0)
    return model


def picture(number: int) -> Any:
    """Noise of its own for each number."""
    pixels = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def picture_rows(folder: Path, counts: list[int], save: bool = True) -> Dataset:
    """Rows with so many pictures each, as files; their prompts differ by their numbers."""
    names, number = [], 0
    for count in counts:
        names.append([str(folder / f"{number + i}.png") for i in range(count)])
        for i, name in enumerate(names[-1]):
            if save:
                picture(number + i).save(name)
        number += count
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"{i}?"}] for i in range(len(counts))],
            "images": names,
            "demonstration": [f"it is {i * 7 % 10}" for i in range(len(counts))],
            "answer": [str(i * 7 % 10) for i in range(len(counts))],
        }
    )
