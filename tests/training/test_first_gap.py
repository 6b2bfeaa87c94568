"""``prefix-rft inspect --teacher``: prompts, who is not taught, the gap, by other ways."""

import json
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from prefix_rft.checks.inspect import ANSWER, LIKELIER, PROMPT, SEEN, UNLIKELIER
from prefix_rft.checks.teacher_row import beside, teacher_row
from prefix_rft.cli import main
from prefix_rft.cli.teacher import verdict, words
from prefix_rft.core.teacher import Teacher
from prefix_rft.engines.models import load_model
from prefix_rft.engines.setup import configure
from prefix_rft.evaluation.estimates import Estimate, paired
from prefix_rft.evaluation.samples import Request, Sample, sample_and_grade
from prefix_rft.rewards.verdict import CORRECT, TIMEOUT, WRONG, Verdict
from prefix_rft.tasks.countdown import write
from prefix_rft.training.first_gap import FirstGap, TeacherRow, estimates, first_gaps
from prefix_rft.training.teacher_start import StartModel, log_ratios

ROWS, K = 8, 4
SEED = 6
"""With which some groups have one solved row, some several, and some none."""
SMALL = ("num_generations=4", "prompts_per_step=2", "micro_batch_size=8", "temperature=0.9")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    write(folder, ROWS, 4, 0, 4)
    rows = read(folder)
    rows[2]["demonstration"] = None
    text = "".join(json.dumps({**r, "answer": str(r["target"])}) + "\n" for r in rows)
    (folder / "train.jsonl").write_text(text)
    return folder


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def measured(task: Path, *more: str, sampled: int = ROWS) -> tuple[StartModel, FirstGap]:
    """What is measured of the one teacher of a recipe."""
    with closing(configure(task / "recipes/rlsd.yaml", [*SMALL, *more])) as setup:
        request = Request(K, setup.args.temperature, setup.args.max_completion_length, SEED, 64)
        start = StartModel.load(setup, setup.recipe.model_source(), ROWS, samples=sampled > 0)
        [found] = first_gaps(setup, start, request, sampled, 0, lambda *_: None)
    return start, found


def sampled_another_way(
    start: StartModel, model: str, prompts: list[str], samples: int = K
) -> list[list[int]]:
    """1 for each sample that is right, behind these prompts, as an evaluation draws them."""
    net, tokenizer = load_model(model, dtype="auto")
    rows: Any = start.examples.to_list()
    rows = [{k: v for k, v in r.items() if "prefix_rft" not in k} for r in rows]
    asked = Dataset.from_list([{**r, "prompt": p} for r, p in zip(rows, prompts, strict=True)])
    with closing(configure(start.setup.recipe.folder / "rlsd.yaml", [])) as setup:
        parts = sample_and_grade(
            net, tokenizer, asked, setup.rewards[0], Request(samples, 0.9, 12, SEED, 64)
        )
        return [[int(s.correct) for s in samples] for part in parts for samples in part]


# ---- the numbers ---------------------------------------------------------------------------------


def test_the_gap_is_that_of_two_evaluations(task: Path) -> None:
    start, found = measured(task)
    rows = read(task)
    base = str(task / "base")
    own = sampled_another_way(start, base, [r["prompt"] for r in rows])
    told = sampled_another_way(start, base, [f"{r['demonstration']} ; {r['prompt']}" for r in rows])
    taught = [i for i in range(ROWS) if i != 2]
    for i in taught:
        group = found.rows[i * K : (i + 1) * K]
        assert [int(r.own[1].correct) for r in group if r.own] == own[i]
        assert [int(r.behind[1].correct) for r in group if r.behind] == told[i]
    assert found.policy is not None
    assert found.behind is not None
    assert found.gap == paired(
        [[sum(told[i]) / K for i in taught]], [[sum(own[i]) / K for i in taught]]
    )
    assert found.policy.mean == pytest.approx(sum(sum(own[i]) for i in taught) / 28)
    assert found.behind.mean == pytest.approx(sum(sum(told[i]) for i in taught) / 28)
    assert 0 < found.policy.mean < 1  # else it would say little
    assert found.gap.n == 7
    assert [r.why for r in found.rows[2 * K : 3 * K]] == ["it has no usable demonstration"] * K
    assert all(r.behind is None for r in found.rows[2 * K : 3 * K])


def test_another_model_answers_for_itself(task: Path, tmp_path: Path) -> None:
    net, tokenizer = load_model(str(task / "base"))
    with torch.no_grad():
        net.model.norm.weight.mul_(0.3)
    net.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    start, found = measured(task, f"method={{name: opd, path: {tmp_path / 'other'}}}")
    prompts = [r["prompt"] for r in read(task)]
    for folder, side in ((task / "base", "own"), (tmp_path / "other", "behind")):
        again = sampled_another_way(start, str(folder), prompts)
        right = [int(getattr(r, side)[1].correct) for r in found.rows]
        assert right == [one for samples in again for one in samples]
    assert not found.same
    answers = [[getattr(r, side)[0] for r in found.rows] for side in ("own", "behind")]
    assert answers[0] != answers[1]


