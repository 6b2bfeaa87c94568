"""Divergences over the vocabulary in real steps: against plain torch, with dense distributions."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_teachers import RULES, TOLERANCE, options_of

from prefix_rft import PrefixRFTTrainer
from prefix_rft.core.divergence import Divergence
from prefix_rft.core.divergence import divergence as dense
from prefix_rft.engines.plan import RowPlan
from prefix_rft.engines.states import States, compared, factor_of
from prefix_rft.engines.trl.rollout.sampler import assembled
from prefix_rft.engines.trl.update.distances import Distances, Heard
from prefix_rft.engines.trl.window import to_batch
from prefix_rft.methods import load
from prefix_rft.runs.rollouts import ROLLOUTS, read_generation
from prefix_rft.support.errors import UserError
from second.step import trl_run
from second.step.teachers import DIVERGENCES, divergence, tables_of
from second.step.update import advantage, ppo, relative_error, row_means
from tables import rest_slow
from tiny import make_tokenizer

CASES = [
    ("sdft", "ema", "demonstration"),
    ("sdft", "live", "answer"),
    ("opsd", "frozen", "demonstration"),
    ("opsd", "snapshot", "peer"),
    ("sdpo", "ema", "peer"),
    ("gkd", "live", "answer"),
]


def options(case: tuple[str, str, str], **more: Any) -> dict[str, Any]:
    top = {"divergence": {"top": 5}} if case[0] == "sdpo" else {}
    return {**options_of(*case), **top, **more}


def run(
    folder: Path,
    method: str,
    given: dict[str, Any],
    parts: int = 1,
    resume: str | None = None,
    rules: Sequence[str] = RULES,
    **more: Any,
) -> Any:
    size = {"gradient_accumulation_steps": parts, "per_device_train_batch_size": 16 // parts}
    trainer, recorder = trl_run.start(
        PrefixRFTTrainer, folder, method, trl_run.make_rewards(rules), options=given,
        model=trl_run.attentive_model(),
        **{"max_steps": 4, **size, **more},
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer, recorder.records


@pytest.mark.parametrize(
    ("case", "parts"),
    rest_slow(
        [(c, p) for c in CASES for p in (1, 2, 4, 8)],
        lambda case, parts: parts == 1 + 3 * (case[0] == "sdft"),
    ),
    ids=str,
)
def test_a_step_is_its_formula(tmp_path: Path, case: tuple[str, str, str], parts: int) -> None:
    method, kind, context = case
    trainer, records = run(tmp_path, method, options(case), parts)
    for n, record in enumerate(records):
        told = tables_of(trainer.train_dataset, records, n, kind, context)
        update = trl_run.update_of(record, step=n, total=4)
        value = divergence(update, told, **DIVERGENCES[method])
        assert record.loss == pytest.approx(value.item(), rel=TOLERANCE, abs=1e-6)
        assert relative_error(record.gradient, update.gradient(value)) < TOLERANCE
        wrong = divergence(update, told, **{**DIVERGENCES[method], "shift": 1})
        assert relative_error(record.gradient, update.gradient(wrong)) > 100 * TOLERANCE
    lines = [x for x in trainer.state.log_history if "teacher/divergence" in x]
    assert len(lines) == 4
    ratio = DIVERGENCES[method].get("cap")  # in the first update it is 1
    if method != "sdft" and ratio is None:
        assert lines[0]["teacher/divergence"] == pytest.approx(records[0].loss, rel=1e-4)
    assert lines[0]["teacher/gap_abs"] > 1e-3


@pytest.mark.parametrize("savings", [[], ["packing"]], ids=["whole rows", "packed"])
@pytest.mark.parametrize("method", ["opsd", "sdpo"])
def test_whole_rows_and_rows_without_a_gradient(
    tmp_path: Path, method: str, savings: list[str]
) -> None:
    case = (method, "ema", "peer")
    trainer, records = run(tmp_path, method, options(case), 2, savings=savings, max_steps=2)
    for n, record in enumerate(records):
        told = tables_of(trainer.train_dataset, records, n, "ema", "peer")
        update = trl_run.update_of(record, step=n, total=4)
        value = divergence(update, told, **DIVERGENCES[method])
        assert relative_error(record.gradient, update.gradient(value)) < TOLERANCE
    assert any(q is None for q in told)


def test_a_second_update_weighs_by_the_ratio(tmp_path: Path) -> None:
    case = ("sdft", "frozen", "demonstration")
    more = {"num_iterations": 2, "learning_rate": 1e-2}
    trainer, records = run(tmp_path, "sdft", options(case, ratio_cap=1.01), **more)
    how = {**DIVERGENCES["sdft"], "cap": 1.01}
    for n in (0, 1):
        told = tables_of(trainer.train_dataset, records, n, "frozen", "demonstration")
        update = trl_run.update_of(records[n], old=records[0].weights, step=n, total=4)
        value = divergence(update, told, **how)
        assert relative_error(records[n].gradient, update.gradient(value)) < TOLERANCE
    without = divergence(update, told, **{**how, "cap": None})
    assert relative_error(records[1].gradient, update.gradient(without)) > 100 * TOLERANCE


@pytest.mark.parametrize("method", ["opsd", "sdpo"])
def test_the_same_weights_and_context_leave_nothing(tmp_path: Path, method: str) -> None:
    case = (method, "live", "none")
    trainer, records = run(tmp_path, method, options(case))
    assert max(g.abs().max().item() for r in records for g in r.gradient) < 1e-6
    found = [
        x["teacher/divergence"] for x in trainer.state.log_history if "teacher/divergence" in x
    ]
    assert max(map(abs, found)) < 1e-6


def test_another_model_teaches_rollouts_and_demonstrations(tmp_path: Path) -> None:
    """``gkd``, packed and whole: a teacher of another size, a row of the group a demonstration."""
    torch.manual_seed(5)
    other = trl_run.sharp_model()
    with torch.no_grad():
        other.model.norm.weight.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    given = {"path": str(tmp_path / "other"), "num_demonstrations": 1}
    for savings in ("packed", "whole"):
        more = {} if savings == "packed" else {"savings": []}
        _, records = run(tmp_path / savings, "gkd", given, 2, max_steps=2, **more)
        for record in records:
            assert any(r.whole for r in record.rows)
            with torch.no_grad():
                told = [
                    None if r.completion == [trl_run.EOS] and r.reward != r.reward else q
                    for r, q in ((r, table_of(other, r)) for r in record.rows)
                ]
            update = trl_run.update_of(record)
            value = divergence(update, told, "tokens", 0.5)
            assert relative_error(record.gradient, update.gradient(value)) < TOLERANCE


def table_of(model: Any, row: Any) -> torch.Tensor:
    from second.step.teachers import table

    return table(model, row)


@pytest.mark.parametrize("kind", ["ema", "snapshot"])
def test_killed_and_resumed_to_the_bit(tmp_path: Path, kind: str) -> None:
    given = options(("sdpo", kind, "demonstration"))
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 5}
    trainer, records = run(tmp_path / "whole", "sdpo", given, **settings)
    behind = str(tmp_path / "whole" / "checkpoint-3")
    other, again = run(tmp_path / "again", "sdpo", given, resume=behind, **settings)
    assert [r.loss for r in again] == [r.loss for r in records[3:]]
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name


def test_gradient_shares_know_a_divergence(tmp_path: Path) -> None:
    """``sdpo`` beside its policy term: both train tokens of the policy, so their norm is all."""
    case = ("sdpo", "live", "answer")
    given = options(case, policy=0.5)
    trainer, _ = run(tmp_path, "sdpo", given, 2, gradient_shares_every=1, max_steps=1)
    line = next(x for x in trainer.state.log_history if "gradient/policy_norm" in x)
    assert line["gradient/policy_norm"] == pytest.approx(line["grad_norm"], rel=1e-5)


def test_no_divergence_of_compiled_models(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="whole distributions, which cannot be with torch_compile"):
        run(tmp_path, "opsd", options(("opsd", "live", "answer")), torch_compile=True)


# ---- rows from a teacher's prompt ----------------------------------------------------------------


def guided_run(folder: Path, context: str, parts: int = 1, **more: Any) -> Any:
    case = ("hdpo", "live", context)
    rules = ("mixed", "rare", "rare", "wrong", "patchy", "rare") * 2
    return run(folder, "hdpo", options(case, attempts=2), parts, rules=rules, **more)


@pytest.mark.parametrize("savings", [[], ["packing"]], ids=["whole rows", "packed"])
@pytest.mark.parametrize("context", ["demonstration", "answer"])
def test_rows_of_groups_that_fail_are_sampled_behind_the_teachers_prompt(
    tmp_path: Path, context: str, savings: list[str]
) -> None:
    """Their loss is that of the plain prompt, against the teacher's; failed ones do not count."""
    trainer, records = guided_run(tmp_path, context, 2, savings=savings, log_rollouts=True)
    seen = []
    for n, record in enumerate(records):
        lines = read_generation(tmp_path / ROLLOUTS, n)
        guided = {(r.group, r.row) for r in lines if r.guided}
        seen += [r.reward for r in lines if r.guided]
        told = tables_of(trainer.train_dataset, records, n, "live", context)
        update = trl_run.update_of(record, step=n, total=4)
        place = [(r.group, r.place) in guided for r in record.rows]
        assert all(r.attempt for r in lines if r.guided)
        value = plain_grpo(update, place)
        right = [
            q if g and r.reward > 0 else None
            for r, q, g in zip(record.rows, told, place, strict=True)
        ]
        value = value + divergence(update, right, "tokens", 0.5)
        assert record.loss == pytest.approx(value.item(), rel=TOLERANCE, abs=1e-6)
        assert relative_error(record.gradient, update.gradient(value)) < TOLERANCE
    assert 0.0 in seen
    assert max(r for r in seen if r is not None) > 0.0  # some are right, some fail again


