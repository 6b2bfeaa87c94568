"""The text that a trainer's graders see is that of the ids, and it is the one that TRL logs."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from odd_tokenizers import characters
from prefix_rft import PrefixRFTTrainer
from tiny import make_config, make_model

TAGGED = "<think>so</think><answer>4</answer>"


class Spy:
    """A reward that notes what it is given."""

    __name__ = "spy"

    def __init__(self) -> None:
        self.seen: list[tuple[Any, list[int]]] = []

    def __call__(self, completions: Any, completion_ids: Any, **kwargs: Any) -> list[float]:
        self.seen += zip(completions, completion_ids, strict=True)
        return [float(i % 2) for i in range(len(completions))]


def by_hand(tokenizer: Any, ids: list[int]) -> str:
    """Character by character: each token by its name, without EOS and padding."""
    return "".join(t for t in tokenizer.convert_ids_to_tokens(ids) if t not in ("<|end|>", "<pad>"))


@pytest.mark.parametrize("parses", [False, True], ids=["", "response template"])
@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_special_tokens_survive(chat: bool, parses: bool, tmp_path: Path) -> None:
    tokenizer = characters(tags=True)
    if parses:  # with one, TRL takes a completion apart into content and reasoning
        tokenizer.response_template = {
            "defaults": {"role": "assistant"},
            "start_anchor": "<|assistant|>",
            "fields": {
                "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
                "content": {"close": "<|end|>", "content": "text"},
            },
        }
    prompt: Any = [{"role": "user", "content": "2+2?"}] if chat else "2+2?"
    rows = Dataset.from_dict({"prompt": [prompt] * 4, "demonstration": [TAGGED] * 4})
    spy = Spy()
    trainer = PrefixRFTTrainer(
        make_model(tokenizer),
        spy,
        make_config(
            tmp_path, method="luffy", num_generations=4, max_steps=1, log_prefix_leak=False
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    assert len(spy.seen) == 16
    texts = [by_hand(tokenizer, ids) for _, ids in spy.seen]
    given = [[{"role": "assistant", "content": t}] for t in texts] if chat else texts
    assert [c for c, _ in spy.seen] == given
    assert list(trainer._logs["completion"]) == given
    assert TAGGED in texts
    sampled = [t for t in texts if t != TAGGED]
    assert any("<|user|>" in t or "<think>" in t or "<unk>" in t for t in sampled)


def test_a_prefix_is_graded_by_that_text_too(tmp_path: Path) -> None:
    tokenizer = characters(tags=True)
    rows = Dataset.from_dict({"prompt": ["2+2?"] * 4, "demonstration": [TAGGED] * 4})
    spy = Spy()
    trainer = PrefixRFTTrainer(
        make_model(tokenizer),
        spy,
        make_config(tmp_path, num_generations=4, max_steps=1, log_prefix_leak=True),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    leaks = spy.seen[16:]
    assert len(leaks) == 4
    for text, ids in leaks:
        assert text == by_hand(tokenizer, ids)
        assert text
        assert TAGGED.startswith(text)
