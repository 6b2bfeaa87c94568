"""A demonstration's tokens are those that it has behind its prompt, and no other."""

from typing import Any

import pytest

from odd_tokenizers import byte_level, characters, metaspace
from prefix_rft.data import Renderer
from prefix_rft.data.dummy_space import writes_space
from tiny import CHAT_TEMPLATE, make_chat_tokenizer

ASK = [{"role": "user", "content": "1+1?"}]
NEWLINE = CHAT_TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|>\n{% endif %}")
BRACKET = (  # as Llama 2 and Mistral write turns: in characters, not in tokens of their own
    "{% for m in messages %}{% if m['role'] == 'user' %}[I]{{ m['content'] }}[/I]"
    "{% else %}{{ m['content'] }}{{ '<|end|>' }}{% endif %}{% endfor %}"
)
KINDS: dict[str, Any] = {
    "first": lambda t: metaspace("first", t),
    "always": lambda t: metaspace("always", t),
    "never": lambda t: metaspace("never", t),
    "legacy": lambda t: metaspace("always", t, legacy=True),
    "bytes": lambda t: byte_level(False, t),
    "bytes with a space": lambda t: byte_level(True, t),
    "characters": lambda t: characters(template=t),
}
TEXTS = ["4", "it is 4", "4 is it", " 4", "Z", "(4)"]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, NEWLINE, BRACKET], ids=["token", "\\n", "[]"])
@pytest.mark.parametrize("kind", KINDS)
def test_behind_a_template_the_row_is_the_whole_chat(kind: str, template: str) -> None:
    """Ids of prompt and demonstration are those of the whole text, tokenised at once."""
    tokenizer = KINDS[kind](template)
    render = Renderer(tokenizer)
    start = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, tokenize=False)
    for text in TEXTS:
        row = render.prompt(ASK) + render.demonstrations([text], True)[0]
        assert row == ids_of(tokenizer, f"{start}{text}<|end|>"), text


def test_the_dummy_space_by_hand() -> None:
    """``▁4`` where a text begins; ``4`` behind a newline; the scheme decides behind a token."""
    for kind, token, newline in (
        ("first", "4", "4"),
        ("always", "▁4", "4"),
        ("never", "4", "4"),
        ("legacy", "▁4", "4"),
    ):
        for template, first in ((CHAT_TEMPLATE, token), (NEWLINE, newline)):
            tokenizer = KINDS[kind](template)
            ids = Renderer(tokenizer).demonstrations(["4", " 4"], True)
            assert tokenizer.convert_ids_to_tokens(ids[0]) == [first, "<|end|>"], (kind, template)
            assert Renderer(tokenizer).completions(ids[:1]) == ["4"]


@pytest.mark.parametrize("kind", KINDS)
def test_behind_a_text_no_space_is_written(kind: str) -> None:
    tokenizer = KINDS[kind](None)
    render = Renderer(tokenizer)
    for prompt in ("1+1=\n", "1+1=", "it: "):
        for text in ("4", "it is 4", "(4)"):
            row = render.prompt(prompt) + render.demonstrations([text], False)[0]
            whole = ids_of(tokenizer, prompt + text)
            if whole[: len(render.prompt(prompt))] == render.prompt(prompt):
                assert row == [*whole, tokenizer.eos_token_id]
            else:  # they grow together: the model goes on from the prompt's own tokens
                assert (
                    tokenizer.decode(row)
                    == tokenizer.decode(ids_of(tokenizer, prompt + text)) + "<|end|>"
                )


def test_who_writes_a_space() -> None:
    writing = {kind for kind, make in KINDS.items() if writes_space(Renderer(make(None))._ids)}
    assert writing == {"first", "always", "legacy", "bytes with a space"}


def test_a_text_that_grows_together_with_its_prompt_keeps_its_own_tokens() -> None:
    """A newline behind a newline is one token here, which no prompt can be cut in."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from odd_tokenizers import WORDS, wrapped

    vocab = {w: i for i, w in enumerate([*WORDS, "▁", "\n", "\n\n", "4", "▁4", "1", "+", "?"])}
    merges = [("\n", "\n"), ("▁", "4")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    render = Renderer(wrapped(tokenizer, WORDS[3:], NEWLINE))
    ids = render.demonstrations(["\n4", "4"], True)
    assert [render.tokenizer.convert_ids_to_tokens(i[:-1]) for i in ids] == [["\n", "4"], ["4"]]


def test_other_tokenizers_are_asked_once() -> None:
    """Nothing changes, and nothing is tokenised twice, where no space is written."""
    render = Renderer(make_chat_tokenizer())
    assert not render._writes_space
    asked = []
    real = render._ids
    object.__setattr__(render, "_ids", lambda texts: asked.append(list(texts)) or real(texts))
    render.demonstrations(["4", "5"], True)
    assert asked == [["4", "5"]]