def test_what_was_sampled_behind_another_prompt_is_not_known_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler gets the teacher's ids; the row keeps its own, and its scores are made anew."""
    asked: dict[tuple[int, int], list[int]] = {}
    original = PrefixRFTTrainer._sample

    def sample(self: Any, prompt_ids: list[list[int]], plans: list[Any]) -> Any:
        asked.update({(p.group, p.row): x for p, x in zip(plans, prompt_ids, strict=True)})
        return original(self, prompt_ids, plans)

    monkeypatch.setattr(PrefixRFTTrainer, "_sample", sample)
    trainer, _ = guided_run(tmp_path, "demonstration", max_steps=1, log_rollouts=True)
    lines = read_generation(tmp_path / ROLLOUTS, 0)
    assert any(r.guided for r in lines)
    for row in lines:
        example, tokens = trainer.train_dataset[row.example], make_tokenizer()
        own = tokens(example["prompt"])["input_ids"]
        told = tokens(f"a:{example['demonstration'][0]};{example['prompt']}")["input_ids"]
        assert row.prompt_ids == own
        assert asked[row.group, row.row] == (told if row.guided else own)
    line = next(x for x in trainer.state.log_history if "guided/logp" in x)
    assert math.isfinite(line["guided/logp"])
    # Of the rows that were sampled from their own prompt.
    assert line["sampling/sampling_logp_difference/max"] < 1e-4


