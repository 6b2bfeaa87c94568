"""Loss and full gradient of real steps of the family equal its formulas in plain torch.

Every case runs with one micro-batch and with four, on groups that are mixed, all wrong and all
right; and a formula with one mistake in it must not fit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.core import Method
from prefix_rft.core.parts import Groups, Overlong
from prefix_rft.methods.luffy import luffy
from second.step import formulas, trl_run
from second.step.update import ALL, ROLLOUT, Update, relative_error
from tables import rest_slow
from tiny import make_imitation_config, make_tokenizer

TOLERANCE = 1e-5
MISTAKEN = 20 * TOLERANCE


@dataclass(frozen=True)
class Case:
    """A method, its formula, and the formula with mistakes; ``settings`` are of the trainer."""

    method: str
    formula: Callable[..., torch.Tensor]
    mistakes: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    rules: tuple[str, ...] = ("mixed", "wrong", "right", "mixed", "patchy", "mixed")
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 2
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-".join([self.method, *self.options])


COLD = {"temperature": 0.9}
SMALL = {"num_generations": 2, "per_device_train_batch_size": 8}
EIGHT = {"num_generations": 8}
FAIL = ("mixed", "wrong", "wrong", "wrong")
HINTS = ("hint:5", "hint:9", "mixed", "right")


def priced_luffy() -> Method:
    """A method of one's own: LUFFY with a price on long rollouts."""
    return replace(luffy(), name="priced_luffy", groups=Groups(overlong=Overlong(0.5)))


