"""From prompts and demonstrations to token ids, through the chat template where there is one.

The assistant's turn is never rendered by the template: its ids are those of the demonstration's own
text, behind the ids of the prompt, so a template that rewrites or strips that turn changes nothing
that is trained. What a template can still do is end the prompt inside a think block, and decide
which token ends a turn; both are read off it once.

The way back, from the ids of a completion to the text that graders see, is here too, so that all
who grade or show a completion read the same text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import ProcessorMixin

from prefix_rft.data.dummy_space import ANCHORS, ids_behind, writes_space
from prefix_rft.data.files import DataError
from prefix_rft.data.pictures import has_pictures, with_places

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
)
"""For base models without a template: the messages' texts with blank lines between, no markers."""

OPEN, CLOSE = "<think>", "</think>"
PROBE = [{"role": "user", "content": "1+1?"}]
ANSWER = "<think>\none and one\n</think>\n\nIt is 2."


def tokenizer_in(processing: Any) -> Any:
    """The tokenizer of a processor, which takes pictures too; a tokenizer as it is."""
    return processing.tokenizer if isinstance(processing, ProcessorMixin) else processing


def end_of_text_ids(tokenizer: Any, generation_config: Any = None) -> tuple[int, ...]:
    """The tokens that end a completion: the tokenizer's EOS and those of the generation config.

    Args:
        tokenizer: a tokenizer, or a processor with one.
        generation_config: the model's; None where there is none.

    Raises:
        DataError: there is none.
    """
    eos_id: Any = tokenizer_in(tokenizer).eos_token_id
    if eos_id is None:
        raise DataError("the tokenizer has no EOS token, so a demonstration cannot end")
    more: Any = getattr(generation_config, "eos_token_id", None)
    several = [] if more is None else [more] if isinstance(more, int) else list(more)
    return tuple(dict.fromkeys([int(eos_id), *map(int, several)]))


