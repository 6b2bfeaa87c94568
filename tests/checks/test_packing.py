"""check says why rows stay whole, and nothing where they are packed or were not to be."""

from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from prefix_rft.checks.findings import Findings
from prefix_rft.checks.packing import advise_packing

SIZES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 32, "pad_token_id": 0,
}  # fmt: skip
QWEN = transformers.Qwen2Config(**SIZES)
MISTRAL = transformers.MistralConfig(**SIZES, sliding_window=8)


def notes(config: Any, savings: Any = ("packing",), runs_itself: bool = False) -> list[str]:
    setup: Any = SimpleNamespace(
        engine=SimpleNamespace(RUNS_ITSELF=runs_itself), args=SimpleNamespace(savings=savings)
    )
    findings = Findings()
    advise_packing(setup, config, findings)
    assert not findings.problems
    return [str(f) for f in findings.notes]


def test_a_model_of_another_kind() -> None:
    assert notes(MISTRAL) == [
        "an update computes each row with its padding and a prompt of its own, which takes longer "
        "than where rows can be packed: not all its layers attend to everything before"
    ]


@pytest.mark.parametrize(
    "case", [(QWEN,), (MISTRAL, ("untrained",)), (MISTRAL, ("packing",), True)]
)
def test_nothing_to_say(case: Any) -> None:
    assert notes(*case) == []
