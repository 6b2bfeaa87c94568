"""Masks of parameters: exactly the chosen weights move, whatever the optimizer remembers."""

import json
import math
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_runs import flat, norm, run, same, top
from peft import LoraConfig
from torch import Tensor

from prefix_rft import PrefixRFTTrainer
from prefix_rft.engines.trl.update.mask_options import MaskOptions
from prefix_rft.support.errors import UserError
from second.step import formulas, trl_run
from second.step.update import Row, relative_error
from second.step.update import score as score_of
from tables import rest_slow
from tiny import make_rows, make_tokenizer

FORMULAS = {"prefix_rft": formulas.prefix_rft, "luffy": formulas.luffy, "sft": formulas.sft}


@pytest.mark.parametrize(
    ("method", "parts"),
    rest_slow(
        product(("prefix_rft", "luffy", "sft"), (1, 2)),
        lambda method, parts: parts == (2 if method == "luffy" else 1),
    ),
)
def test_only_the_chosen_weights_move(tmp_path: Path, method: str, parts: int) -> None:
    """And the gradient is that of the method, masked before it is clipped."""
    limit = 0.05
    trainer, steps, recorder = run(
        tmp_path,
        method,
        {"kind": "speft", "fraction": 0.1, "modules": "all", "score_steps": 1},
        max_steps=4,
        max_grad_norm=limit,
        per_device_train_batch_size=8 // parts,
        gradient_accumulation_steps=parts,
    )
    trainer.train()
    first = steps.masks[0]
    assert first is not None
    size = flat(steps.before[0]).numel()
    assert sum(int(m.sum()) for m in first.values()) == round(0.1 * size)
    start = trl_run.sharp_model()
    for step, record in enumerate(recorder.records):
        steps.check(step)
        assert same(steps.masks[step], first)
        update = trl_run.update_of(record, record.weights, record.weights)
        gradient = update.gradient(FORMULAS[method](update))
        full = dict(zip(first, gradient, strict=True))
        masked = {n: g * first[n] for n, g in full.items()}
        # The first step clips what it looks at, the others what they train.
        length = norm(full if step == 0 else masked)
        assert length > limit
        told = trainer.state.log_history[step]["grad_norm"]
        assert told == pytest.approx(length, rel=1e-4)
        scaled = {n: g * (limit / length) for n, g in masked.items()}
        error = relative_error(list(steps.used[step].values()), list(scaled.values()))
        assert error < 1e-4
    for name, p in start.named_parameters():
        assert torch.equal(steps.after[-1][name][~first[name]], p[~first[name]])


@pytest.mark.parametrize(
    ("score", "scope"),
    rest_slow(
        product(("gradient", "snip", "force", "fisher"), ("global", "local")),
        lambda score, scope: (score, scope) in {("snip", "global"), ("force", "local")},
    ),
)
def test_scores_and_scopes(tmp_path: Path, score: str, scope: str) -> None:
    """Of two steps' gradients, the first of which changes nothing."""
    trainer, steps, _ = run(
        tmp_path,
        "luffy",
        {"kind": "speft", "fraction": 0.2, "score": score, "scope": scope, "score_steps": 2}
        | {"modules": "all"},
        max_steps=3,
    )
    trainer.train()
    assert steps.masks[0] is None
    assert not any(m.any() for m in steps.moved(0).values())
    assert all(not v.any() for values in steps.memory[0].values() for v in values)
    w, g = steps.before[0], {n: steps.found[0][n] + steps.found[1][n] for n in steps.found[0]}
    found = steps.masks[1]
    assert found is not None
    scores = {
        "gradient": {n: g[n].abs() for n in g},
        "snip": {n: (w[n] * g[n]).abs() for n in g},
        "force": {n: -(w[n] * g[n]) for n in g},
        "fisher": {n: steps.found[0][n] ** 2 + steps.found[1][n] ** 2 for n in g},
    }
    assert same(found, top(scores[score], 0.2, scope))
    assert abs(flat(found).float().mean().item() - 0.2) < 0.01
    steps.check(1)
    steps.check(2)


@pytest.mark.parametrize(
    ("every", "look"), rest_slow([(2, 1), (3, 2)], lambda every, look: look == 2)
)
def test_a_mask_that_moves(tmp_path: Path, every: int, look: int) -> None:
    """A weight that leaves the mask stands still at once: its momentum is gone."""
    trainer, steps, _ = run(
        tmp_path,
        "luffy",
        {"kind": "speft", "fraction": 0.05, "update_every": every, "score_steps": look}
        | {"modules": "all"},
        max_steps=6,
    )
    trainer.train()
    chosen, waiting = [], 0
    for step in range(6):
        if waiting or step % every == 0:
            waiting += 1
            if waiting < look:
                assert not any(m.any() for m in steps.moved(step).values())
                assert flat(steps.found[step]).ne(0).float().mean() > 0.9
                continue
            sums = {
                n: sum(steps.found[step - k][n] for k in range(look)) for n in steps.found[step]
            }
            scores = {n: s.abs() for n, s in sums.items()}
            assert same(steps.masks[step], top(scores, 0.05, "global"))
            chosen.append(step)
            waiting = 0
        else:
            assert same(steps.masks[step], steps.masks[step - 1])
        steps.check(step)
    assert chosen == {(2, 1): [0, 2, 4], (3, 2): [1, 4]}[every, look]
    masks = [steps.masks[c] for c in chosen]
    assert all(not same(a, b) for a, b in pairwise(masks))