@dataclass(frozen=True)
class Renderer:
    """Ids of prompts and demonstrations for one tokenizer, or one processor.

    Of a processor the tokenizer does all that has to do with completions: only prompts have
    pictures.

    Attributes:
        tokenizer: the model's; given a processor, the one in it.
        eos_ids: tokens that end a completion; the tokenizer's alone by default.
        template_kwargs: arguments for the chat template, such as ``enable_thinking``.
        processor: the model's, if one was given; it has the chat template.
        opening: what the template writes between the last user message and the completion.
        end: the token that ends a demonstration in a conversation: the one that the template ends
            an assistant's turn with if generation stops there, else the tokenizer's EOS.
        unread: tokens that are no part of a completion's text: those that end a completion or, in
            the template, an assistant's turn, padding (unless it is the unknown token) and BOS.
            All others are, also special ones: think and answer tags, unknown characters.
        markers: ``unread``, and what else the template writes around messages.
    """

    tokenizer: Any
    eos_ids: tuple[int, ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    processor: Any = field(init=False, default=None)
    opening: str = field(init=False, default="")
    end: int = field(init=False, default=-1)
    unread: frozenset[int] = field(init=False, default=frozenset())
    markers: frozenset[int] = field(init=False, default=frozenset())

    def __post_init__(self) -> None:
        if isinstance(self.tokenizer, ProcessorMixin):
            object.__setattr__(self, "processor", self.tokenizer)
            object.__setattr__(self, "tokenizer", tokenizer_in(self.tokenizer))
        eos_ids = self.eos_ids or end_of_text_ids(self.tokenizer)
        tokenizer: Any = self.tokenizer
        end: Any = tokenizer.eos_token_id
        opening, turn, after = "", "", ""
        if self._templated.chat_template is not None:
            opening = self.text(PROBE).removeprefix(self.text(PROBE, opening=False))
            turn = self.text([*PROBE, {"role": "assistant", "content": ANSWER}], opening=False)
            after = turn.rpartition("It is 2.")[2]
            stops = [i for i in self._plain_ids(after) if i in eos_ids]
            end = stops[0] if stops else end
        pad = None if tokenizer.pad_token_id == tokenizer.unk_token_id else tokenizer.pad_token_id
        ends = {*eos_ids, tokenizer.eos_token_id, tokenizer.bos_token_id, pad} - {None}
        added = tokenizer.added_tokens_decoder
        unread = frozenset(ends | {i for i in self._added(after) if added[i].special})
        markers = unread | self._added(turn + opening)
        fields = {"eos_ids": eos_ids, "opening": opening, "end": end}
        for name, value in {**fields, "unread": unread, "markers": markers}.items():
            object.__setattr__(self, name, value)

    def _added(self, text: str) -> set[int]:
        """The words in a text that are tokens whatever stands around them, without think tags."""
        names = {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items()}
        ids = set(self._plain_ids(text)) & names.keys() if text else set()
        # Some tokenizers have runs of spaces and newlines among them.
        words = {i for i in ids if any(c.isalnum() for c in names[i])}
        return {i for i in words if names[i] not in (OPEN, CLOSE)}

    @property
    def picture_ids(self) -> frozenset[int]:
        """Tokens that stand for pictures and videos, which no completion may hold."""
        names = ("image_token_id", "video_token_id")
        ids = {getattr(self.processor, name, None) for name in names}
        return frozenset(i for i in ids if i is not None)

    @property
    def _templated(self) -> Any:
        """What has the chat template."""
        return self.tokenizer if self.processor is None else self.processor

    @cached_property
    def newlines(self) -> dict[int, str]:
        """The texts of the tokens with a line's end in them."""
        ids = range(len(self.tokenizer))  # pyright: ignore[reportArgumentType]
        texts = self.tokenizer.batch_decode([[i] for i in ids])
        return {i: text for i, text in zip(ids, texts, strict=True) if "\n" in text}

    def text(self, messages: list[dict[str, Any]], opening: bool = True) -> str:
        """A conversation as the template writes it, up to where the model goes on.

        Raises:
            DataError: there is no template, or it refuses the conversation.
        """
        return self._rendered(messages, add_generation_prompt=opening, tokenize=False)

    def _rendered(self, messages: list[dict[str, Any]], **kwargs: Any) -> Any:
        source = self._templated
        if source.chat_template is None:
            raise DataError(
                "the prompt is a conversation, but the tokenizer has no chat template: set "
                "tokenizer.chat_template = prefix_rft.data.PLAIN_TEMPLATE, or its own"
            )
        if self.processor is not None:
            messages = with_places(messages)
        elif any(has_pictures(message) for message in messages):
            raise DataError("the prompt has pictures, but the model reads none: use one that does")
        try:
            return source.apply_chat_template(messages, **kwargs, **self.template_kwargs)
        except TemplateError as error:
            raise DataError(f"the chat template refuses the conversation: {error}") from error
        except Exception as error:  # a stranger's template may do anything
            kind = type(error).__name__
            raise DataError(
                f"the chat template fails on the conversation: {kind}: {error}"
            ) from error

    def prompt(self, prompt: Any) -> list[int]:
        """Ids of a prompt as TRL makes them: a text with the tokenizer's BOS, or messages."""
        return self.prompts([prompt])[0]

    def prompts(self, prompts: list[Any]) -> list[list[int]]:
        """Ids of prompts that are all texts or all conversations."""
        if isinstance(prompts[0], str):
            ids: Any = self.tokenizer(prompts)["input_ids"]
            return ids
        if self.processor is not None:
            return [self.inputs(p)["input_ids"][0].tolist() for p in prompts]
        return self._ids([self.text(p) for p in prompts])

    def inputs(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """What a model that reads pictures is given of a conversation, as its processor makes it.

        Args:
            messages: a conversation, with its pictures in it.

        Returns:
            Tensors by name: ``input_ids`` of shape (1, T), and those of the pictures.

        Raises:
            DataError: the chat template or the processor refuses the conversation.
        """
        how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        return dict(self._rendered(messages, **how, return_tensors="pt"))

    def demonstrations(self, texts: list[str], conversation: bool) -> list[list[int]]:
        """Ids of demonstrations, each with the token that ends it; nothing is cut."""
        if not texts:
            return []
        if conversation:
            texts = [self.without_doubled_think(t) for t in texts]
        end: Any = self.end if conversation else self.tokenizer.eos_token_id
        sequences = self._behind_prompts(texts, conversation)
        return [ids if ids and ids[-1] in self.eos_ids else [*ids, end] for ids in sequences]

    def _behind_prompts(self, texts: list[str], conversation: bool) -> list[list[int]]:
        """Ids of texts that go on from a prompt."""
        if not self._writes_space:
            return self._ids(texts)
        # All prompts end alike where a template ends them.
        contexts = [self.text(PROBE), *ANCHORS] if conversation else ANCHORS
        return ids_behind(self._ids, contexts, texts)

    @cached_property
    def _writes_space(self) -> bool:
        return writes_space(self._ids)

    def completions(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of completions that graders see: what their ids say, without ``unread``."""
        kept = [[i for i in ids if i not in self.unread] for ids in rows]
        return self.spelled(kept)

    def spelled(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Ids as texts, each token as it is: nothing is left out or tidied up."""
        how = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        decode: Any = self.tokenizer.decode
        return [decode(list(ids), **how) for ids in rows]

    def names(self, ids: Iterable[int]) -> str:
        """Tokens by their names, for a message: ``'<s>', '</s>'``."""
        tokens: Any = self.tokenizer.convert_ids_to_tokens(sorted(ids))
        return ", ".join(f"'{t}'" for t in tokens)

    def without_doubled_think(self, text: str) -> str:
        """A demonstration without the opening think tag that the prompt ends with already."""
        start = text.lstrip()
        if not (self.opening.rstrip().endswith(OPEN) and start.startswith(OPEN)):
            return text
        start = start.removeprefix(OPEN)
        space = self.opening[len(self.opening.rstrip()) :]
        return start.removeprefix(space)

    def with_opened_think(self, text: str) -> str:
        """A completion with the opening think tag that its prompt ended with, for other prompts."""
        _, tag, space = self.opening.rpartition(OPEN)
        return f"{tag}{space}{text}" if tag and not space.strip() else text

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts a BOS token in front of plain text."""
        ids: Any = self.tokenizer("1")["input_ids"]
        return len(ids) > 1 and ids[0] == self.tokenizer.bos_token_id

    def template_fault(self) -> str | None:
        """What makes the chat template unfit to sample from, in one sentence, or None."""
        if self.opening.strip():
            return None
        turn = self.text([*PROBE, {"role": "assistant", "content": "It is 2."}], opening=False)
        header = turn.removeprefix(self.text(PROBE)).partition("It is 2.")[0].strip()
        if not header:
            return None
        return (
            f"the chat template begins an assistant's turn with {header!r}, but writes no "
            "generation prompt: let it do so where add_generation_prompt is set"
        )

    def rewrites(self, messages: list[dict[str, Any]], text: str) -> bool:
        """Whether the template renders an assistant's turn as anything but its own text."""
        turn = self.text([*messages, {"role": "assistant", "content": text}], opening=False)
        before = self.text(messages, opening=False) + self.opening
        return not turn.startswith(before + self.without_doubled_think(text).rstrip())

    def think_fault(self, text: str) -> str | None:
        """What is wrong with a demonstration's think tags behind this prompt, or None."""
        text = self.without_doubled_think(text)
        inside = self.opening.rstrip().endswith(OPEN)
        opened, closed = text.count(OPEN) + inside, text.count(CLOSE)
        if CLOSE in self.opening and text.lstrip().startswith(OPEN):
            return "begins with <think>, but the chat template has closed a think block already"
        if opened > closed:
            return f"opens {opened} think blocks and closes {closed}"
        if closed > opened:
            return f"closes {closed} think blocks and opens {opened}"
        return "opens more than one think block" if opened > 1 else None

    def ends_inside(self, ids: list[int]) -> bool:
        """Whether a demonstration holds an end-of-sequence token before its last one."""
        return not set(self.eos_ids).isdisjoint(ids[:-1])

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: Any = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        return self._ids([text])[0]
