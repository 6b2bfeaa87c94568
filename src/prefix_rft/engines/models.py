"""Models and tokenizers, without running code that comes with them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)

from prefix_rft.data import PLAIN_TEMPLATE, Renderer
from prefix_rft.data.render import tokenizer_in
from prefix_rft.engines.adapters import adapt, find_adapter
from prefix_rft.engines.pictures import reads_pictures
from prefix_rft.recipe.model_options import find_model, near
from prefix_rft.support.errors import UserError, one_line

UNUSABLE = (OSError, ValueError, TypeError, AttributeError, ImportError, SafetensorError)


def quiet() -> None:
    """Silence other libraries' bars and notices: a run has one line of its own."""
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    # What peft says at every token that a model with virtual ones samples.
    warnings.filterwarnings("ignore", message="Position ids are not supported for parameter")
    # What torch says at the first sparse difference that peft's SHiRA makes.
    warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
    # TRL reads a name that transformers has renamed; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=r"`(is_)?gradient_checkpointing\w*` is deprecated")


HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
"""Options that say where a model is, which its tokenizer and config must follow."""


def cannot_load(source: str, words: str, error: Exception, beside: Path) -> UserError:
    """The refusal of a model, called ``words``, that another library could not read."""
    why = one_line(error)
    if not Path(source).is_dir():
        why = f"there is no such folder{near(source, beside)}, and as a Hub name: {why}"
    return UserError(f"{words} cannot be loaded: {why}")


def load_tokenizer(source: str, beside: Path = Path(), **where: Any) -> Any:
    """The tokenizer, ready for training: padding on the left.

    That of an adapter which has none of its own is the base's. For a model that reads pictures it
    is the processor, with the tokenizer in it.

    Args:
        source: a folder or a Hub name.
        beside: the folder in which to look for one of a like name, where there is none.
        where: options of the Hub, such as ``revision``.

    Raises:
        UserError: there is none at ``source``.
    """
    source = find_model(source)
    adapter = find_adapter(source)
    place, words = source, f"model '{source}'"
    if adapter is not None:
        place, words = str(adapter.folder), f"adapter '{source}'"
        if not adapter.has_tokenizer:
            place, words, where = adapter.base, adapter.words, adapter.where
    auto = AutoProcessor if _reads_pictures(place, where) else AutoTokenizer
    try:
        processing: Any = auto.from_pretrained(place, trust_remote_code=False, **where)
    except UNUSABLE as error:
        raise cannot_load(place, words, error, beside) from error
    tokenizer = tokenizer_in(processing)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processing


def _reads_pictures(place: str, where: Mapping[str, Any]) -> bool:
    """Whether a model that reads pictures is there; no model need be where a tokenizer is."""
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False, **where)
    except UNUSABLE:
        return False
    return reads_pictures(config)


def give_template(tokenizer: Any, prompt: Any) -> bool:
    """Give a tokenizer without a chat template the plain one, if prompts are conversations.

    It is saved with the trained model, so that a server renders what was trained. A processor gets
    none: where its pictures stand is for its own template to say.
    """
    if tokenizer.chat_template is not None or isinstance(prompt, str):
        return False
    if tokenizer_in(tokenizer) is not tokenizer:
        return False
    bos = "{{ bos_token }}" if Renderer(tokenizer).adds_bos else ""
    tokenizer.chat_template = bos + PLAIN_TEMPLATE
    return True


def load_configs(source: str, beside: Path = Path(), **where: Any) -> tuple[Any, Any]:
    """The model's config and generation config, of an adapter those of its base; no weights.

    Args:
        source: a folder or a Hub name.
        beside: the folder in which to look for one of a like name, where there is none.
        where: options of the Hub, such as ``revision``.

    Raises:
        UserError: there is no config at ``source``.
    """
    source = find_model(source)
    adapter = find_adapter(source)
    words = f"model '{source}'"
    if adapter is not None:
        source, words, where = adapter.base, adapter.words, adapter.where
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **where)
    except UNUSABLE as error:
        raise cannot_load(source, words, error, beside) from error
    try:
        return config, GenerationConfig.from_pretrained(source, **where)
    except OSError:  # a model need not have one; transformers then derives it
        return config, GenerationConfig.from_model_config(config)


def load_model(
    source: str, beside: Path = Path(), trainable: bool = False, **kwargs: Any
) -> tuple[Any, Any]:
    """Model and tokenizer, from safetensors, without running code that comes with them.

    Args:
        source: a folder or a Hub name, of a model or of an adapter.
        beside: the folder in which to look for one of a like name, where there is none.
        trainable: an adapter's weights are to be trained; a model's own always can be.
        kwargs: arguments for ``from_pretrained``, such as ``dtype`` (float32 unless given: weights
            in bfloat16 swallow the small steps of RL) or ``attn_implementation``.

    Raises:
        UserError: there is none at ``source``, or an adapter does not fit its base.
    """
    options = {"dtype": "float32", **kwargs, "trust_remote_code": False, "use_safetensors": True}
    source = find_model(source)
    tokenizer = load_tokenizer(source, beside, **hub(kwargs))
    adapter = find_adapter(source)
    place, words = source, f"model '{source}'"
    if adapter is not None:
        place, words = adapter.base, adapter.words
        options |= adapter.where
    try:
        auto = _class_of(AutoConfig.from_pretrained(place, trust_remote_code=False, **hub(options)))
        model: Any = auto.from_pretrained(place, **options)
    except UNUSABLE as error:
        raise cannot_load(place, words, error, beside) from error
    embeddings: Any = model.get_input_embeddings()
    size = embeddings.num_embeddings
    if (tokens := len(tokenizer_in(tokenizer))) > size:
        raise UserError(
            f"model '{source}': the tokenizer has {tokens} tokens, the model knows {size}"
        )
    return model if adapter is None else adapt(adapter, model, trainable), tokenizer


def hub(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a model's options that say where it is."""
    return {key: options[key] for key in HUB if key in options}


def _class_of(config: Any) -> Any:
    return AutoModelForImageTextToText if reads_pictures(config) else AutoModelForCausalLM


class UncountedError(UserError):
    """The weights of a model cannot be counted before it is loaded."""


def without_weights(config: Any) -> Any:
    """The model of a transformers config, as it is trained, on the ``meta`` device.

    No memory is taken and no code of the model's repository is run.

    Raises:
        UncountedError: transformers has no causal language model for this config.
    """
    try:
        with torch.device("meta"):
            return _class_of(config).from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise UncountedError(
            f"model type '{config.model_type}' cannot be counted: transformers itself has no "
            "causal language model of this type, use one that needs no code from its repository"
        ) from error
