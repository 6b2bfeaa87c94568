"""Models and tokenizers, without running code that comes with them."""

from __future__ import annotations

import warnings
from typing import Any

import datasets
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from prefix_rft.data import PLAIN_TEMPLATE, Renderer
from prefix_rft.errors import UserError

UNUSABLE = (OSError, ValueError, TypeError, SafetensorError)


def quiet() -> None:
    """Silence other libraries' bars and notices: a run has one line of its own."""
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    # TRL reads a name that transformers has renamed; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=r"`(is_)?gradient_checkpointing\w*` is deprecated")


def load_tokenizer(source: str) -> Any:
    """The tokenizer, ready for training: padding on the left.

    Raises:
        UserError: there is none at ``source``.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except UNUSABLE as error:
        raise UserError(f"model '{source}' cannot be loaded: {one_line(error)}") from error
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


def load_configs(source: str) -> tuple[Any, Any]:
    """The model's config and generation config; no weights.

    Raises:
        UserError: there is no config at ``source``.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except UNUSABLE as error:
        raise UserError(f"model '{source}' cannot be loaded: {one_line(error)}") from error
    try:
        return config, GenerationConfig.from_pretrained(source)
    except OSError:  # a model need not have one; transformers then derives it
        return config, GenerationConfig.from_model_config(config)


def load_model(source: str, **kwargs: Any) -> tuple[Any, Any]:
    """Model and tokenizer, from safetensors, without running code that comes with them.

    Args:
        source: a folder or a Hub name.
        kwargs: for ``from_pretrained``, such as ``dtype`` (float32 unless given: weights in
            bfloat16 swallow the small steps of RL) or ``attn_implementation``.

    Raises:
        UserError: there is none at ``source``.
    """
    options = {"dtype": "float32", **kwargs, "trust_remote_code": False, "use_safetensors": True}
    tokenizer = load_tokenizer(source)
    try:
        model = AutoModelForCausalLM.from_pretrained(source, **options)
    except UNUSABLE as error:
        raise UserError(f"model '{source}' cannot be loaded: {one_line(error)}") from error
    embeddings: Any = model.get_input_embeddings()
    known = embeddings.num_embeddings
    if len(tokenizer) > known:
        raise UserError(
            f"model '{source}': the tokenizer has {len(tokenizer)} tokens, the model knows {known}"
        )
    return model, tokenizer


def one_line(error: Exception) -> str:
    """The first line of another library's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