def test_a_sampler_s_log_probs_of_another_prompt_count_for_nothing() -> None:
    """An engine's are of the prompt that it was sent; a ratio to this prompt's would be a lie."""
    plans = [RowPlan(0, 0, 0), RowPlan(0, 0, 1, guided=(5, 6))]
    ids, logps = assembled(plans, [[3, 4], [7, 8, 9]], [[-0.1, -0.2], [-1.0, -2.0, -3.0]], 2)
    assert (ids, logps) == ([[3, 4], [7, 8]], [[-0.1, -0.2], [None, None]])
    no = torch.zeros(2, dtype=torch.bool)
    rows = {
        "completion_ids": torch.ones(2, 2, dtype=torch.int64),
        "completion_mask": torch.ones(2, 2, dtype=torch.int64),
        "importance_sampling_ratio": torch.tensor([[0.5, 0.6], [0.7, 0.8]]),
        "row_reward": torch.zeros(2), "row_group": torch.zeros(2, dtype=torch.int64),
        "row_guided": torch.tensor([False, True]),
        **dict.fromkeys(("prefix_mask", "demo_mask"), torch.zeros(2, 2, dtype=torch.bool)),
        **dict.fromkeys(("row_hinted", "row_context", "row_truncated", "row_dropped"), no),
    }  # fmt: skip
    weight = to_batch(rows).weight_BT
    assert weight is not None
    assert weight.tolist() == [[0.5, pytest.approx(0.6)], [1.0, 1.0]]