@pytest.mark.parametrize(
    ("method", "parts"),
    rest_slow(
        product(("mifo", "relift"), (1, 2)),
        lambda method, parts: (method, parts) == ("relift", 2),
    ),
)
def test_imitation_leaves_alone_what_rewards_have_changed_most(
    tmp_path: Path, method: str, parts: int
) -> None:
    """A moving average of the sizes of the other steps; those steps are free."""
    trainer, steps, recorder = run(
        tmp_path,
        method,
        {"kind": "mifo", "fraction": 0.2, "history": 0.8},
        rules=["wrong", "mixed", "mixed", "mixed"] * 4,
        options={"sft_prompts": 2, **({"unsolved_at": 0.5} if method == "mifo" else {})},
        num_generations=4,
        per_device_train_batch_size=16 // parts,
        gradient_accumulation_steps=parts,
        max_steps=8,
    )
    trainer.train()
    changes: dict[str, Tensor] = {}
    frozen: list[dict[str, Tensor]] = []
    for step, record in enumerate(recorder.records):
        imitation = record.rows[0].whole
        assert steps.imitation[step] == imitation
        update = trl_run.update_of(record, record.weights, record.weights)
        gradient = update.gradient(
            {"mifo": formulas.mifo, "relift": formulas.relift}[method](update)
        )
        full = dict(zip(steps.before[step], gradient, strict=True))
        if not imitation:
            error = relative_error(list(steps.used[step].values()), list(full.values()))
            assert error < 1e-5
            change = {n: (steps.after[step][n] - w).abs() for n, w in steps.before[step].items()}
            changes = {n: 0.8 * changes[n] + 0.2 * c if changes else c for n, c in change.items()}
            assert any(
                (m & f[n]).any() for f in frozen[-1:] for n, m in steps.moved(step).items()
            ) or (not frozen)
            continue
        most = top(changes, 0.2, "global")
        frozen.append(most)
        free = {n: ~m for n, m in most.items()}
        assert same(steps.masks[step], free)
        steps.check(step)
        masked = {n: g * free[n] for n, g in full.items()}
        error = relative_error(list(steps.used[step].values()), list(masked.values()))
        assert error < 1e-5, f"step {step}"
    assert len(frozen) >= 2
    assert not same(frozen[0], frozen[-1])  # two steps of imitation may follow one another


def test_in_imitation_too_clipping_sees_the_masked_gradient(tmp_path: Path) -> None:
    """What is frozen is known before the step begins."""
    trainer, steps, recorder = run(
        tmp_path,
        "relift",
        {"kind": "mifo", "fraction": 0.4},
        rules=["wrong", "mixed", "mixed", "mixed"] * 2,
        options={"sft_prompts": 1},
        per_device_train_batch_size=16,
        max_steps=2,
    )
    trainer.train()
    assert steps.imitation == [False, True]
    record = recorder.records[1]
    update = trl_run.update_of(record, record.weights, record.weights)
    gradient = update.gradient(formulas.relift(update))
    masked = {n: g * m for g, (n, m) in zip(gradient, steps.masks[1].items(), strict=True)}
    assert trainer.state.log_history[1]["grad_norm"] == pytest.approx(norm(masked), rel=1e-4)


# ---- a retain set --------------------------------------------------------------------------------


def retain_file(folder: Path) -> tuple[str, list[dict[str, str]]]:
    rows = [
        {"prompt": r["prompt"], "demonstration": r["demonstration"]}
        for r in make_rows(6, seed=5).to_list()
    ]
    path = folder / "retain.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path), rows


def retain_scores(rows: list[dict[str, str]], score: str) -> dict[str, Tensor]:
    """From the gradient of each demonstration's mean negative log-likelihood."""
    model, tokenizer = trl_run.sharp_model(), make_tokenizer()
    names = [n for n, _ in model.named_parameters()]
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    for row in rows:
        target = [*tokenizer(row["demonstration"])["input_ids"], trl_run.EOS]
        logp, _ = score_of(model, Row(tokenizer(row["prompt"])["input_ids"], target))
        gradients = torch.autograd.grad(-logp.mean(), list(model.parameters()))
        for n, g in zip(names, gradients, strict=True):
            sums[n] = sums[n] + (g**2 if score == "fisher" else g)
    return sums if score == "fisher" else {n: s.abs() for n, s in sums.items()}


