"""Teachers in real steps: against plain torch, whose weights and prompts are made here again."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from prefix_rft import PrefixRFTTrainer
from prefix_rft.core.teacher import Teacher
from prefix_rft.data.render import Renderer
from prefix_rft.engines.contexts import Contexts, Peer
from prefix_rft.engines.kept_weights import KeptWeights
from prefix_rft.engines.plan import RowPlan, RunPoint
from prefix_rft.support.errors import UserError
from second.step import trl_run
from second.step.teachers import FORMULAS, opd, told_of
from second.step.update import relative_error
from tables import rest_slow
from tiny import make_chat_tokenizer, make_model, make_rows, make_tokenizer

TOLERANCE = 1e-5
TEMPLATE = "a:{context};{prompt}"
RULES = ("mixed", "wrong", "right", "mixed", "patchy", "mixed") * 2

CASES = [
    ("rlsd", "snapshot", "answer"),
    ("rlsd", "live", "demonstration"),
    ("rlsd", "ema", "peer"),
    ("opd", "ema", "demonstration"),
    ("opd", "frozen", "none"),
    ("gats", "frozen", "demonstration"),
    ("sdar", "live", "answer"),
    ("sdar", "snapshot", "peer"),
]


def options_of(method: str, weights: str, context: str) -> dict[str, Any]:
    teacher: dict[str, Any] = {"weights": weights, "template": TEMPLATE, "every": 1, "rate": 0.25}
    teacher |= {"every": 2} if weights == "snapshot" else {}
    if context == "answer":
        teacher |= {"context": "column", "column": "answer"}
    else:
        teacher |= {"context": context, "column": None}
    return {"teacher": teacher}


def run(folder: Path, method: str, options: dict[str, Any], parts: int = 1, **more: Any) -> Any:
    trainer, recorder = trl_run.start(
        PrefixRFTTrainer,
        folder,
        method,
        trl_run.make_rewards(RULES),
        options=options,
        gradient_accumulation_steps=parts,
        **{"per_device_train_batch_size": 16 // parts, "max_steps": 4, **more},
    )
    trainer.train()
    return trainer, recorder.records


@pytest.mark.parametrize(
    ("case", "parts"),
    rest_slow(
        [(c, p) for c in CASES for p in (1, 2, 4, 8)],
        lambda case, parts: parts == 1 + 3 * (case[0] == "opd"),
    ),
    ids=str,
)
def test_a_step_is_its_formula(tmp_path: Path, case: tuple[str, str, str], parts: int) -> None:
    method, kind, context = case
    trainer, records = run(tmp_path, method, options_of(*case), parts)
    assert len(records) == 4
    for n, record in enumerate(records[: 1 if method == "gats" else None]):
        told = told_of(trainer.train_dataset, records, n, kind, context)
        update = trl_run.update_of(record, step=n, total=4)
        share = {"share": 0.5 * (1 - n / 50)} if method == "rlsd" else {}
        value = FORMULAS[method](update, told, **share)
        assert record.loss == pytest.approx(value.item(), rel=TOLERANCE, abs=1e-6)
        assert relative_error(record.gradient, update.gradient(value)) < TOLERANCE
        if method in ("opd", "rlsd"):
            wrong = FORMULAS[method](update, told, sign=-1.0, **share)
            error = relative_error(record.gradient, update.gradient(wrong))
            assert error > 100 * TOLERANCE or context == "none"  # nothing moves, so D stays 0
    if context == "peer":
        assert any(q is None for q in told_of(trainer.train_dataset, records, 0, kind, context))


def test_a_second_update_of_the_same_rollouts(tmp_path: Path) -> None:
    """A frozen teacher has spoken once; the ratio and D are those of the present policy."""
    case = ("opd", "frozen", "demonstration")
    trainer, records = run(tmp_path, "opd", options_of(*case), num_iterations=2, learning_rate=1e-2)
    for n in (0, 1):
        told = told_of(trainer.train_dataset, records, n, "frozen", "demonstration")
        update = trl_run.update_of(records[n], old=records[0].weights, step=n, total=4)
        value = opd(update, told)
        assert relative_error(records[n].gradient, update.gradient(value)) < TOLERANCE


def test_the_same_weights_and_context_leave_nothing(tmp_path: Path) -> None:
    trainer, records = run(tmp_path, "opd", options_of("opd", "live", "none"))
    largest = max(g.abs().max().item() for r in records for g in r.gradient)
    assert largest < 1e-6  # float32: packed rows of two forwards
    found = [x["teacher/gap_abs"] for x in trainer.state.log_history if "teacher/gap_abs" in x]
    assert max(found) < 1e-6


def test_another_model_teaches(tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = make_model(make_tokenizer())
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(4.0)
        other.model.norm.weight.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    trainer, records = run(tmp_path, "opd", {"path": str(tmp_path / "other")}, parts=2)
    for n, record in enumerate(records):
        said = trl_run.scores(other.state_dict(), record.rows)[0]
        update = trl_run.update_of(record, step=n, total=4)
        assert relative_error(record.gradient, update.gradient(opd(update, said))) < TOLERANCE
    assert not any(p.requires_grad for m in trainer.others.values() for p in m.parameters())


def test_two_teachers_by_a_column(tmp_path: Path) -> None:
    paths = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        folder = tmp_path / str(seed)
        model = trl_run.sharp_model()
        with torch.no_grad():
            model.model.norm.weight.mul_(seed / 4)
        model.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        paths.append(folder)
    teachers = {
        "m": {"path": str(paths[0]), "only": {"rule": "mixed"}},
        "w": {"path": str(paths[1]), "only": {"rule": "wrong"}},
    }
    trainer, records = run(tmp_path / "run", "opd", {"teachers": teachers}, max_steps=2)
    from transformers import AutoModelForCausalLM

    state = [AutoModelForCausalLM.from_pretrained(p).state_dict() for p in paths]
    for n, record in enumerate(records):
        rules = [trainer.train_dataset[r.example]["rule"] for r in record.rows]
        first, second = (trl_run.scores(x, record.rows)[0] for x in state)
        said = [
            {"mixed": a, "wrong": b}.get(rule)
            for rule, a, b in zip(rules, first, second, strict=True)
        ]
        update = trl_run.update_of(record, step=n, total=2)
        assert relative_error(record.gradient, update.gradient(opd(update, said))) < TOLERANCE
    line = next(x for x in trainer.state.log_history if "m/taught" in x)
    assert 0 < line["m/taught"] < 1
    assert 0 < line["w/taught"] < 1


def test_no_reward_is_wanted_where_none_is_read(tmp_path: Path) -> None:
    from tiny import make_config

    trainer = PrefixRFTTrainer(
        trl_run.sharp_model(),
        args=make_config(
            tmp_path, method="opd", method_options=options_of("opd", "frozen", "none"), max_steps=1
        ),
        train_dataset=make_rows(8),
        processing_class=make_tokenizer(),
    )
    trainer.train()
    assert trainer.state.global_step == 1


# ---- a coefficient that follows ------------------------------------------------------------------


def test_gats_withdraws_for_good_and_asks_no_more(tmp_path: Path) -> None:
    options = {**options_of("gats", "frozen", "demonstration"), "reference": 0.05, "window": 2}
    trainer, _ = run(tmp_path, "gats", options)
    lines = [x for x in trainer.state.log_history if "teacher/coefficient" in x]
    assert [x["teacher/coefficient"] for x in lines] == [1.0, 0.0, 0.0, 0.0]
    assert ["teacher/gap" in x for x in lines] == [True, False, False, False]
    assert trainer.method_state.followed["teacher"] == (math.inf,)
    forward = [x["tokens/forward"] for x in lines]
    assert forward[0] > 0
    assert max(forward[1:]) < forward[0]


@pytest.mark.parametrize("kind", ["ema", "snapshot", "frozen"])
def test_killed_and_resumed_to_the_bit(tmp_path: Path, kind: str) -> None:
    """Behind a checkpoint: what was kept for a teacher, and what a coefficient remembers."""
    options = {**options_of("gats", kind, "demonstration"), "reference": 5.0}
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 5}
    trainer, records = run(tmp_path / "whole", "gats", options, **settings)
    assert trainer.method_state.followed["teacher"] != ()
    other, recorder = trl_run.start(
        PrefixRFTTrainer, tmp_path / "again", "gats", trl_run.make_rewards(RULES),
        options=options, gradient_accumulation_steps=1, per_device_train_batch_size=16, **settings,
    )  # fmt: skip
    other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert [r.loss for r in recorder.records] == [r.loss for r in records[3:]]
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name
    assert other.method_state.followed == trainer.method_state.followed
    there = (tmp_path / "whole/checkpoint-3/teacher.safetensors").is_file()
    assert there == (kind != "frozen")


# ---- weights that are kept -----------------------------------------------------------------------


def test_a_moving_average_moves_in_bfloat16() -> None:
    model = torch.nn.Linear(1, 1, bias=False).bfloat16()
    model.weight.data.fill_(1.0)
    averages = {d: KeptWeights(model, "teacher", d) for d in (None, torch.float32)}
    model.weight.data.fill_(1.0 + 1 / 128)
    for _ in range(200):
        for kept in averages.values():
            kept.follow(0.01)
    assert averages[None].weights["weight"].item() == 1.0  # what it would be without
    assert averages[torch.float32].weights["weight"].item() == pytest.approx(1.00676, abs=1e-5)
    with averages[torch.float32].swapped():
        assert model.weight.dtype == torch.bfloat16
    assert model.weight.item() == 1.0 + 1 / 128


def test_a_moving_average_by_hand() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    kept = KeptWeights(model, "teacher", torch.float32)
    model.weight.data.fill_(2.0)
    for expected in (1.05, 1.0975):
        kept.follow(0.05)
        assert kept.weights["weight"].item() == pytest.approx(expected)


# ---- prompts -------------------------------------------------------------------------------------


def contexts(limit: int | None = None, rows: int = 4) -> Contexts:
    data = [
        {
            "prompt": f"p{i}", "prefix_rft_example": i, "answer": str(i), "rule": "a",
            "prefix_rft_demonstration_ids": [make_tokenizer()(f"d{i}e")["input_ids"]],
        }
        for i in range(rows)
    ]  # fmt: skip
    return Contexts(Renderer(make_tokenizer()), Dataset.from_list(data), {"teacher": limit})


POINT = RunPoint(4, 0, 3, 10, 24)


def text_of(
    of: Contexts, example: int, teacher: Teacher, plan: RowPlan | None = None, peers: Any = ()
) -> str | None:
    plan = plan or RowPlan(example, 0, 0)
    ids, _ = of.prompt(teacher, of.dataset[example], plan, POINT, peers)
    return None if ids is None else make_tokenizer().decode(ids)


def shows(**fields: Any) -> Teacher:
    return Teacher(template=TEMPLATE, **fields)


def test_what_a_prompt_shows() -> None:
    of = contexts()
    assert text_of(of, 1, shows()) == "a:d1e;p1"
    assert text_of(of, 1, shows(context="prefix", ratio=0.5)) == "a:d1;p1"
    assert text_of(of, 1, shows(context="none")) == "p1"
    assert text_of(of, 1, shows(context="column", column="answer")) == "a:1;p1"
    assert text_of(of, 1, shows(only={"rule": "b"})) is None
    ids = make_tokenizer()("yes")["input_ids"]
    peers = [Peer(0, 0, True, (5,)), Peer(0, 1, False, (6,)), Peer(0, 2, True, tuple(ids))]
    assert text_of(of, 1, shows(context="peer"), peers=peers) == "a:yes;p1"  # not the row itself
    assert text_of(of, 1, shows(context="peer"), RowPlan(1, 0, 2), peers) == "a:2;p1"
    assert text_of(of, 1, shows(context="peer"), peers=peers[:2]) is None
    assert text_of(of, 1, shows(context="wrong"), peers=peers) == "a:3;p1"


def test_controls_change_the_context_alone() -> None:
    of = contexts()
    assert text_of(of, 1, shows(control="none")) == "p1"
    seen = set()
    for step in range(20):
        plan, point = RowPlan(1, 0, 0), replace(POINT, step=step)
        ids, _ = of.prompt(shows(control="unrelated"), of.dataset[1], plan, point, ())
        assert ids is not None
        seen.add(make_tokenizer().decode(ids))
    # another example's question and demonstration, never its own; the question asked stays
    assert seen == {f"a:p{i}\nd{i}e;p1" for i in (0, 2, 3)}
    column = shows(context="column", column="answer", control="unrelated")
    assert text_of(of, 1, column) in {f"a:{i};p1" for i in (0, 2, 3)}
    assert text_of(contexts(rows=1), 0, shows(control="unrelated")) is None


def test_a_prompt_that_is_too_long_is_not_taught_or_its_context_is_cut() -> None:
    plan = RowPlan(1, 0, 0)
    of = contexts(limit=7)
    assert of.prompt(shows(), of.dataset[1], plan, POINT, ()) == (None, True)
    ids, long = of.prompt(shows(too_long="cut"), of.dataset[1], plan, POINT, ())
    assert ids is not None
    assert (make_tokenizer().decode(ids), long) == ("a:d1;p1", False)  # never the question
    assert contexts(limit=3).prompt(shows(too_long="cut"), of.dataset[1], plan, POINT, ()) == (
        None,
        True,
    )


def test_a_chat_is_rendered_as_the_policys_is() -> None:
    """Only the text of the last message is another: same template, same opening."""
    tokenizer = make_chat_tokenizer()
    renderer = Renderer(tokenizer)
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    example = {
        "prompt": prompt, "prefix_rft_example": 0,
        "prefix_rft_demonstration_ids": [renderer.demonstrations(["d"], True)[0]],
    }  # fmt: skip
    of = Contexts(renderer, Dataset.from_list([example]), {"teacher": None})
    ids, _ = of.prompt(shows(), example, RowPlan(0, 0, 0), POINT, ())
    assert ids == renderer.prompt([prompt[0], {"role": "user", "content": "a:d;q"}])
    assert prompt[1]["content"] == "q"


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("opd", {}, "another model: give its folder or Hub name as path"),
        ("rlsd", {"column": "answerz"}, "reads column 'answerz', which the rows do not have"),
        ("rlsd", {"teacher": {"weights": "adapter_off"}}, "the model has no adapter: use frozen"),
        ("opd", {"path": "nowhere"}, "nowhere"),
        ("rlsd", {"column": "demonstration"}, "whose cells are lists or mappings"),
        (
            "opd",
            {"teacher": {"weights": "live", "context": "demonstration", "max_length": 3}},
            "would teach none of the first 12 rows: 12 of its prompts are too long",
        ),
    ],
)
def test_what_cannot_be_taught(
    tmp_path: Path, method: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        trl_run.start(
            PrefixRFTTrainer, tmp_path, method, trl_run.make_rewards(RULES), options=options
        )


def test_a_teacher_of_another_vocabulary(tmp_path: Path) -> None:
    tokenizer = make_chat_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    options = {"path": str(tmp_path / "other")}
    with pytest.raises(UserError, match="another vocabulary than the policy"):
        trl_run.start(
            PrefixRFTTrainer, tmp_path, "opd", trl_run.make_rewards(RULES), options=options
        )


def test_what_was_followed_is_in_the_checkpoint(tmp_path: Path) -> None:
    from prefix_rft.engines.state import MethodState

    state = MethodState("gats", followed={"teacher": (0.25, 0.5)})
    state.save(tmp_path)
    assert MethodState("gats").read(tmp_path).followed == {"teacher": (0.25, 0.5)}
    data = json.loads((tmp_path / "method_state.json").read_text())
    del data["followed"]  # of a checkpoint that is older
    (tmp_path / "method_state.json").write_text(json.dumps(data))
    assert MethodState("gats").read(tmp_path).followed == {}
