"""Every metric that is logged is registered, and every registered one is logged."""

import ast
import inspect
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import transformers.trainer
import transformers.trainer_utils
import trl.trainer.grpo_trainer
import trl.trainer.sft_trainer

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.engines.trl import DemonstrationConfig
from prefix_rft.rewards import Verdict
from prefix_rft.runs.metric_names import METRICS, PROGRESS, metric_of, page
from tiny import NO_RECOMPUTE, make_config, make_model, make_rows, make_tokenizer, shaped_reward

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/prefix_rft"
VERL = [
    SOURCE / "engines/metrics.py",
    *(SOURCE / "engines/verl" / f"{name}.py" for name in ("credit", "trainer")),
]

RUNS: dict[str, dict[str, Any]] = {
    "prefix_rft": {
        "gradient_shares_every": 1,
        "log_prefix_leak": True,
        "guard_prefix_leak": True,
    },
    "luffy": {},
    "srft": {},
    "relift": {},
    "bread": {},
    "adaback": {},
    "control": {},
    "discriminative": {},
    "hdpo": {"method_options": {"teacher": {"template": "{context};{prompt}"}}},
    "opsd": {
        "method_options": {
            "teacher": {"context": "demonstration", "template": "{context};{prompt}"}
        }
    },
    "gats": {
        "method_options": {
            "teacher": {
                "weights": "ema",
                "context": "demonstration",
                "template": "it goes like {context};{prompt}",
            }
        }
    },
}


def graded(completions: list[str], answer: list[str], **kwargs: Any) -> list[Verdict]:
    return [Verdict("wrong", r) for r in shaped_reward(completions, answer)]


@cache
def logged(folder: Path, method: str) -> frozenset[str]:
    """The names that two steps of a method log, and for imitation an evaluation."""
    tokenizer = make_tokenizer()
    model, rows = make_model(tokenizer), make_rows(16)
    if method in RUNS:
        args = make_config(folder, method=method, **RUNS[method])
        trainer: Any = PrefixRFTTrainer(
            model, graded, args, train_dataset=rows, processing_class=tokenizer
        )
        trainer.train()
    else:
        args = DemonstrationConfig(
            output_dir=str(folder), method=method, max_steps=2, per_device_train_batch_size=8,
            logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False,
            **NO_RECOMPUTE, disable_tqdm=True,
        )  # fmt: skip
        trainer = DemonstrationTrainer(
            model, args, None, rows, rows.select(range(4)), processing_class=tokenizer
        )
        trainer.train()
        trainer.evaluate()
    return frozenset(name for line in trainer.state.log_history for name in line)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """What all the runs log together."""
    runs = (logged(tmp_path_factory.mktemp(m), m) for m in (*RUNS, "sft", "iw_sft"))
    return frozenset().union(*runs) - {"step"}


def typed(paths: Sequence[Path]) -> set[str]:
    """What looks like a metric in some files; a part that is filled in reads as x."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            text = ""
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            elif isinstance(node, ast.JoinedStr):
                text = "".join(str(getattr(v, "value", "x")) if isinstance(v, ast.Constant) else "x"
                               for v in node.values)  # fmt: skip
            if re.fullmatch(r"[a-z_]+(/[a-z_]+)+", text):
                found.add(text)
    return found


def test_every_logged_metric_is_registered(seen: frozenset[str]) -> None:
    assert {name for name in seen if metric_of(name) is None} == set()


def test_every_metric_that_the_verl_engine_types_is_registered() -> None:
    names = typed(VERL)
    assert {"groups/dropped", "prefix/length", "verdicts/x/x"} <= names  # the search finds some
    # The parts of a group's name: all_wrong and all_right.
    assert {name for name in names if metric_of(name.replace("/x", "/all_wrong")) is None} == set()


def test_no_registered_metric_is_dead(seen: frozenset[str]) -> None:
    """One that these runs do not log is written down where it would be."""
    modules = (
        trl.trainer.grpo_trainer, trl.trainer.sft_trainer, transformers.trainer,
        transformers.trainer_utils,
    )  # fmt: skip
    theirs = "".join(map(inspect.getsource, modules))
    skipped = SOURCE / "runs/metric_names.py"
    ours = "".join(p.read_text() for p in SOURCE.rglob("*.py") if p != skipped)
    for metric in METRICS:
        alive = any(metric_of(name) is metric for name in seen)
        last = metric.name.rpartition("ORIGIN")[2]
        assert alive or f'{metric.name}"' in ours + theirs or f'}}{last}"' in ours, metric.name


def test_what_the_progress_line_shows_is_registered() -> None:
    assert all(metric_of(name) for name, _, _ in PROGRESS)


def test_a_name_is_registered_once_and_explained() -> None:
    assert len({m.name for m in METRICS}) == len(METRICS)
    assert all((m.title and m.meaning[0].isupper()) or m.meaning[0] == "1" for m in METRICS)
    assert all(m.meaning.endswith(".") for m in METRICS)
    assert metric_of("anything/else") is None
    assert metric_of("elsewhere/reward") is None
    # What is registered as it stands goes before a pattern.
    assert [metric_of(n).name for n in ("gradient/prefix_share", "gradient/kl_norm")] == [  # pyright: ignore
        "gradient/prefix_share",
        "gradient/SOURCE_norm",
    ]


def test_the_page_is_what_the_registry_gives() -> None:
    made = "python -m prefix_rft.runs.metric_names > docs/metrics.md"
    assert (ROOT / "docs/metrics.md").read_text() == page(), f"make it anew: {made}"