@pytest.mark.parametrize("method", ["prefix_rft", "luffy", "sft"])
def test_what_a_retain_set_needs_is_frozen(tmp_path: Path, method: str) -> None:
    path, rows = retain_file(tmp_path)
    score = "fisher" if method == "luffy" else "gradient"
    mask = {"kind": "retain", "data": path, "fraction": 0.3, "examples": 4, "score": score}
    trainer, steps, recorder = run(tmp_path, method, mask, max_steps=3)
    trainer.train()
    needed = top(retain_scores(rows[:4], score), 0.3, "global")
    free = {n: ~m for n, m in needed.items()}
    assert same(steps.masks[0], free, differing=4)
    for step, record in enumerate(recorder.records):
        steps.check(step)
        update = trl_run.update_of(record, record.weights, record.weights)
        gradient = update.gradient(FORMULAS[method](update))
        masked = {n: g * m for g, (n, m) in zip(gradient, steps.masks[0].items(), strict=True)}
        assert trainer.state.log_history[step]["grad_norm"] == pytest.approx(norm(masked), rel=1e-4)


def test_what_a_retain_set_does_not_need_is_zeroed_once(tmp_path: Path) -> None:
    path, rows = retain_file(tmp_path)
    mask = {"kind": "retain", "data": path, "fraction": 0.3, "action": "zero", "scope": "local"}
    mask |= {"score": "gradient"}
    trainer, steps, recorder = run(tmp_path, "luffy", mask, max_steps=2)
    trainer.train()
    scores = {n: -s for n, s in retain_scores(rows, "gradient").items()}
    least = top(scores, 0.3, "local")
    start = dict(trl_run.sharp_model().named_parameters())
    zeroed = {n: (w == 0) & (start[n] != 0) for n, w in steps.before[0].items()}
    assert same(zeroed, {n: m & (start[n] != 0) for n, m in least.items()}, differing=8)
    for n, w in steps.before[0].items():
        assert torch.equal(w[~zeroed[n]], start[n][~zeroed[n]])
    moved = steps.moved(0)
    assert sum(int(m[zeroed[n]].sum()) for n, m in moved.items()) > 100
    for record in recorder.records:
        update = trl_run.update_of(record, record.weights, record.weights)
        error = relative_error(record.gradient, update.gradient(formulas.luffy(update)))
        assert error < 1e-5


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "mask", "settings"),
    [
        pytest.param(
            *("prefix_rft", {"kind": "speft", "score_steps": 2, "score": "fisher"}, {}),
            marks=pytest.mark.slow,
        ),
        # Its first checkpoint is in the midst of looking.
        pytest.param(
            *("luffy", {"kind": "speft", "update_every": 3, "score_steps": 2, "scope": "local"}),
            {},
            marks=pytest.mark.slow,
        ),
        pytest.param("sft", {"kind": "speft", "update_every": 2}, {}, marks=pytest.mark.slow),
        ("mifo", {"kind": "mifo", "fraction": 0.3}, {"options": {"sft_prompts": 2}}),
        pytest.param(
            *("luffy", {"kind": "retain", "fraction": 0.3, "action": "zero"}, {}),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["looking", "moving", "sft", "mifo", "retain"],
)
def test_a_resumed_run_has_the_mask(
    tmp_path: Path, method: str, mask: dict, settings: dict
) -> None:
    if mask["kind"] == "retain":
        mask = {**mask, "data": retain_file(tmp_path)[0]}
    settings = {
        "rules": ["wrong", "mixed"] * 8,
        "max_steps": 6 if "update_every" in mask else 4,
        "save_strategy": "steps",
        "save_steps": 1,
        **settings,
    }
    whole, steps, _ = run(tmp_path, method, mask, **settings)
    whole.train()
    for step in (1, 4) if "update_every" in mask else (1,):
        again, later, _ = run(tmp_path, method, mask, **settings)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        for n, weight in steps.after[-1].items():
            assert torch.equal(weight, later.after[-1][n])
        assert same(steps.masks[-1], later.masks[-1])


def test_a_checkpoint_without_mask_is_refused(tmp_path: Path) -> None:
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer, _ = trl_run.start(
        PrefixRFTTrainer,
        tmp_path,
        "luffy",
        trl_run.make_rewards(["mixed"] * 8),
        per_device_train_batch_size=8,
        **settings,
    )
    trainer.train()
    again, _, _ = run(tmp_path, "luffy", {"kind": "speft"}, **settings)
    with pytest.raises(UserError, match="was made without a mask"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# ---- options and adapters ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "needs a kind: speft, mifo, retain"),
        ({"kind": "spefd"}, "did you mean 'speft'"),
        ({"kind": "speft", "fractoin": 0.1}, "did you mean 'fraction'"),
        ({"kind": "speft", "fraction": "a"}, "fraction"),
        ({"kind": "speft", "fraction": 0.0}, r"fraction must be in \(0, 1\)"),
        ({"kind": "speft", "fraction": 1.0}, r"fraction must be in \(0, 1\)"),
        ({"kind": "speft", "fraction": float("nan")}, "must be a finite number"),
        ({"kind": "speft", "score": "grad"}, "salience score"),
        ({"kind": "speft", "scope": "all"}, "scope"),
        ({"kind": "speft", "score_steps": 0}, "score_steps"),
        ({"kind": "speft", "update_every": -1}, "update_every"),
        ({"kind": "mifo", "history": 1.0}, "history"),
        ({"kind": "speft", "data": "x.jsonl"}, "no other kind has any"),
        ({"kind": "retain"}, "retain needs data"),
        ({"kind": "retain", "data": "x.jsonl", "action": "burn"}, "action"),
        ({"kind": "retain", "data": "x.jsonl", "examples": 0}, "examples"),
    ],
)
def test_wrong_options_are_one_sentence(given: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        MaskOptions.read(given)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 250


def test_what_cannot_be_masked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use mifo or relift"):
        run(tmp_path, "luffy", {"kind": "mifo"})
    with pytest.raises(UserError, match="use mifo or relift"):
        run(tmp_path, "sft", {"kind": "mifo"})
    with pytest.raises(UserError, match="did you mean 'speft'"):
        run(tmp_path, "sft", {"kind": "sprft"})
    trainer, _, _ = run(tmp_path, "luffy", {"kind": "retain", "data": str(tmp_path / "none.jsonl")})
    with pytest.raises(UserError, match=r"none\.jsonl"):
        trainer.train()
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"prompt": "q:1+1=?\n", "answer": "2"}) + "\n")
    trainer, _, _ = run(tmp_path, "luffy", {"kind": "retain", "data": str(bare)}, max_steps=1)
    with pytest.raises(UserError, match="no demonstration"):
        trainer.train()


