"""Ids of prompts and demonstrations: one BOS, one EOS, think tags neither doubled nor lost."""

from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from prefix_rft import PrefixRFTTrainer
from prefix_rft.data import DataError, Renderer, tokenize_demonstrations
from prefix_rft.data.demonstrations import IDS, imitation_rows
from prefix_rft.data.render import end_of_text_ids
from prefix_rft.engines.models import give_template
from tiny import (
    CHAT_TEMPLATE,
    make_chat_tokenizer,
    make_config,
    make_model,
    make_rows,
    shaped_reward,
)

ASK = [{"role": "user", "content": "1+1?"}]
THINKING = CHAT_TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}")
NOT_THINKING = CHAT_TEMPLATE.replace(
    "<|assistant|>{% endif %}", "<|assistant|><think>\n\n</think>\n\n{% endif %}"
)
NO_OPENING = CHAT_TEMPLATE.partition("{% if add_generation_prompt %}")[0]
STRIPPING = CHAT_TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
TRIMMING = CHAT_TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'].strip() }}")


def renderer(template: str | None = CHAT_TEMPLATE, **options: Any) -> Renderer:
    return Renderer(make_chat_tokenizer(template, options.pop("bos", False)), **options)


def text_of(render: Renderer, ids: list[int]) -> str:
    return str(render.tokenizer.decode(ids))


@pytest.mark.parametrize("bos", [False, True])
def test_prompts_are_what_trl_makes_of_them(bos: bool, tmp_path: Any) -> None:
    tokenizer = make_chat_tokenizer(bos=bos)
    trainer = PrefixRFTTrainer(
        make_model(tokenizer),
        shaped_reward,
        make_config(tmp_path),
        train_dataset=make_rows(16),
        processing_class=tokenizer,
    )
    render = Renderer(tokenizer)
    for prompts in (["1+1?", "q"], [ASK, [{"role": "system", "content": "Be brief."}, *ASK]]):
        assert render.prompts(prompts) == trainer._tokenize_prompts(prompts)[0]
        assert [render.prompt(p) for p in prompts] == render.prompts(prompts)


def test_a_demonstration_ends_with_the_token_at_which_generation_stops() -> None:
    end, pad = 1, 0
    assert renderer().demonstrations(["2"], True)[0][-1] == end
    # The template ends a turn with another stop token of the model.
    other = CHAT_TEMPLATE.replace("<|end|>{% endfor %}", "{{ '<|user|>' }}{% endfor %}")
    stop = renderer(other, eos_ids=(end, 5)).demonstrations(["2"], True)[0]
    assert stop[-1] == 5
    # A token that generation does not stop at is no end, even if the template writes it.
    assert renderer(other).demonstrations(["2"], True)[0][-1] == end
    # Text prompts know no turns.
    assert renderer(other, eos_ids=(end, 5)).demonstrations(["2"], False)[0][-1] == end
    # One end is enough, whichever of the stop tokens it is.
    assert renderer(eos_ids=(end, 5)).demonstrations(["2<|user|>"], True)[0].count(end) == 0
    assert pad not in stop


def test_end_of_text_ids_are_those_of_tokenizer_and_generation_config() -> None:
    tokenizer = make_chat_tokenizer()
    assert end_of_text_ids(tokenizer) == (1,)
    assert end_of_text_ids(tokenizer, SimpleNamespace(eos_token_id=[5, 1])) == (1, 5)
    assert end_of_text_ids(tokenizer, SimpleNamespace(eos_token_id=7)) == (1, 7)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no EOS token"):
        end_of_text_ids(tokenizer)


@pytest.mark.parametrize(
    ("template", "text", "trained"),
    [
        (CHAT_TEMPLATE, "<think>\nso\n</think>\n2", "<|assistant|><think>\nso\n</think>\n2<|end|>"),
        (THINKING, "<think>\nso\n</think>\n2", "<|assistant|><think>\nso\n</think>\n2<|end|>"),
        (THINKING, "so\n</think>\n2", "<|assistant|><think>\nso\n</think>\n2<|end|>"),
        (THINKING, "\n<think>so</think>\n2", "<|assistant|><think>\nso</think>\n2<|end|>"),
        (THINKING, "<think>\n\nso</think>2", "<|assistant|><think>\n\nso</think>2<|end|>"),
        (CHAT_TEMPLATE, " 2 ", "<|assistant|> 2 <|end|>"),
    ],
)
def test_think_tags_are_neither_doubled_nor_lost(template: str, text: str, trained: str) -> None:
    render = renderer(template)
    row = [*render.prompt(ASK), *render.demonstrations([text], True)[0]]
    assert text_of(render, row) == f"<|user|>1+1?<|end|>{trained}"


@pytest.mark.parametrize(
    ("template", "text", "fault"),
    [
        (CHAT_TEMPLATE, "2", None),
        (CHAT_TEMPLATE, "<think>so</think>2", None),
        (THINKING, "so</think>2", None),
        (THINKING, "<think>so</think>2", None),
        (CHAT_TEMPLATE, "<think>so 2", "opens 1 think blocks and closes 0"),
        (THINKING, "so 2", "opens 1 think blocks and closes 0"),
        (CHAT_TEMPLATE, "so</think>2", "closes 1 think blocks and opens 0"),
        (THINKING, "<think>\n<think>so</think>2", "opens 2 think blocks and closes 1"),
        (CHAT_TEMPLATE, "<think>a</think><think>b</think>2", "opens more than one think block"),
        (NOT_THINKING, "<think>so</think>2", "has closed a think block already"),
        (NOT_THINKING, "2", None),
    ],
)
def test_think_faults(template: str, text: str, fault: str | None) -> None:
    found = renderer(template).think_fault(text)
    assert found == fault if fault is None else fault in str(found)


