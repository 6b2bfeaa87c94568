"""What is logged of teachers: counted here again, from rollouts and prompts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from prefix_rft import PrefixRFTTrainer
from prefix_rft.core import teacher as core_teacher
from prefix_rft.core.teacher import ANSWER, Teacher
from prefix_rft.data.render import Renderer
from prefix_rft.engines.contexts import Contexts
from prefix_rft.engines.plan import RowPlan
from prefix_rft.engines.trl.rollout.teaching import Teaching
from prefix_rft.engines.trl.token_counts import TokenCounts
from prefix_rft.engines.trl.update.stats import tails
from second.step import teachers, trl_run
from tiny import make_tokenizer

RULES = ("mixed", "wrong", "right", "mixed") * 2


def run(folder: Path, teacher: dict[str, Any], method: str = "opd", **more: Any) -> Any:
    trainer, recorder = trl_run.start(
        PrefixRFTTrainer, folder, method, trl_run.make_rewards(RULES, missing=(1,)),
        options={"teacher": teacher}, max_steps=3, per_device_train_batch_size=8,
        gradient_accumulation_steps=2, **more,
    )  # fmt: skip
    trainer.train()
    return trainer, recorder.records


def logged(trainer: Any, name: str) -> list[float]:
    return [x[name] for x in trainer.state.log_history if name in x]


# ---- tokens that teachers read -------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["frozen", "ema"])
def test_tokens_of_teachers(tmp_path: Path, weights: str) -> None:
    """Their prompts and the completions behind them, of the rows that they teach."""
    teacher = {"weights": weights, "context": "demonstration", "template": "a:{context};{prompt}"}
    trainer, records = run(tmp_path, teacher, savings="none")
    source = trainer.train_dataset
    wanted = []
    for record in records:
        rows = record.rows
        prompts = [teachers.asked(r, source, "demonstration", record.generation) for r in rows]
        taught = [(p, r.completion) for p, r in zip(prompts, rows, strict=True) if p is not None]
        wanted.append(float(sum(len(p) + len(c) for p, c in taught)))
    assert min(wanted) > 0
    assert logged(trainer, "tokens/teacher") == wanted
    forward = logged(trainer, "tokens/forward")
    assert all(f >= t for f, t in zip(forward, wanted, strict=True))


def test_a_divergence_reads_too(tmp_path: Path) -> None:
    teacher = {"context": "demonstration", "template": "a:{context};{prompt}"}
    trainer, _ = run(tmp_path, teacher, method="opsd")
    assert min(logged(trainer, "tokens/teacher")) > 0


def test_without_teachers_none_are_counted() -> None:
    processes: Any = SimpleNamespace(sum=lambda x: x)
    counts = TokenCounts(torch.device("cpu"))
    assert "tokens/teacher" not in counts.take(processes)
    counts = TokenCounts(torch.device("cpu"), True)
    with torch.no_grad():
        counts.scored(5)
        with counts.by_teacher():
            counts.scored(3)
        counts.scored(4)
    counts.scored(7)
    told = counts.take(processes)
    assert (told["tokens/forward"], told["tokens/teacher"], told["tokens/trained"]) == (12, 3, 7)
    assert counts.take(processes)["tokens/teacher"] == 0


# ---- quotations ----------------------------------------------------------------------------------


def leak_of(teacher: Teacher, texts: list[tuple[str, RowPlan]], other: tuple[float, float]) -> Any:
    """Of a generation of these texts, where another process has found so many of so many."""
    tokenizer = make_tokenizer()
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text, _ in texts]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    masks = [torch.ones_like(x) for x in ids]
    mask = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)
    rows = {"completion_ids": padded, "completion_mask": mask}
    generation: Any = SimpleNamespace(
        sampled=SimpleNamespace(rows=rows), plans=[plan for _, plan in texts]
    )
    processes: Any = SimpleNamespace(
        device=torch.device("cpu"), sum=lambda x: x + torch.tensor(other)
    )
    contexts = Contexts(Renderer(tokenizer), [], {})
    parts: Any = (SimpleNamespace(), contexts, processes, None, {}, {}, 1)
    return Teaching(*parts)._leak(teacher, generation)


def test_completions_that_quote_the_template() -> None:
    quoting = "so the answer is known to be 7"
    texts = [
        (quoting, RowPlan(0, 0, 0)),
        ("the answer is 7", RowPlan(0, 0, 1)),
        ("the answer  is\nknown to be", RowPlan(0, 0, 2)),
        ("7", RowPlan(0, 0, 3)),
        (quoting, RowPlan(0, 0, 4, prefix=(3, 4))),  # another's words
        (quoting, RowPlan(0, 0, 5, filler=True)),
        (quoting, RowPlan(0, 0, 6, guided=(3, 4))),
    ]
    teacher = Teacher(context="column", column="answer", template=ANSWER)
    assert leak_of(teacher, texts, (0.0, 0.0)) == {"teacher/leak": 2 / 4}
    assert leak_of(teacher, texts, (1.0, 4.0)) == {"teacher/leak": 3 / 8}
    assert leak_of(teacher, texts[4:], (0.0, 0.0)) == {}
    for other in (
        Teacher(context="none", template=ANSWER),
        Teacher(context="column", column="answer", template=ANSWER, control="none"),
        Teacher(context="column", column="answer", template="{prompt}\nAnswer: {context}"),
    ):
        assert leak_of(other, texts, (0.0, 0.0)) == {}


def test_quotations_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_teacher, "FEWEST_WORDS", 1)  # what a random model may say
    teacher = {"context": "demonstration", "weights": "live", "template": "7{context}\n{prompt}"}
    trainer, records = run(tmp_path, teacher)
    tokenizer = make_tokenizer()
    said = [[tokenizer.decode(row.completion) for row in record.rows] for record in records]
    wanted = [sum("7" in text for text in texts) / len(texts) for texts in said]
    assert 0 < sum(wanted) < len(wanted)
    assert logged(trainer, "teacher/leak") == pytest.approx(wanted)


# ---- tails ---------------------------------------------------------------------------------------


def test_of_all_processes_values() -> None:
    def gather(x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.long:
            return torch.cat([x, torch.tensor([3])])
        return torch.cat([x, torch.tensor([1000.0, 2000.0, 3000.0]), x.new_full((197 - 3,), nan)])

    nan, several = float("nan"), SimpleNamespace(gather=gather)
    alone = SimpleNamespace(gather=lambda x: x)
    values = torch.arange(1.0, 198.0).flip(0)
    # Of 200 values 198 are not above it, of 197 are 196 (195 would be 98.98 %).
    assert tails({"teacher": values}, cast(Any, several)) == {"teacher": 1000.0}
    assert tails({"teacher": values}, cast(Any, alone)) == {"teacher": 196.0}
    assert tails({"teacher": values[:0]}, cast(Any, alone)) == {}


def test_tails_in_a_run(tmp_path: Path) -> None:
    """Against plain torch: the policy's log-probs behind its prompts, the teacher's behind its."""
    teacher = {"weights": "ema", "context": "demonstration", "rate": 0.25}
    trainer, records = run(tmp_path, {**teacher, "template": "a:{context};{prompt}"})
    for n, (record, found) in enumerate(
        zip(records, logged(trainer, "teacher/gap_p99"), strict=True)
    ):
        told = teachers.told_of(trainer.train_dataset, records, n, "ema", "demonstration")
        own = trl_run.scores(record.weights, record.rows)[0]
        pairs = [(q - p).abs() for q, p in zip(told, own, strict=True) if q is not None]
        every = sorted(torch.cat(pairs).tolist())
        above = len(every) // 100  # 1 % of them, rounded down, are above it
        assert found == pytest.approx(every[len(every) - 1 - above], rel=1e-4)
