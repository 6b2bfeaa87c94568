"""Loss and full gradient of real steps of the family equal its formulas in plain torch.

Every case runs with one micro-batch and with four, on groups that are mixed, all wrong and all
right; and a formula with one mistake in it must not fit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import family_plain as plain
import pytest
import torch

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.engines.trl.sft import DemonstrationConfig
from tiny import make_tokenizer

TOLERANCE = 1e-5
MISTAKEN = 20 * TOLERANCE


@dataclass(frozen=True)
class Case:
    """A method, its formula, and the formula with mistakes; ``settings`` are of the trainer."""

    method: str
    formula: Callable[..., torch.Tensor]
    mistakes: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    fates: tuple[str, ...] = ("mixed", "wrong", "right", "mixed", "patchy", "mixed")
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 2
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-".join([self.method, *map(str, self.options.values())])


COLD = {"temperature": 0.9}
SMALL = {"num_generations": 2, "per_device_train_batch_size": 8}
FAIL = ("mixed", "wrong", "wrong", "wrong")
HINTS = ("hint:5", "hint:9", "mixed", "right")

ROLLOUTS = [
    Case("luffy", plain.luffy, ({"gamma": 0.2}, {"base": plain.ROLLOUT}, {"entropy": 0.0})),
    Case("srft", plain.srft, ({"sign": 1.0}, {"scale": 1.0}, {"detach": False})),
    Case("hpt", plain.hpt, ({"gate": 0.5}, {"entropy": 0.0}, {"count": plain.ROLLOUT})),
    Case("hpt", partial(plain.hpt, gate=0.5), ({},), {"gate": 0.5}, fates=("mixed",)),
    Case("superrl", plain.superrl, ({"how": "mean"}, {"both": True})),
    Case("chord", plain.chord, ({"mu": 0.2}, {"detach": False}, {"base": plain.ALL})),
    Case("rl_sft", plain.rl_sft, ({"base": plain.ALL}, {"weight": 0.5})),
    Case(
        "uft",
        plain.uft,
        ({"hint": 0.0}, {"beta": 0.5}, {"entropy": 0.0}),
        fates=("mixed",),
        settings=COLD,
        steps=3,
        needs=("hybrid",),
    ),
    Case("relift", plain.relift, ({"how": "std"},), fates=FAIL, settings=SMALL, steps=4,
         needs=("demo",)),
    Case("mifo", plain.mifo, ({"keep": 0.5}, {"lowest": True}), fates=FAIL, settings=SMALL, steps=4,
         needs=("demo",)),
    Case("bread", plain.bread, ({"how": "mean"}, {"skip": False}), fates=HINTS, settings=COLD,
         needs=("hybrid",)),
    Case("adaback", plain.bread, ({"skip": False},), fates=("mixed",), settings=COLD,
         needs=("hybrid",)),
    Case("pope", plain.pope, ({"joint": True},), {"first_ratio": 0.4}, fates=("mixed",),
         settings=COLD, needs=("hybrid",)),
    Case("prefix_rft", plain.prefix_rft, ({"fraction": 0.5},), fates=("mixed",), settings=COLD,
         needs=("hybrid",)),
    Case("dapo", plain.dapo, ({"buffer": 0}, {"flat_count": True}), {"attempts": 1},
         settings=COLD, steps=3),
    Case("rloo", plain.rloo, ({"how": "mean"},), settings=COLD),
    Case("cispo", plain.cispo, ({"detach": False},), settings=COLD),
    Case("gspo", plain.gspo, settings=COLD),
    Case("self_sft", plain.self_sft, ({"count_all": True},), settings=COLD),
    Case("self_sft", plain.self_sft, ({"count_all": True},), {"rollouts": "reference"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model as a folder: TRL's own reference model is read from one."""
    folder = tmp_path_factory.mktemp("model")
    plain.sharp_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def updates(
    recorder: plain.Recorder, temperature: float, per_generation: int = 1, ref: int = 0
) -> list[plain.Update]:
    """What formulas read, for every step; the rollouts are of the first step of a generation."""
    records = recorder.records
    return [
        plain.Update(
            record,
            old=records[n - n % per_generation].weights,
            ref=records[ref].weights,
            temperature=temperature,
        )
        for n, record in enumerate(records)
    ]


def fits(
    record: plain.Record, update: plain.Update, loss: torch.Tensor, value: float | None = None
) -> None:
    """A recorded step is the gradient of this loss, and its loss this value."""
    value = loss.item() if value is None else value
    assert record.loss == pytest.approx(value, rel=TOLERANCE, abs=1e-7)
    assert plain.relative_error(record.gradient, update.gradient(loss)) < TOLERANCE


def largest_error(
    records: list[plain.Record], steps: list[plain.Update], formula: Callable[..., torch.Tensor]
) -> float:
    """Of the gradients, over the steps."""
    return max(
        plain.relative_error(r.gradient, u.gradient(formula(u)))
        for r, u in zip(records, steps, strict=True)
    )


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("case", ROLLOUTS, ids=str)
def test_a_step_is_its_formula(tmp_path: Path, saved: str, case: Case, parts: int) -> None:
    settings = {"per_device_train_batch_size": 16, **case.settings}
    settings["per_device_train_batch_size"] //= parts
    trainer, recorder = plain.start(
        PrefixRFTTrainer,
        tmp_path,
        case.method,
        plain.make_fates(case.fates * (12 // len(case.fates))),
        options=case.options,
        model=saved if case.method == "uft" else None,
        gradient_accumulation_steps=parts,
        max_steps=case.steps,
        **settings,
    )
    trainer.train()
    steps = updates(recorder, settings.get("temperature", 1.0))
    assert len(steps) == case.steps
    assert any(any(g.any() for g in r.gradient) for r in recorder.records)
    for record, update in zip(recorder.records, steps, strict=True):
        fits(record, update, case.formula(update))
    kinds = {r.kind for record in recorder.records for r in record.rows}
    assert kinds >= set(case.needs)
    if parts == 1:
        for mistake in case.mistakes:
            if mistake:
                wrong = partial(case.formula, **mistake)
                assert largest_error(recorder.records, steps, wrong) > MISTAKEN, mistake
