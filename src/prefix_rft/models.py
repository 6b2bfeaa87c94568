"""Models and tokenizers, without running code that comes with them."""

from __future__ import annotations

import warnings
from typing import Any

import datasets
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from prefix_rft.adapters import adapt, find_adapter
from prefix_rft.data import PLAIN_TEMPLATE, Renderer
from prefix_rft.errors import UserError

UNUSABLE = (OSError, ValueError, TypeError, SafetensorError)


def quiet() -> None:
    """Silence other libraries' bars and notices: a run has one line of its own."""
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    # What peft says at every token that a model with virtual ones samples.
    warnings.filterwarnings("ignore", message="Position ids are not supported for parameter")
    # TRL reads a name that transformers has renamed; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=r"`(is_)?gradient_checkpointing\w*` is deprecated")


def load_tokenizer(source: str) -> Any:
    """The tokenizer, ready for training: padding on the left.

    That of an adapter which has none of its own is the base's.

    Raises:
        UserError: there is none at ``source``.
    """
    adapter = find_adapter(source)
    place, words = source, f"model '{source}'"
    if adapter is not None:
        place, words = str(adapter.folder), f"adapter '{source}'"
        if not adapter.has_tokenizer:
            place, words = adapter.base, adapter.words
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except UNUSABLE as error:
        raise UserError(f"{words} cannot be loaded: {one_line(error)}") from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def give_template(tokenizer: Any, prompt: Any) -> bool:
    """Give a tokenizer without a chat template the plain one, if prompts are conversations.

    It is saved with the trained model, so that a server renders what was trained.
    """
    if tokenizer.chat_template is not None or isinstance(prompt, str):
        return False
    bos = "{{ bos_token }}" if Renderer(tokenizer).adds_bos else ""
    tokenizer.chat_template = bos + PLAIN_TEMPLATE
    return True


def load_configs(source: str, revision: str | None = None) -> tuple[Any, Any]:
    """The model's config and generation config, of an adapter those of its base; no weights.

    Args:
        source: a folder or a Hub name.
        revision: on the Hub.

    Raises:
        UserError: there is no config at ``source``.
    """
    adapter = find_adapter(source)
    words = f"model '{source}'"
    if adapter is not None:
        source, revision, words = adapter.base, adapter.revision, adapter.words
    at: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **at)
    except UNUSABLE as error:
        raise UserError(f"{words} cannot be loaded: {one_line(error)}") from error
    try:
        return config, GenerationConfig.from_pretrained(source, **at)
    except OSError:  # a model need not have one; transformers then derives it
        return config, GenerationConfig.from_model_config(config)


def load_model(source: str, trainable: bool = False, **kwargs: Any) -> tuple[Any, Any]:
    """Model and tokenizer, from safetensors, without running code that comes with them.

    Args:
        source: a folder or a Hub name, of a model or of an adapter.
        trainable: an adapter's weights are to be trained; a model's own always can be.
        kwargs: for ``from_pretrained``, such as ``dtype`` (float32 unless given: weights in
            bfloat16 swallow the small steps of RL) or ``attn_implementation``.

    Raises:
        UserError: there is none at ``source``, or an adapter does not fit its base.
    """
    options = {"dtype": "float32", **kwargs, "trust_remote_code": False, "use_safetensors": True}
    tokenizer = load_tokenizer(source)
    adapter = find_adapter(source)
    place, words = source, f"model '{source}'"
    if adapter is not None:
        place, words = adapter.base, adapter.words
        options |= {} if adapter.revision is None else {"revision": adapter.revision}
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(place, **options)
    except UNUSABLE as error:
        raise UserError(f"{words} cannot be loaded: {one_line(error)}") from error
    embeddings: Any = model.get_input_embeddings()
    known = embeddings.num_embeddings
    if len(tokenizer) > known:
        raise UserError(
            f"model '{source}': the tokenizer has {len(tokenizer)} tokens, the model knows {known}"
        )
    return model if adapter is None else adapt(adapter, model, trainable), tokenizer


def one_line(error: Exception) -> str:
    """The first line of another library's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
