"""A chat template that writes the date writes that of the start, in every renderer."""

import datetime
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers.utils.chat_template_utils as clock
import yaml
from rich.console import Console
from safetensors.torch import load_file

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.data.moment import now, pinned
from prefix_rft.engines.trl.imitation_config import DemonstrationConfig
from prefix_rft.support.errors import UserError
from prefix_rft.training.train import train
from tiny import (
    CHAT_TEMPLATE,
    NO_RECOMPUTE,
    make_chat_tokenizer,
    make_config,
    make_model,
    make_rows,
)

DATED = "{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE
FIRST, SECOND = datetime.datetime(2026, 7, 26, 9, 5), datetime.datetime(2031, 1, 1, 23, 59)
ASK = [{"role": "user", "content": "1+1?"}]

Day = Callable[[datetime.datetime], None]


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> Day:
    """Sets the clock that templates are given."""

    def set_day(moment: datetime.datetime) -> None:
        class Stopped(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return moment

        monkeypatch.setattr(clock, "datetime", Stopped)

    return set_day


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%d %B %Y') }}",
        "{%- if strftime_now is defined %}{% set d = strftime_now(format='%-d %b, %H:%M') %}"
        "{% endif %}\n  {{ d }}\n",
        "\n\n  {% for m in messages %}\n  {{ strftime_now('100%% %j')[:7] }}\n{% endfor %} ",
        "{% macro today() %}{{ strftime_now('%Y')|int + 1 }}{% endmacro %}{{ today() }}{{ '%d' }}",
        "  {% set f = '%A' %}{{ strftime_now(f + '%e%') }}",
    ],
)
def test_the_moment_is_told_as_the_clock_would(day: Day, template: str) -> None:
    """Also where a template calls it in a macro, or with a format that it makes up."""
    tokenizer = make_chat_tokenizer(template)
    told = []
    for moment in (FIRST, SECOND):
        day(moment)
        told.append(tokenizer.apply_chat_template(ASK, tokenize=False))
    assert told[0] != told[1]
    for moment, text in zip((FIRST, SECOND), told, strict=True):
        kwargs = pinned(tokenizer, {"x": 1}, moment.isoformat())
        assert tokenizer.apply_chat_template(ASK, tokenize=False, **kwargs) == text
    assert now() == SECOND.isoformat(timespec="microseconds")


def test_a_template_without_a_date_is_left_alone() -> None:
    assert pinned(make_chat_tokenizer(), {"x": 1}, FIRST.isoformat()) == {"x": 1}


REWARD = """
def digits(completions, **kwargs):
    return [0.1 * sum(x.isdigit() for x in c[0]["content"]) for c in completions]
"""
RECIPE: dict[str, Any] = {
    "model": "base",
    "train_data": "train.jsonl",
    "reward": {"name": "counts:digits", "workers": 1},
    "max_completion_length": 24,
    "learning_rate": 1e-2,
    "num_generations": 4,
    "prompts_per_step": 2,
    "save_steps": 1,
    "max_steps": 2,
}


def conversations(n: int = 8) -> Any:
    return make_rows(n).map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    tokenizer = make_chat_tokenizer(DATED)
    make_model(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    conversations().to_json(folder / "train.jsonl")
    (folder / "counts.py").write_text(REWARD)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


def weights(run: Path) -> dict[str, Any]:
    return load_file(run / "checkpoint-2/model.safetensors")


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(bool((a[k] == b[k]).all()) for k in a)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dr_grpo", pytest.param("sft", marks=pytest.mark.slow)])
def test_a_run_that_goes_on_on_another_day(
    task: Path, tmp_path: Path, day: Day, method: str
) -> None:
    recipe, quiet = str(task / "recipe.yaml"), Console(quiet=True)
    more = [f"method={method}"] if method != "sft" else ["method=sft", "~num_generations"]
    day(FIRST)
    whole = train(recipe, [*more, f"runs={tmp_path}/whole"], quiet)
    told = yaml.safe_load((whole / "recipe.yaml").read_text())["trainer"]["chat_template_date"]
    assert told.startswith("2026-07-26T09:05")
    assert "strftime_now('%d %b %Y') }}" in (whole / "model/chat_template.jinja").read_text()
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut") / "run"
    for name in ("model", "checkpoint-2"):
        shutil.rmtree(cut / name)
    day(SECOND)
    train(recipe, [*more, f"runs={tmp_path}/cut"], quiet, resume=True)
    assert same(weights(cut), weights(whole))
    # It is the date that decides: a run of the other day has other weights.
    later = train(recipe, [*more, f"runs={tmp_path}/later"], quiet)
    assert not same(weights(later), weights(whole))


def make(folder: Path, samples: bool, **overrides: Any) -> Any:
    tokenizer = make_chat_tokenizer(DATED)
    shared: dict[str, Any] = {
        "train_dataset": conversations(),
        "processing_class": tokenizer,
    }
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    if samples:
        more = {"num_generations": 4, "per_device_train_batch_size": 4, "method": "dr_grpo"}
        config = make_config(folder, **settings, **more, **overrides)
        return PrefixRFTTrainer(make_model(tokenizer), digits, config, **shared)
    config = DemonstrationConfig(
        str(folder),
        report_to="none",
        use_cpu=True,
        bf16=False,
        **NO_RECOMPUTE,
        disable_tqdm=True,
        per_device_train_batch_size=2,
        **settings,
        **overrides,
    )
    return DemonstrationTrainer(make_model(tokenizer), config, **shared)


def digits(completions: list[Any], **kwargs: Any) -> list[float]:
    return [0.1 * sum(x.isdigit() for x in c[0]["content"]) for c in completions]


@pytest.mark.parametrize("samples", [True, False])
def test_a_trainer_takes_the_date_from_its_checkpoint(
    tmp_path: Path, day: Day, samples: bool
) -> None:
    day(FIRST)
    make(tmp_path, samples).train()
    whole = weights(tmp_path)
    day(SECOND)
    trainer = make(tmp_path, samples)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert same(weights(tmp_path), whole)
    with pytest.raises(UserError, match="chat_template_date 2026-07-26T09:05"):
        make(tmp_path, samples, chat_template_date="2026-07-27").train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-1")
        )


def test_a_date_that_nobody_asks_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not ask for the date"):
        DemonstrationTrainer(
            make_model(make_chat_tokenizer()),
            DemonstrationConfig(
                str(tmp_path),
                use_cpu=True,
                bf16=False,
                **NO_RECOMPUTE,
                chat_template_date="2026-07-26",
            ),
            train_dataset=conversations(),
            processing_class=make_chat_tokenizer(),
        )
    with pytest.raises(UserError, match="must be a date like 2026-07-26"):
        make(tmp_path, False, chat_template_date="26 July")


def test_rollouts_are_of_the_prompt_with_the_date(tmp_path: Path, day: Day) -> None:
    """TRL renders it, and so does our renderer: the same ids, of the moment that was given."""
    day(SECOND)
    trainer = make(tmp_path, True, chat_template_date="2026-07-26")
    ids, *_ = trainer._tokenize_prompts([ASK])
    assert trainer.processing_class.decode(ids[0]).startswith("26 Jul 2026<|user|>")
    assert list(ids[0]) == trainer.renderer.prompt(ASK)
    assert "26 Jul" not in str(trainer.processing_class.chat_template)