ROLLOUTS = [
    Case("test_family_steps:priced_luffy", partial(formulas.luffy, buffer=12), ({"buffer": 0},)),
    Case("luffy", formulas.luffy, ({"gamma": 0.2}, {"base": ROLLOUT}, {"entropy": 0.0})),
    Case("trapo", formulas.trapo,
         ({"at": 0.3}, {"context": ()}, {"base": ROLLOUT}, {"entropy": 0.0}, {"detach": False}),
         settings=EIGHT, needs=("hybrid", "demo")),
    Case("srft", formulas.srft, ({"sign": 1.0}, {"scale": 1.0}, {"detach": False})),
    Case("luffy", partial(formulas.luffy, cut=ROLLOUT), ({"cut": ()},),
         {"truncated": "mask"}),
    Case("hpt", formulas.hpt, ({"gate": 0.5}, {"entropy": 0.0}, {"count": ROLLOUT}),
         settings={"seed": 4}),  # one of three is solved
    Case("hpt", partial(formulas.hpt, gate=0.5), ({},), {"gate": 0.5}, rules=("mixed",)),
    Case("superrl", formulas.superrl, ({"how": "mean"}, {"both": True})),
    Case("chord", formulas.chord, ({"mu": 0.2}, {"detach": False}, {"base": ALL})),
    Case("chord", partial(formulas.chord, mu=0.9, end=0.1), ({"end": 0.9},),
         {"phi": False, "mu": {"kind": "linear", "start": 0.9, "end": 0.1}}),
    Case("rl_sft", formulas.rl_sft, ({"base": ALL}, {"weight": 0.5})),
    Case(
        "uft",
        formulas.uft,
        ({"hint": 0.0}, {"beta": 0.5}, {"entropy": 0.0}),
        rules=("mixed",),
        steps=3,
        needs=("hybrid",),
    ),
    Case("relift", formulas.relift, ({"how": "std"},), rules=FAIL, settings=SMALL, steps=4,
         needs=("demo",)),
    Case("mifo", formulas.mifo, ({"keep": 0.5}, {"lowest": True}), rules=FAIL, settings=SMALL,
         steps=4, needs=("demo",)),
    Case("bread", formulas.bread, ({"how": "mean"}, {"skip": False}), rules=HINTS, settings=COLD,
         needs=("hybrid",)),
    Case("adaback", formulas.bread, ({"skip": False},), rules=("mixed",), settings=COLD,
         needs=("hybrid",)),
    Case("adaprefix", formulas.bread, ({"skip": False},), rules=("mixed",), settings=COLD,
         needs=("hybrid",)),
    Case("control", formulas.control, ({"how": "std"},), rules=("mixed",), settings=COLD,
         needs=("hybrid",)),
    Case("pass_rate", formulas.control, ({"how": "std"},), {"hard_below": 0.9, "easy_above": 0.1},
         rules=("mixed",), settings=COLD, steps=8, needs=("hybrid",)),
    Case("control", formulas.control, ({"how": "std"},), {"own": True, "floor": -0.5},
         rules=("mixed",), settings=COLD, steps=8, needs=("hybrid",)),
    Case("control", formulas.control, ({"how": "std"},),
         {"where": "prompt", "template": "h:{hint};{prompt}"}, rules=("mixed",), settings=COLD),
    Case("prefixrl", formulas.prefixrl, ({"how": "std"},), rules=("mixed",), settings=COLD,
         needs=("hybrid",)),
    Case("pope", formulas.pope, ({"joint": True},), {"first_ratio": 0.4}, rules=("mixed",),
         settings=COLD, needs=("hybrid",)),
    Case("questa", formulas.questa, ({"grouped": True},), settings=COLD, needs=("hybrid",)),
    Case("r3", formulas.r3, ({"beta": 0.5},), rules=("mixed",), settings=COLD, needs=("hybrid",)),
    Case("prefix_rft", formulas.prefix_rft, ({"fraction": 0.5},), rules=("mixed",), settings=COLD,
         needs=("hybrid",)),
    Case("dapo", formulas.dapo, ({"buffer": 0}, {"flat_count": True}), {"attempts": 1},
         settings=COLD, steps=3),
    Case("rloo", formulas.rloo, ({"how": "mean"},), settings=COLD),
    Case("cispo", formulas.cispo, ({"detach": False},), settings=COLD),
    Case("gspo", formulas.gspo, settings=COLD),
    Case("self_sft", formulas.self_sft, ({"count_all": True},), settings=COLD),
    Case("self_sft", formulas.self_sft, ({"count_all": True},), {"rollouts": "reference"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model as a folder: TRL's own reference model is read from one."""
    folder = tmp_path_factory.mktemp("model")
    trl_run.sharp_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def updates(
    records: list[trl_run.Record],
    temperature: float = 1.0,
    per_generation: int = 1,
    per_stage: int | None = None,
) -> list[Update]:
    """What formulas read, for every step; rollouts and reference are of the first step of a
    generation and of a stage."""
    return [
        trl_run.update_of(
            record,
            old=records[n - n % per_generation].weights,
            ref=records[n - n % (per_stage or len(records))].weights,
            temperature=temperature,
            step=n,
            total=len(records),
        )
        for n, record in enumerate(records)
    ]


def fits(
    record: trl_run.Record, update: Update, loss: torch.Tensor, value: float | None = None
) -> None:
    """A recorded step is the gradient of this loss, and its loss this value."""
    value = loss.item() if value is None else value
    assert record.loss == pytest.approx(value, rel=TOLERANCE, abs=1e-7)
    assert relative_error(record.gradient, update.gradient(loss)) < TOLERANCE


def largest_error(
    records: list[trl_run.Record], steps: list[Update], formula: Callable[..., torch.Tensor]
) -> float:
    """Of the gradients, over the steps."""
    return max(
        relative_error(r.gradient, u.gradient(formula(u)))
        for r, u in zip(records, steps, strict=True)
    )


WHOLE = (
    *("test_family_steps:priced_luffy", "luffy", "hpt", "chord", "chord-phi-mu", "uft", "relift"),
    "trapo",
    *("bread", "prefix_rft", "dapo-attempts", "cispo", "self_sft", "self_sft-rollouts"),
)
"""One for each kind of rows, planner, stream and clip; test_formulas.py has every method."""
SPLIT = ("luffy", "chord", "relift", "bread", "prefix_rft", "dapo-attempts")
"""One for each kind of rows and of normaliser; a split changes no other formula."""


@pytest.mark.parametrize(
    ("case", "parts"),
    rest_slow(
        product(ROLLOUTS, (1, 4)),
        lambda case, parts: str(case) in WHOLE and parts == (4 if str(case) in SPLIT else 1),
    ),
    ids=str,
)
def test_a_step_is_its_formula(tmp_path: Path, saved: str, case: Case, parts: int) -> None:
    settings = {"per_device_train_batch_size": 16, **case.settings}
    settings["per_device_train_batch_size"] //= parts
    steps_to_do = case.steps if parts == 1 or case.needs else 1
    trainer, recorder = trl_run.start(
        PrefixRFTTrainer,
        tmp_path,
        case.method,
        trl_run.make_rewards(case.rules * (12 // len(case.rules))),
        options=case.options,
        model=saved if case.method in ("uft", "r3") else None,
        gradient_accumulation_steps=parts,
        max_steps=steps_to_do,
        **settings,
    )
    trainer.train()
    steps = updates(recorder.records, settings.get("temperature", 1.0))
    assert len(steps) == steps_to_do
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


MOVED = [
    Case("luffy", formulas.luffy, ({"gamma": 0.2},)),
    Case("trapo", formulas.trapo, ({"at": 0.3}, {"context": ()}), settings=EIGHT),
    Case("dapo", formulas.dapo, ({"high": 0.2},), {"attempts": 1}, settings=COLD),
    Case("cispo", formulas.cispo, ({"detach": False}, {"high": 0.2}), settings=COLD),
    Case("cispo", partial(formulas.cispo, low=0.1, high=0.1), ({"low": 1.0}, {"high": 4.0}),
         {"epsilon": 0.1, "epsilon_high": 0.1}, settings=COLD),
    Case("gspo", formulas.gspo, ({"whole": False}, {"low": 0.2, "high": 0.2}), settings=COLD),
    Case("rloo", formulas.rloo, ({"how": "mean"},), settings=COLD),
]  # fmt: skip


@pytest.mark.parametrize(
    "case",
    # A weight of one's own, the clip of a token, and that of a sequence.
    rest_slow(
        MOVED, lambda case: case.method in ("luffy", "gspo", "trapo") or "epsilon" in case.options
    ),
    ids=str,
)
def test_a_second_update_of_the_same_rollouts(tmp_path: Path, case: Case) -> None:
    """The policy has moved away from the one that sampled: ratios, and clips at work."""
    trainer, recorder = trl_run.start(
        PrefixRFTTrainer,
        tmp_path,
        case.method,
        trl_run.make_rewards(case.rules * 2),
        options=case.options,
        gradient_accumulation_steps=2,
        max_steps=4,
        num_iterations=2,
        learning_rate=1e-2,
        **{"per_device_train_batch_size": 8, **case.settings},
    )
    trainer.train()
    temperature = case.settings.get("temperature", 1.0)
    steps = updates(recorder.records, temperature, per_generation=2)
    for record, update in zip(recorder.records, steps, strict=True):
        fits(record, update, case.formula(update))
    assert max((r - 1).abs().max().item() for r in map(steps[1].ratio, range(16))) > 0.3
    for mistake in case.mistakes:
        wrong = partial(case.formula, **mistake)
        assert largest_error(recorder.records[1::2], steps[1::2], wrong) > MISTAKEN, mistake


@pytest.mark.parametrize(
    "case",
    [
        Case("luffy", formulas.luffy),
        Case("chord", formulas.chord),
        Case("dapo", formulas.dapo, options={"attempts": 1}),
        Case("bread", formulas.bread, rules=HINTS),
        Case("self_sft", formulas.self_sft),
    ],
    ids=str,
)
def test_several_steps_of_one_generation(tmp_path: Path, case: Case) -> None:
    """Groups lie across steps, some steps have no demonstration or no trained row at all; each
    step has a normaliser of its own, and the advantages are those of the whole group."""
    trainer, recorder = trl_run.start(
        PrefixRFTTrainer,
        tmp_path,
        case.method,
        trl_run.make_rewards(case.rules * 2, missing=(1,)),
        options=case.options,
        per_device_train_batch_size=4,
        steps_per_generation=4,
        max_steps=4,
    )
    trainer.train()
    steps = updates(recorder.records, per_generation=4)
    assert len(steps[0].rows) == 4
    assert len(steps[0].generation) == 16
    if case.method in ("luffy", "chord"):
        kinds = [{r.kind for r in s.rows} for s in steps]
        assert {"own", "demo"} in kinds
        assert {"own"} in kinds
    assert any(len({r.group for r in s.rows}) > 1 for s in steps)
    for record, update in zip(recorder.records, steps, strict=True):
        fits(record, update, case.formula(update))


@pytest.mark.parametrize(
    ("options", "formula", "mistakes", "parts"),
    [
        ({}, formulas.discriminative, ({"gamma": 1.0}, {"tau": 2.0}, {"scale": 0.5}), 1),
        pytest.param({}, formulas.discriminative, (), 4, marks=pytest.mark.slow),
        pytest.param(
            *(
                {"negatives": "policy", "tau": 0.9},
                partial(formulas.discriminative, tau=0.9),
                (),
                4,
            ),
            marks=pytest.mark.slow,
        ),
        (
            {"averaged": True},
            partial(formulas.discriminative, averaged=True, tau=0.3, gamma=0.9),
            ({"gamma": 0.85}, {"averaged": False}),
            4,
        ),
    ],
    ids=["dft", "parts", "policy", "dft2"],
)
def test_discriminative_steps(
    tmp_path: Path, options: dict, formula: Any, mistakes: tuple, parts: int
) -> None:
    """Five examples, one of them without demonstration: the moving averages are used again."""
    trainer, recorder = trl_run.start(
        PrefixRFTTrainer,
        tmp_path,
        "discriminative",
        trl_run.make_rewards(["mixed"] * 4, missing=(1,)),
        options=options,
        gradient_accumulation_steps=parts,
        per_device_train_batch_size=16 // parts,
        max_steps=3,
        learning_rate=1e-3,
    )
    trainer.train()
    steps = updates(recorder.records)
    memory: dict[int, float] = {}
    for record, update in zip(recorder.records, steps, strict=True):
        fits(record, update, formula(update, memory))
    assert set(memory) == {0, 2, 3}
    told = {k: v["u"] for k, v in trainer.method_state.examples.items()}
    assert told == pytest.approx(memory, abs=1e-5)
    for mistake in mistakes:
        other: dict[int, float] = {}
        wrong = [
            relative_error(r.gradient, u.gradient(formula(u, other, **mistake)))
            for r, u in zip(recorder.records, steps, strict=True)
        ]
        assert max(wrong) > MISTAKEN, mistake


@pytest.mark.parametrize("parts", rest_slow((1, 4), lambda parts: parts == 4))
def test_irft_steps(tmp_path: Path, parts: int) -> None:
    """The gradient is that of -log sigmoid itself; the reference is of the stage's first step."""
    trainer, recorder = trl_run.start(
        PrefixRFTTrainer,
        tmp_path,
        "irft",
        trl_run.make_rewards(["mixed"] * 8, missing=(2,)),
        options={"stages": 2, "beta_contrast": 0.5},
        gradient_accumulation_steps=parts,
        per_device_train_batch_size=16 // parts,
        max_steps=4,
    )
    trainer.train()
    steps = updates(recorder.records, per_stage=2)
    for record, update in zip(recorder.records, steps, strict=True):
        loss = formulas.irft(update, beta=0.5)
        assert relative_error(record.gradient, update.gradient(loss)) < TOLERANCE
    whole = updates(recorder.records)
    assert (
        largest_error(recorder.records[3:], whole[3:], partial(formulas.irft, beta=0.5)) > MISTAKEN
    )
    assert largest_error(recorder.records[1:2], steps[1:2], formulas.irft) > MISTAKEN


IMITATION = [
    Case("sft", formulas.sft),
    Case("dft", formulas.dft, ({"detach": False},)),
    Case("iw_sft", formulas.iw_sft, ({"per_token": True},)),
    Case("iw_sft", partial(formulas.iw_sft, cap=0.9), ({"cap": 16.0},), {"cap": 0.9}),
    Case("fdiv_sft", formulas.fdiv_sft, ({"slope": 1.0},)),
    Case("fdiv_sft", partial(formulas.fdiv_sft, floor=0.95), ({"floor": 0.0},), {"floor": 0.95}),
]


@pytest.mark.parametrize(
    ("case", "parts"),
    rest_slow(
        product(IMITATION, (1, 4)),
        lambda case, parts: parts == (4 if str(case) in ("sft", "iw_sft") else 1),
    ),
    ids=str,
)
def test_an_imitation_step_is_its_formula(tmp_path: Path, case: Case, parts: int) -> None:
    """The reference of the weights is the model as it was at the start."""
    recorder = trl_run.Recorder()
    trainer = DemonstrationTrainer(
        trl_run.sharp_model(),
        make_imitation_config(
            tmp_path,
            method=case.method,
            method_options=case.options,
            max_steps=3,
            per_device_train_batch_size=8 // parts,
            gradient_accumulation_steps=parts,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
            logging_steps=1,
        ),
        train_dataset=trl_run.make_rewards(["mixed"] * 12, several=True),
        processing_class=make_tokenizer(),
        callbacks=[recorder],
    )
    recorder.watch(trainer, "compute_loss")
    trainer.train()
    steps = updates(recorder.records)
    assert [len(s.rows) for s in steps] == [8, 8, 8]
    for record, update in zip(recorder.records, steps, strict=True):
        fits(record, update, case.formula(update))
    for mistake in case.mistakes:
        wrong = partial(case.formula, **mistake)
        assert largest_error(recorder.records[1:], steps[1:], wrong) > MISTAKEN, mistake