def plain_grpo(u: Any, guided: Sequence[bool]) -> torch.Tensor:
    """GRPO on the rows that are not guided; the others count in no mean."""
    gains = [
        ppo(u.ratio(i), advantage(r, u.mates(i, "own"), "std"))
        for i, r in enumerate(u.rows)
        if not guided[i]
    ]
    return row_means(gains)


def test_two_streams_of_one_teacher_have_their_own_tokens() -> None:
    """Solved rows one way, the others another, as SRPO routes them: each at its own places."""
    told = load("opsd").streams[0]
    ways = (("right", "solved", Divergence(0.0)), ("wrong", "unsolved", Divergence(1.0)))
    streams = tuple(
        replace(told, name=name, advantage=which, divergence=spec) for name, which, spec in ways
    )
    method = replace(load("opsd"), streams=streams)
    rng = torch.Generator().manual_seed(0)
    wanted = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]]).bool()
    acts = torch.stack([wanted.clone(), wanted.clone()])
    acts[0, 1], acts[1, 0], acts[1, 2] = False, False, False
    acts[0, 2, 1] = False
    where = acts.any(0)
    head, p, q = (torch.randn(n, 4, generator=rng).double() for n in (9, 7, int(where.sum())))
    own, theirs = (States(x, head, None, 1.0, None) for x in (p, q))
    heard = {"teacher": Heard(where, torch.zeros(3, 3), theirs)}
    found = Distances(method, acts, wanted, heard, 1.0)
    placed = found.placed(found.beside(own))
    at = {tuple(x): i for i, x in enumerate(wanted.nonzero().tolist())}
    there = {tuple(x): i for i, x in enumerate(where.nonzero().tolist())}
    for s, (_, _, spec) in enumerate(ways):
        for i in range(3):
            for t in range(3):
                expected = 0.0
                if acts[s, i, t]:
                    one, other = p[at[i, t]] @ head.T, q[there[i, t]] @ head.T
                    expected = dense(one[None], other[None], spec).item()
                assert placed[s, i, t].item() == pytest.approx(expected)


# ---- heads ---------------------------------------------------------------------------------------


def states(rows: int, width: int, seed: int) -> States:
    rng = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(4, width, generator=rng), torch.randn(rows, width, generator=rng)
    return States(hidden.double(), weight.double(), None, 0.5, 3.0)


def test_a_padded_head_is_cut_and_one_of_another_model_refused() -> None:
    student, teacher = states(40, 3, 0), states(41, 5, 1)

    def logits(s: States) -> torch.Tensor:
        return 3.0 * torch.tanh(0.5 * s.hidden_MH @ s.weight_VH[:40].T / 3.0)

    p, q = ((logits(s) / 0.7).log_softmax(-1) for s in (student, teacher))
    found = compared(student, teacher, Divergence(1.0), 0.7)
    assert torch.allclose(found, (p.exp() * (p - q)).sum(-1), rtol=1e-10)
    with pytest.raises(UserError, match="heads of 40 and 60 tokens"):
        compared(student, states(60, 5, 1), Divergence(1.0), 0.7)


@pytest.mark.parametrize(
    ("fields", "factor"),
    [
        ({"logit_scale": 0.25}, 0.25),
        ({"logits_scaling": 8.0}, 0.125),
        ({"logits_scaling": 8.0, "model_type": "hyperclovax"}, 8.0),
        ({"logit_scale": None}, 1.0),
        ({}, 1.0),
    ],
)
def test_the_factor_of_a_models_logits(fields: dict[str, Any], factor: float) -> None:
    from types import SimpleNamespace

    assert factor_of(SimpleNamespace(**{"model_type": "x", **fields})) == factor
