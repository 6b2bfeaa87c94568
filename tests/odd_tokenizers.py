"""Small tokenizers of the kinds whose tokens do not decode to the text that went in."""

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tiny import CHAT_CHARACTERS, CHAT_TEMPLATE

WORDS = ["<pad>", "<|end|>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>"]
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]


def characters(
    normalizer: Any = None,
    missing: str = "",
    tags: bool = False,
    template: str | None = CHAT_TEMPLATE,
    unknown: bool = True,
) -> PreTrainedTokenizerFast:
    """A character tokenizer with a normaliser, without some characters, with think tags as tokens.

    Args:
        normalizer: what it does to a text first.
        missing: characters that it does not know.
        tags: think and answer tags are special tokens.
        template: for chats.
        unknown: it has an unknown token; else unknown characters vanish.
    """
    known = [c for c in CHAT_CHARACTERS if c not in missing]
    vocab = {w: i for i, w in enumerate([*WORDS, *(TAGS if tags else []), *known])}
    if unknown:
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    else:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return wrapped(tokenizer, WORDS[3:] + (TAGS if tags else []), template, unknown)


def wrapped(
    tokenizer: Tokenizer, special: list[str], template: str | None, unknown: bool = True
) -> PreTrainedTokenizerFast:
    """As transformers has it."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|end|>",
        unk_token="<unk>" if unknown else None,
        additional_special_tokens=special,
        padding_side="left",
    )
    fast.chat_template = template
    return fast


LOWER = normalizers.Lowercase()
STRIP = normalizers.Strip()


def metaspace(
    scheme: str, template: str | None = CHAT_TEMPLATE, legacy: bool = False
) -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer: ``▁`` is a space, and stands in front of words.

    Args:
        scheme: ``first``, ``always`` or ``never``: where a space is written that is not there.
        template: for chats.
        legacy: as Llama 2's file has it, by a normaliser, which writes it always.
    """
    pieces = [*CHAT_CHARACTERS.replace(" ", ""), "▁", "▁4", "▁1", "▁it", "it", "▁is", "is"]
    vocab = {w: i for i, w in enumerate(dict.fromkeys([*WORDS, *pieces]))}
    merges = [("▁", "4"), ("▁", "1"), ("i", "t"), ("▁", "it"), ("i", "s"), ("▁", "is")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    if legacy:
        steps: Any = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
        back: Any = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(back)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    return wrapped(tokenizer, WORDS[3:], template)


def byte_level(add_prefix_space: bool, template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, such as GPT-2's and RoBERTa's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {w: i for i, w in enumerate([*WORDS, *alphabet, "Ġ4"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "4")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return wrapped(tokenizer, WORDS[3:], template)