def test_siblings_are_rows_that_were_sampled_without_it(task: Path) -> None:
    prompts = [r["prompt"] for r in read(task)]
    for shown in ("peer", "wrong"):
        start, found = measured(task, f"method.teacher.context={shown}")
        seen = 0
        for at in range(0, ROWS * K, K):
            group = found.rows[at : at + K]
            wanted = [r.own is not None and r.own[1].correct == (shown == "peer") for r in group]
            for n, row in enumerate(group):
                others = [m for m in range(K) if wanted[m] and m != n]
                if not others:
                    assert row.shown is None
                    assert (
                        row.why == f"no other row of its group is {'un' * (shown != 'peer')}solved"
                    )
                    continue
                other = group[others[0]].own
                assert other is not None
                [text] = start.render.completions([other[0]])
                prompt = start.examples[at // K]["prompt"]
                assert row.shown == start.render.prompt(f"{text} ; {prompt}")
                seen += 1
        assert 0 < seen < ROWS * K
        # What chose the examples is no measure of them: they are answered once more.
        again = sampled_another_way(start, str(task / "base"), prompts, 2 * K)
        taught = {r.example for r in found.rows if r.shown}
        right = [int(r.again[1].correct) for r in found.rows if r.again]
        assert right == [one for i in sorted(taught) for one in again[i][K:]]
        assert found.policy is not None
        assert found.policy.mean == pytest.approx(sum(right) / len(right))


def test_the_policy_s_own_prompt_and_weights_have_no_gap(task: Path) -> None:
    _, found = measured(task, "method.control=none")
    assert found.same
    assert found.gap is None
    said = list(words(found, found.rows, K))
    assert said[0] == "teacher 'teacher' (none, snapshot): 32 of 32 rows taught, of 8 examples x 4"
    assert "the gap is 0 before the first step" in said[1]
    assert len(said) == 2


def test_a_control_is_measured_like_its_method(task: Path) -> None:
    start, found = measured(task, "method.control=unrelated")
    rows = read(task)
    texts = [start.render.spelled([r.shown])[0] for r in found.rows[::K] if r.shown]
    assert len(texts) == ROWS
    for i, text in enumerate(texts):
        others = [r for n, r in enumerate(rows) if n != i and r["demonstration"]]
        own = rows[i]["prompt"]
        said = [f"{r['prompt']} {r['demonstration']} ; {own}" for r in others]
        assert " ".join(text.split()) in said


def test_rates_by_hand() -> None:
    """Of three examples; one row could not be graded, one example is not taught."""

    def rows(example: int, own: str, behind: str) -> list[TeacherRow]:
        names = {"c": CORRECT, "w": WRONG, "t": TIMEOUT}
        made = [
            [None if x == "-" else ([1], Sample("", 1, False, Verdict(names[x]))) for x in side]
            for side in (own, behind)
        ]
        return [TeacherRow(example, [1], [2], "", a, b) for a, b in zip(*made, strict=True)]

    found = [*rows(0, "cwww", "ccw-"), *rows(1, "ctww", "wwww"), *rows(2, "cccc", "----")]
    policy, behind, gap = estimates(found, 4)
    assert policy is not None
    assert behind is not None
    assert gap is not None
    assert policy.mean == pytest.approx((1 + 1) / (4 + 3))
    assert behind.mean == pytest.approx(2 / 7)
    # 2/3 - 1/4 and 0 - 1/3.
    assert gap == paired([[2 / 3, 0]], [[1 / 4, 1 / 3]])
    assert estimates(rows(0, "cc", "--"), 2) == (None, None, None)


def test_log_ratios_by_one_forward_each(task: Path) -> None:
    start, found = measured(task)
    row = next(r for r in found.rows if r.shown and r.own)
    assert row.own is not None
    assert row.shown is not None
    said = row.own[0]
    ratios = log_ratios(start, found.teacher, row.asked, row.shown, said)
    net, _ = load_model(str(task / "base"), dtype="auto")
    sums = []
    for prompt in (row.asked, row.shown):
        logp = []
        for n, token in enumerate(said):  # one token at a time, from a forward of its own
            with torch.no_grad():
                logits = net(input_ids=torch.tensor([[*prompt, *said[:n]]])).logits[0, -1].float()
            logp.append((logits / 0.9).log_softmax(-1)[token].item())
        sums.append(logp)
    assert ratios == pytest.approx([q - p for p, q in zip(*sums, strict=True)], abs=1e-4)
    assert max(map(abs, ratios)) > 0.1


def test_a_teacher_without_the_adapter_speaks_without_it(task: Path) -> None:
    start, _ = measured(task, sampled=0)
    entered = []

    @contextmanager
    def disabled() -> Any:
        entered.append(True)
        yield

    start = replace(start, model=SimpleNamespace(disable_adapter=disabled))
    for kind, expected in (("live", []), ("adapter_off", [True])):
        model, weights = start.voice(Teacher(weights=kind))
        with weights:
            pass
        assert model is start.model
        assert entered == expected


# ---- what is shown -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "shown", "new"),
    [
        ("abz", "abxyz", "..nn."),  # behind the question
        ("abz", "xyabz", "nn..."),  # before all of it
        ("abz", "axxbyyz", ".nn.nn."),  # the question in one piece between
        ("abz", "axyz", ".nn."),  # the question written otherwise
        ("abz", "abz", "..."),
        ("aaa", "aaaa", "...n"),
        ("cbab", "cbxbab", "..nn.."),  # no token of the policy's counts twice
        ("", "ab", "nn"),
    ],
)
def test_what_the_policy_does_not_see(asked: str, shown: str, new: str) -> None:
    ids = [[ord(c) for c in text] for text in (asked, shown)]
    assert "".join("n" if x else "." for x in beside(*ids)) == new