def test_a_mask_as_json_is_a_mask(tmp_path: Path) -> None:
    trainer, steps, _ = run(
        tmp_path, "luffy", '{"kind": "speft", "fraction": 0.5, "modules": "all"}', max_steps=1
    )
    trainer.train()
    assert flat(steps.masks[0]).float().mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("method", "mask", "settings"),
    [
        ("luffy", {"kind": "speft", "fraction": 0.3, "update_every": 2}, {}),
        pytest.param(
            *("mifo", {"kind": "mifo", "fraction": 0.3}, {"options": {"sft_prompts": 2}}),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("prefix_rft", {"kind": "retain", "fraction": 0.3}, {}), marks=pytest.mark.slow
        ),
    ],
    ids=["speft", "mifo", "retain"],
)
def test_the_mask_of_an_adapter_is_over_the_adapter(
    tmp_path: Path, method: str, mask: dict, settings: dict
) -> None:
    from peft import get_peft_model

    if mask["kind"] == "retain":
        mask = {**mask, "data": retain_file(tmp_path)[0]}
    torch.manual_seed(0)
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(trl_run.sharp_model(), adapter)
    base = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trainer, steps, _ = run(
        tmp_path,
        method,
        mask,
        rules=["wrong", "mixed"] * 8,
        model=model,
        max_steps=5,
        **settings,
    )
    trainer.train()
    assert all("lora" in n for n in steps.before[0])
    active = [i for i in range(5) if mask["kind"] != "mifo" or steps.imitation[i]]
    assert len(active) >= 1
    for step in active:
        steps.check(step)
    if mask["kind"] == "mifo":
        free = [i for i in range(5) if i not in active and flat(steps.used[i]).any()]
        assert all(flat(steps.moved(i)).float().mean() > 0.9 for i in free)
    named = dict(trainer.model.named_parameters())
    assert all(torch.equal(p, named[n]) for n, p in base.items())
    assert math.isfinite(trainer.state.log_history[-2]["grad_norm"])


def test_steps_that_only_look_leave_the_optimizer_as_it_was(tmp_path: Path) -> None:
    """Of six steps the first and the fourth only look: Adam has counted two since the choice."""
    mask = {"kind": "speft", "fraction": 0.1, "update_every": 3, "score_steps": 2}
    trainer, _, _ = run(tmp_path, "prefix_rft", mask, max_steps=6)
    trainer.train()
    memory = getattr(trainer.optimizer, "optimizer", trainer.optimizer).state
    assert {int(own["step"]) for own in memory.values()} == {2}
