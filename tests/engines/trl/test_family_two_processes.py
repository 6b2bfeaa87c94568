"""Two gloo processes compute what one would, also where only one of them has what matters."""

import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from family_two_processes import CASES, STEPS
from two_gloo import Ranks, launch

from second.step import formulas, teachers, trl_run
from second.step.update import Row, Update, relative_error, solve_rate, total
from tiny import make_tokenizer

HERE = Path(__file__).parent


def grpo_or_demonstration(u: Update) -> torch.Tensor:
    imitated = [u.lp[i].mean() for i in u.of("demo")]
    return formulas.grpo(u) - total(imitated) / len(u.rows)


FORMULAS = {
    "lengthen": formulas.prefix_rft,
    "demonstration": grpo_or_demonstration,
    "adaback": formulas.bread,
    "pass_rate": formulas.control,
    "trapo-apart": partial(formulas.trapo, context=()),
    "irft-split": formulas.irft,
}
STAGES = {"irft-split": [0, 1, 2]}
TAUGHT = {
    "opd": ("ema", "demonstration"),
    "rlsd-split": ("snapshot", "peer"),
    "sdft": ("ema", "demonstration"),
    "sdpo-split": ("snapshot", "peer"),
}
"""Whose weights, and what they are shown."""


def shares_of(case: str, step: int) -> dict[str, float]:
    """The share of the credit that a teacher weighs."""
    return {"share": 0.5 * (1 - step / 50)} if case.startswith("rlsd") else {}


def taught(
    case: str, step: Update, source: Dataset, records: list[Any], number: int
) -> torch.Tensor:
    """The loss of a method with a teacher."""
    method, asked = CASES[case][0], (source, records, number, *TAUGHT[case])
    if method in teachers.DIVERGENCES:
        told = teachers.tables_of(*asked)
        return teachers.divergence(step, told, **teachers.DIVERGENCES[method])
    told = teachers.told_of(*asked)
    return teachers.FORMULAS[method](step, told, **shares_of(case, number))


pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return launch("family_two_processes.py", tmp_path_factory.mktemp("two"), list(CASES))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(ranks: Ranks, case: str) -> None:
    first, second = parts = [r[case] for r in ranks[1]]
    assert first["forwards"] == second["forwards"]
    assert first["state"] == second["state"]
    for a, b in zip(first["records"], second["records"], strict=True):
        assert all(map(torch.equal, a["gradient"], b["gradient"]))
        assert all(map(torch.equal, a["weights"].values(), b["weights"].values()))
    for kind in ("weights", "reference", "masks"):
        if first[kind] is not None:
            assert all(map(torch.equal, first[kind].values(), second[kind].values()))
    records = trl_run.joined(*(p["records"] for p in parts))
    assert len(records) == STEPS
    memory: dict[int, float] = {}
    for number, record in enumerate(records):
        rates = {"dapo": (0.0, 1.0), "luffy-split": (0.0,)}.get(case, ())
        reference = records[STAGES.get(case, [0] * STEPS)[number]].weights
        step = trl_run.update_of(trl_run.without(record, *rates), record.weights, reference)
        if case in TAUGHT:
            _, _, rules, missing, *_ = CASES[case]
            source = trl_run.make_rewards(rules * (8 // len(rules)), missing=missing)
            loss = taught(case, step, source, records, number)
        elif case == "discriminative":
            loss = formulas.discriminative(step, memory)
        else:
            loss = (FORMULAS.get(case) or getattr(formulas, CASES[case][0]))(step)
        gradient = step.gradient(loss)
        if case == "mifo" and record.rows[0].whole:
            # The mask is chosen from both processes' steps, which are the same.
            gradient = [g * m for g, m in zip(gradient, first["masks"].values(), strict=True)]
            found = [g * m for g, m in zip(record.gradient, first["masks"].values(), strict=True)]
            assert relative_error(found, gradient) < 1e-5
        else:
            assert relative_error(record.gradient, gradient) < 1e-5
        if not case.startswith("irft"):
            assert record.loss == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
    if case != "guarded":  # whose share has the same name
        told = {k: v["u"] for k, v in first["state"]["examples"].items() if "u" in v}
        assert told == pytest.approx(memory, abs=1e-5)


def kinds_of(ranks: Ranks, rank: int, case: str) -> list[set[str]]:
    """Of the rows of a process, by step."""
    records = ranks[1][rank][case]["records"]
    return [{Row(**r).kind for r in x["rows"]} for x in records]


def test_one_process_alone_is_helped(ranks: Ranks) -> None:
    """It has the groups that fail and the demonstrations."""
    assert any("hybrid" in k for k in kinds_of(ranks, 0, "bread"))
    assert kinds_of(ranks, 1, "bread") == [{"own"}] * STEPS


def test_the_cases_are_what_they_say(ranks: Ranks) -> None:
    """One process alone has demonstrations, groups that fail, solved rows; groups are split."""
    kinds = partial(kinds_of, ranks)
    for case in ("luffy", "chord"):
        assert kinds(0, case) == [{"own", "demo"}] * STEPS
        assert kinds(1, case) == [{"own"}] * STEPS
    for case in ("relift", "mifo"):
        assert kinds(0, case)[-1] == {"demo"}
        assert kinds(1, case)[-1] == set()
    for case in ("luffy-split", "discriminative", "irft-split", "demonstration"):
        assert any("demo" in k for k in kinds(0, case))
        assert kinds(1, case) == [{"own"}] * STEPS
    solved = [
        [any(r["reward"] > 0 for r in x["rows"]) for x in ranks[1][rank]["self_sft"]["records"]]
        for rank in (0, 1)
    ]
    assert solved == [[False] * STEPS, [True] * STEPS]
    assert len(ranks[1][0]["adaback"]["state"]["examples"]) == 6
    # Groups that lie across both processes have left a right and a wrong rollout each.
    kept = ranks[1][0]["pass_rate"]["state"]["traces"]
    assert len(kept) == STEPS
    assert all([solved for _, solved, _ in some] == [True, False] for some in kept.values())


def test_rows_wait_for_those_of_another_process(ranks: Ranks) -> None:
    """Of a group of eight the first process has those that all others wait for."""
    attempts = [ranks[1][rank]["trapo"]["attempts"] for rank in (0, 1)]
    found = set()
    for first, second in zip(*attempts, strict=True):
        assert str(first["rewards"]) == str(second["rewards"])
    for step in range(STEPS):
        turns = attempts[1][4 * step : 4 * step + 4]
        waits = [[c == [trl_run.EOS] for c in turn["completions"]] for turn in turns]
        assert [sum(w) for w in waits] == [4, 2, 1, 0]
        rows = ranks[1][1]["trapo"]["records"][step]["rows"]
        known = [0.0 if r != r else r for r in turns[-1]["rewards"]]
        helped = [sum(known[:4]) < 2, sum(known[:4]) < 2, sum(known[:6]) < 4, sum(known[:7]) < 7]
        given = [bool(r["prefix"] or r["whole"]) for r in sorted(rows, key=lambda r: r["place"])]
        assert given == helped
        found |= set(helped)
    assert found == {True, False}


def test_a_group_across_processes_has_one_limit(ranks: Ranks) -> None:
    """A token before the first prefix that is right alone; of an example that never is, .9."""
    tokenizer = make_tokenizer()
    source = trl_run.make_rewards(CASES["guarded"][2] * 4)
    short = 0
    for step in range(STEPS):
        parts = [ranks[1][rank]["guarded"]["records"][step]["rows"] for rank in (0, 1)]
        rows = [Row(**r) for part in parts for r in part]
        assert {len(part) for part in parts} == {4}
        (example,), (prefix,) = {r.example for r in rows}, {r.prefix for r in rows}
        demonstration, rule = (source[example][k] for k in ("demonstration", "rule"))
        size = len(tokenizer(demonstration[0])["input_ids"]) + 1
        texts = [demonstration[0][:n] for n in range(1, size)]
        right = [trl_run.reward_of(t, demonstration, rule) == 1.0 for t in texts]
        limit = right.index(True) if True in right else size - 1
        assert prefix <= limit
        short += prefix == limit < size // 2
    assert short


@pytest.mark.parametrize("case", ["luffy-split", "dapo", "bread", "lengthen", "demonstration"])
def test_each_changes_the_groups_that_failed(ranks: Ranks, case: str) -> None:
    """Whoever holds them; what another process changes is no reason to change one's own."""
    changes = [0, 0]
    for rank in (0, 1):
        attempts = ranks[1][rank][case]["attempts"]
        others = ranks[1][1 - rank][case]["attempts"]
        assert [a["step"] for a in attempts] == [a["step"] for a in others]
        for n, (before, after) in enumerate(pairwise(attempts)):
            if before["step"] != after["step"]:
                continue
            both = [before, others[n]] if rank == 0 else [others[n], before]
            groups, whole = ([y for x in both for y in x[k]] for k in ("groups", "whole"))
            rows = list(zip(groups, whole, before["rewards"], strict=True))
            for i, group in enumerate(before["groups"]):
                mates = [Row([], [], reward=r) for g, w, r in rows if g == group and not w]
                rate = solve_rate(mates)
                flat = rate == 0.0 or (case == "dapo" and rate == 1.0)
                changed = after["numbers"][i] > before["numbers"][i]
                changes[rank] += changed
                assert changed <= flat
                assert changed or after["completions"][i] == before["completions"][i]
                if case in ("luffy-split", "dapo"):
                    assert changed == flat
    assert changes[0] > 0


@pytest.mark.parametrize("case", ["dapo", "bread"])
def test_files_have_the_rows_of_both(ranks: Ranks, case: str) -> None:
    """Only the group of the first process is sampled again."""
    folder, parts = ranks
    again = set()
    for step in range(STEPS):
        text = (folder / case / f"rollouts/step_{step:06d}.jsonl").read_text()
        lines = [json.loads(x) for x in text.splitlines()]
        assert [(x["group"], x["row"]) for x in lines] == [divmod(i, 4) for i in range(8)]
        trained = [r for p in parts for r in p[case]["records"][step]["rows"]]
        told = sorted((x["group"], x["completion_ids"], x["reward"]) for x in lines)
        assert told == sorted((r["group"], r["completion"], r["reward"]) for r in trained)
        again |= {(x["group"], x["attempt"] > 0) for x in lines}
    assert (0, True) in again
    assert case == "dapo" or (1, True) not in again