def test_roles_of_a_row() -> None:
    tokens = teacher_row([1], [7, 1], [3, 4, 5, 6], [0.6, -0.4, -0.6, 0.4])
    assert [t.role for t in tokens] == [SEEN, PROMPT, LIKELIER, ANSWER, UNLIKELIER, ANSWER]
    assert [t.id for t in tokens] == [7, 1, 3, 4, 5, 6]


def test_words_of_a_gap() -> None:
    half = Estimate(0.5, 0.4, 0.6, 9)
    gap = FirstGap(Teacher(), [], False, half, half, Estimate(0.1, -0.1, 0.3, 9))
    assert "none is shown" in verdict(gap)
    assert "do not train" in verdict(gap)
    assert "does harm" in verdict(replace(gap, gap=Estimate(-0.1, -0.2, -0.05, 9)))
    assert "helps" in verdict(replace(gap, gap=Estimate(0.1, 0.05, 0.2, 9)))


def ask(task: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    code = main(["inspect", str(task / "recipes/rlsd.yaml"), "--teacher", *SMALL, *more])
    found = capsys.readouterr()
    return code, found.out + found.err


def test_the_command_says_all_of_it(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = ask(task, capsys, "--examples", "4", "--samples", "2", "--row", "2")
    assert code == 0
    assert "row 3, teacher 'teacher': not taught, it has no usable demonstration" in said
    assert "6 of 8 rows taught, of 4 examples x 2" in said
    assert "2 not: it has no usable demonstration (row 3 of train_data)" in said
    rows = read(task)
    for number in (2, 4):
        row = rows[number - 1]
        assert f"{row['demonstration']} ; {row['prompt']}" in " ".join(said.split())
        assert f"row {number}, teacher 'teacher': the policy's answer is '" in said
    assert "of 3 examples that it teaches" in said
    assert "gap, paired by example: " in said


def test_prompts_alone(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No weights are read; of a teacher that is shown siblings nothing is known."""
    weights = task / "base/model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    try:
        code, said = ask(task, capsys, "--examples", "0")
        assert code == 0
        assert "28 of 32 rows taught, of 8 examples x 4" in said
        assert "solved" not in said
        code, said = ask(task, capsys, "--examples", "0", "method.teacher.context=peer")
        assert "32 not: its group was not sampled (rows 1, 2, 3, 4, 5 and 3 more" in said
    finally:
        weights.write_bytes(content)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["method=grpo"], "method 'grpo' has no teacher: leave out --teacher"),
        (["--examples", "-1"], "--examples must be at least 0, got -1"),
        (["--row", "0"], "--row must be at least 1, got 0"),
        (["--row", "9"], "--row 9: there are 8 rows"),
        (["--samples", "0"], "--samples must be at least 1, got 0"),
        (
            ["--samples", "1", "method.teacher.context=peer"],
            "--samples must be at least 2, got 1: a teacher is shown another row of the group",
        ),
        (["method={name: opd, path: ../base}", "reward=null"], "so nothing says which answers are"),
        (["reward=code"], "reward 'code' needs a column 'tests'"),
    ],
)
def test_refused(
    task: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    code, said = ask(task, capsys, *options)
    assert code == 2
    assert message in " ".join(said.split())


def test_options_without_a_teacher_are_refused(
    task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(task / "recipe.yaml"), "--samples", "2"]) == 2
    assert "--samples has no effect without --teacher" in capsys.readouterr().err
