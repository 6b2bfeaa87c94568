"""A real model: SmolLM2-135M in float32, whose vocabulary of 49152 costs a digit or two."""

from pathlib import Path

import pytest

pytest.importorskip("vllm")

from transformers import AutoTokenizer
from vllm_runs import colocated, distance

from prefix_rft.tasks.arithmetic.smollm2 import write_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_engine")]


def test_log_probs_after_each_of_three_updates(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_model(folder)
    run = colocated(
        tmp_path / "run",
        str(folder),
        256,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        max_steps=4,
        max_completion_length=48,
        learning_rate=1e-4,
    )
    run.trainer.train()
    distances = [distance(rows) for _, rows in run.made]
    assert len(distances) == 4
    assert max(distances) <= 5e-5
    assert all(rows["prefix_mask"].any() for _, rows in run.made)