@pytest.mark.parametrize(
    ("template", "text", "rewritten"),
    [
        (CHAT_TEMPLATE, "<think>so</think>2", False),
        (CHAT_TEMPLATE, " 2 ", False),
        (STRIPPING, "<think>so</think>2", True),
        (STRIPPING, "2", False),
        (TRIMMING, " 2", True),
        (TRIMMING, "2\n", False),
        (THINKING, "<think>\nso</think>2", False),
    ],
)
def test_a_template_that_rewrites_the_turn_is_caught(
    template: str, text: str, rewritten: bool
) -> None:
    render = renderer(template)
    if template == THINKING:  # a template of that kind writes the tag with the turn
        turn = THINKING.replace("<|{{ m['role'] }}|>", "{{ '<|' + m['role'] + '|>' }}").replace(
            "{{ m['content'] }}",
            "{% if m['role'] == 'assistant' %}{{ '<think>\n' }}{% endif %}"
            "{{ m['content'].replace('<think>\n', '') }}",
        )
        render = renderer(turn)
    assert render.rewrites(ASK, text) is rewritten


def test_a_template_without_generation_prompt_is_caught() -> None:
    assert renderer().template_fault() is None
    assert renderer(THINKING).template_fault() is None
    assert "'<|assistant|>'" in str(renderer(NO_OPENING).template_fault())


@pytest.mark.parametrize("bos", [False, True])
def test_a_base_model_gets_the_documented_template(bos: bool) -> None:
    tokenizer = make_chat_tokenizer(None, bos)
    assert not give_template(tokenizer, "a text prompt needs none")
    assert tokenizer.chat_template is None
    with pytest.raises(DataError, match="no chat template"):
        Renderer(tokenizer).prompt(ASK)
    assert give_template(tokenizer, ASK)
    render = Renderer(tokenizer)
    prompt = render.prompt([{"role": "system", "content": "Be brief."}, *ASK])
    start = "<s>" if bos else ""
    assert text_of(render, prompt) == f"{start}Be brief.\n\n1+1?\n\n"
    assert render.template_fault() is None
    assert text_of(render, render.demonstrations(["2"], True)[0]) == "2<|end|>"
    assert not render.rewrites(ASK, "2")
    assert not give_template(tokenizer, ASK)  # it has one now


def test_a_template_that_refuses_is_a_sentence() -> None:
    template = "{{ raise_exception('only user and assistant') }}"
    with pytest.raises(DataError, match="the chat template refuses the conversation: only user"):
        renderer(template)


def test_template_arguments_reach_the_template() -> None:
    template = CHAT_TEMPLATE + "{% if add_generation_prompt and deep %}<think>{% endif %}"
    assert renderer(template).opening == "<|assistant|>"
    assert renderer(template, template_kwargs={"deep": True}).opening == "<|assistant|><think>"


def test_what_cannot_be_used_is_dropped_and_counted() -> None:
    texts = ["2", "", " \n", "2<|end|>", "2<|end|>3", "1" * 7, "1" * 8, "12345<|end|>6"]
    rows = Dataset.from_dict({"prompt": [ASK] * 2, "demonstration": [texts, []]})
    mapped, report = tokenize_demonstrations(rows, make_chat_tokenizer(), 8)
    assert report is not None
    assert (report.rows, report.rows_with_demonstration, report.demonstrations) == (2, 1, 3)
    assert report.dropped == {
        "longer than the budget": 1,
        "empty": 2,
        "with an end-of-sequence token inside": 2,
    }
    assert str(report) == (
        "3 demonstrations in 1 of 2 rows; 1 dropped: longer than 8 tokens; 2 dropped: empty; "
        "2 dropped: with an end-of-sequence token inside"
    )
    tokenizer = make_chat_tokenizer()
    kept = [tokenizer.decode(ids) for ids in mapped[0][IDS]]
    assert kept == ["2<|end|>", "2<|end|>", "1111111<|end|>"]
    assert mapped[1][IDS] == []


def test_imitation_trains_the_demonstration_and_its_end() -> None:
    rows = Dataset.from_dict({"prompt": [ASK], "demonstration": [["2", "two"]]})
    tokenizer = make_chat_tokenizer()
    joined, _ = imitation_rows(rows, tokenizer, 8, "demonstration")
    assert len(joined) == 2
    for row, text in zip(joined, ["2", "two"], strict=True):
        ids, labels = row["input_ids"], row["labels"]
        trained = [i for i, label in zip(ids, labels, strict=True) if label == i]
        assert tokenizer.decode(trained) == f"{text}<|end|>"
        assert tokenizer.decode(ids) == f"<|user|>1+1?<|end|><|assistant|>{text}<|end|>"
        assert labels.count(-100) == len(labels) - len(trained)
