"""Datasets with a format are as good as plain ones; one with a transform is refused."""

from itertools import product
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from prefix_rft import DemonstrationConfig, DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.data import DataError
from prefix_rft.engines.trl.plain_rows import plain_rows
from tables import each_once, rest_slow
from tiny import NO_RECOMPUTE, make_config, make_model, make_rows, make_tokenizer, shaped_reward

TOKENIZER = make_tokenizer()
FORMATS = ["numpy", "torch", "pandas", "arrow"]


def rows() -> Dataset:
    """With columns of numbers, lists and texts, and rows without a demonstration."""
    plain = make_rows(8, missing=1)
    return plain.add_column("level", list(range(8))).add_column("tags", [["a", "b"]] * 8)  # pyright: ignore[reportCallIssue]


def seen(completions: list[str], **columns: Any) -> list[float]:
    """A reward that wants Python's own values."""
    types = (columns["prompts"], str), (columns["level"], int), (columns["tags"], list)
    assert all(type(cell) is kind for cells, kind in types for cell in cells)
    return shaped_reward(completions, **columns)


def rl(tmp_path: Any, train: Any, held_out: Any = None) -> Any:
    config = make_config(
        tmp_path, max_steps=2, learning_rate=1e-2, max_completion_length=20, num_generations=4
    )
    return PrefixRFTTrainer(
        make_model(TOKENIZER), seen, config, train, held_out, processing_class=TOKENIZER
    )


def imitation(tmp_path: Any, train: Any, held_out: Any = None) -> Any:
    config = DemonstrationConfig(
        str(tmp_path),
        max_steps=2,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        use_cpu=True,
        bf16=False,
        **NO_RECOMPUTE,
        report_to="none",
        logging_steps=1,
    )
    return DemonstrationTrainer(
        make_model(TOKENIZER), config, None, train, held_out, processing_class=TOKENIZER
    )


MAKE = {"rl": rl, "imitation": imitation}


def result(trainer: Any) -> list[Any]:
    trainer.train()
    losses = [x["loss"] for x in trainer.state.log_history if "loss" in x]
    return [losses, [p.detach().sum().item() for p in trainer.model.parameters()]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    found = {k: result(m(tmp_path_factory.mktemp(k), rows())) for k, m in MAKE.items()}
    stream = rows().to_iterable_dataset()
    return {**found, "stream": result(rl(tmp_path_factory.mktemp("stream"), stream))}


@pytest.mark.parametrize(
    ("kind", "form"), rest_slow(product(MAKE, FORMATS), each_once("imitation", "arrow"))
)
def test_a_format_changes_nothing(tmp_path: Any, plain: Any, kind: str, form: str) -> None:
    assert result(MAKE[kind](tmp_path, rows().with_format(form))) == plain[kind]


@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_a_format_of_some_columns(tmp_path: Any, plain: Any, form: str) -> None:
    """Those that it leaves as they are are seen; those that it hides are not."""
    shown = rows().with_format(form, columns=["level"], output_all_columns=True)
    assert result(rl(tmp_path, shown)) == plain["rl"]
    hiding = rows().with_format(form, columns=["prompt", "level"])
    assert plain_rows(hiding, "x").column_names == ["prompt", "level"]
    assert plain_rows(hiding, "x")[0] == {"prompt": rows()[0]["prompt"], "level": 0}


@pytest.mark.parametrize("form", ["numpy", "torch", "arrow"])
def test_a_stream_with_a_format(tmp_path: Any, plain: Any, form: str) -> None:
    wanted = plain["stream"]
    assert result(rl(tmp_path, rows().to_iterable_dataset().with_format(form))) == wanted


@pytest.mark.parametrize("kind", MAKE)
def test_datasets_to_evaluate_on(tmp_path: Any, kind: str) -> None:
    make = MAKE[kind]
    few = rows().select([1, 2])
    wanted = make(tmp_path, rows(), few).evaluate()
    forms: dict[Any, Any] = {"a": few.with_format("numpy"), "b": few.with_format("torch")}
    for given in (forms, DatasetDict(forms)):
        found = make(tmp_path, rows(), given).evaluate()
        assert {"eval_a_loss", "eval_b_loss"} <= set(found)
    assert make(tmp_path, rows(), forms["a"]).evaluate()["eval_loss"] == wanted["eval_loss"]
    later = make(tmp_path, rows()).evaluate(forms["a"])
    assert later["eval_loss"] == wanted["eval_loss"]


@pytest.mark.parametrize("kind", MAKE)
def test_a_transform_is_refused(tmp_path: Any, kind: str) -> None:
    lazy = rows().with_transform(lambda batch: {**batch, "level": [0] * len(batch["prompt"])})
    with pytest.raises(DataError, match=r"train_dataset has a transform .*train_dataset\.map"):
        MAKE[kind](tmp_path, lazy)
    lazy = rows()
    lazy.set_transform(lambda batch: batch)
    with pytest.raises(DataError, match="eval_dataset has a transform"):
        MAKE[kind](tmp_path, rows(), lazy)
    with pytest.raises(DataError, match=r"eval_dataset\['b'\] has a transform"):
        MAKE[kind](tmp_path, rows(), {"a": rows(), "b": lazy})
    with pytest.raises(DataError, match="eval_dataset has a transform"):
        MAKE[kind](tmp_path, rows()).evaluate(lazy)
