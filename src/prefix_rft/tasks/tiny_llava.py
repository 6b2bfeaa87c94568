"""A tiny LLaVA and its processor, which needs no torchvision: CLIP, a projector, Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

IMAGE, USER, MODEL = "<image>", "<user>", "<model>"
"""Special tokens that its tokenizer needs: a picture's, and what a turn begins with."""


def chat_template(picture: str, end: str) -> str:
    """A chat template.

    Args:
        picture: what is written for a picture.
        end: the token that ends every turn.
    """
    return (
        "{% for m in messages %}<{{ 'model' if m['role'] == 'assistant' else m['role'] }}>"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for b in m['content'] %}"
        "{% if b['type'] == 'image' %}" + picture + "{% else %}{{ b['text'] }}{% endif %}"
        "{% endfor %}{% endif %}" + end + "{% endfor %}"
        "{% if add_generation_prompt %}" + MODEL + "{% endif %}"
    )


def make_processor(tokenizer: PreTrainedTokenizerFast, side: int, patch: int) -> LlavaProcessor:
    """A processor that scales every picture to a square and makes a token of each patch of it.

    Args:
        tokenizer: a tokenizer that has the special tokens.
        side: pixels of the square's side.
        patch: pixels of a patch's side.
    """
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    square = {"height": side, "width": side}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=square, crop_size=square, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=chat_template(IMAGE, str(tokenizer.eos_token)),
    )


def make_llava(
    processor: Any, seed: int, vision: Mapping[str, Any], text: Mapping[str, Any]
) -> LlavaForConditionalGeneration:
    """An untrained LLaVA for a processor, in float32, from a seed.

    Args:
        processor: its processor.
        seed: the seed of its weights.
        vision: sizes of the part that sees.
        text: sizes of the part that writes.
    """
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=processor.image_processor.size["height"],
            patch_size=processor.patch_size,
            **vision,
        ),
        text_config=LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, **ends, **text),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    generation: Any = model.generation_config
    generation.eos_token_id, generation.pad_token_id = ends.values()
    return model
