"""Kept prefix tokens, token counts and shares of the gradient are what they are said to be."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.core import Stream
from prefix_rft.engines.trl.imitation_config import DemonstrationConfig
from prefix_rft.engines.trl.update.gradient_shares import GradientShares, sources_of, vectors_of
from prefix_rft.engines.trl.update.stats import means
from prefix_rft.methods import load
from prefix_rft.runs.reader import RunFolder
from prefix_rft.runs.rollouts import HYBRID
from second.step import measured
from second.step.trl_run import Recorder, joined, make_rewards, sharp_model, update_of
from second.step.trl_run import start as start_run
from second.step.update import relative_error
from tables import rest_slow
from tiny import (
    NO_RECOMPUTE,
    RECOMPUTE,
    make_config,
    make_model,
    make_rows,
    make_tokenizer,
    shaped_reward,
)

HERE = Path(__file__).parent
CONST = 24.0
KINDS = ("sampled", "prefilled", "forward", "trained")


def start(folder: Path, method: str = "prefix_rft", rules: Any = ("mixed",), **kw: Any) -> Any:
    """A watched trainer with 16 rows in a generation, groups of four."""
    rows = make_rewards(rules * (8 // len(rules)))
    settings = {"log_rollouts": True, "per_device_train_batch_size": 4, **kw}
    settings.setdefault("gradient_accumulation_steps", 4)
    if settings.pop("saved", False):  # TRL loads a reference model from a folder
        settings["model"] = saved(folder / "model", sharp_model())
    return start_run(PrefixRFTTrainer, folder, method, rows, **settings)


def saved(folder: Path, model: Any) -> str:
    """The folder with a model and the tokenizer."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def rows_of(recorder: Recorder) -> list[Any]:
    """The rows of every update."""
    return [x.rows for x in recorder.records]


# ---- kept prefix tokens --------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [1, 2])
def test_kept_tokens_are_the_top_fifth_of_the_first_update(tmp_path: Path, passes: int) -> None:
    """Two updates on each generation, sorted by length, one group of four is dropped."""
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts/kept_000000.jsonl").write_text("left by a run that died\n")
    trainer, recorder = start(
        tmp_path,
        rules=("mixed", "wrong", "mixed", "mixed"),
        options={"all_wrong": "drop"},
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        num_iterations=passes,
        max_steps=4,
    )
    trainer.train()
    weights = [r.weights for r in recorder.records]
    assert measured.check_kept(tmp_path, weights, rows_of(recorder), passes) >= 3
    lines = [x for file in measured.read(tmp_path, "kept").values() for x in file]
    assert any(not x["kept"] for x in lines)
    (tmp_path / "recipe.yaml").write_text("{}\n")
    rollouts = RunFolder(tmp_path).rollouts(0)
    assert all((x.kept is not None) == (x.origin == HYBRID) for x in rollouts)
    wrong = {x.group for x in rollouts} - {x.group for x in rollouts if x.reward}
    assert wrong
    assert all(x.kept == set() for x in rollouts if x.origin == HYBRID and x.group in wrong)


def test_a_generation_made_again_is_not_appended(tmp_path: Path) -> None:
    for resume in (False, True):
        trainer, _ = start(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1") if resume else None)
        kept = measured.read(tmp_path, "kept")
        assert [len(kept[step]) for step in (0, 1)] == [4, 4]


def test_methods_without_selection(tmp_path: Path) -> None:
    """All prefix tokens are kept, or nothing is written where none is trained."""
    for name, options in (("uft", {}), ("frozen", {"prefix_loss": "frozen"})):
        method = "prefix_rft" if options else name
        start(tmp_path / name, method, options=options, max_steps=1, saved=name == "uft")[0].train()
    assert measured.read(tmp_path / "frozen", "kept") == {}
    lines = [x for x in measured.read(tmp_path / "uft", "step")[0] if measured.hybrid(x)]
    kept = {(x["group"], x["row"]): x["kept"] for x in measured.read(tmp_path / "uft", "kept")[0]}
    assert kept == {(x["group"], x["row"]): list(range(x["prefix_length"])) for x in lines}
    assert kept


@pytest.mark.parametrize("options", [{"prefix_loss": "all"}, {"entropy_scope": "row"}])
def test_a_dropped_row_keeps_nothing_however_it_is_selected(
    tmp_path: Path, options: dict[str, str]
) -> None:
    rules = ("mixed", "wrong")
    trainer, _ = start(tmp_path, rules=rules, options={"all_wrong": "drop", **options}, max_steps=1)
    trainer.train()
    rollouts = measured.read(tmp_path, "step")[0]
    solved = {x["group"] for x in rollouts if x["reward"]}
    lengths = {(x["group"], x["row"]): x["prefix_length"] for x in rollouts if measured.hybrid(x)}
    kept = {(x["group"], x["row"]): x["kept"] for x in measured.read(tmp_path, "kept")[0]}
    assert list(kept) == sorted(lengths)
    assert {g for g, _ in kept} > solved
    for place, positions in kept.items():
        wanted = lengths[place] if "prefix_loss" in options else math.ceil(0.2 * lengths[place])
        assert len(positions) == (wanted if place[0] in solved else 0)


# ---- token counts --------------------------------------------------------------------------------


def test_token_counts_of_every_update(tmp_path: Path) -> None:
    """Two updates on each generation, twice; old and reference log-probs; a log line for each."""
    trainer, recorder = start(
        tmp_path,
        savings=["sampler_scores"],
        saved=True,
        options={"beta": 0.1},
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        num_iterations=2,
        max_steps=5,
    )
    trainer.train()
    wanted = measured.counts(measured.read(tmp_path, "step"), rows_of(recorder), scored=2, chunk=4)
    assert measured.logged(trainer.state.log_history, "tokens/") == wanted
    assert [x["sampled"] > 0 for x in wanted] == [True, False, False, False, True]
    assert all(x["forward"] > 0 for x in wanted)


def test_entropies_that_the_sampler_told_are_no_forward(tmp_path: Path) -> None:
    """Once, as the policy has not moved since; the other updates on a generation are as they were.

    Also where the whole generation is ranked together, and under the policy of the rollouts.
    """
    for number, (options, free) in enumerate(
        [
            ({}, [True, False, False, False, True]),
            ({"entropy_scope": "step"}, [True, False, False, False, True]),
            ({"entropy_source": "rollout"}, [True] * 5),
        ]
    ):
        trainer, _ = start(
            tmp_path / str(number),
            savings=["sampler_scores"],
            options=options,
            gradient_accumulation_steps=2,
            steps_per_generation=4,
            num_iterations=2,
            max_steps=5,
        )
        trainer.train()
        lines = measured.logged(trainer.state.log_history, "tokens/")
        made = measured.read(tmp_path / str(number), "step")
        # TRL's log-probs of the old policy, of the whole generation.
        old = [measured.tokens([measured.row_of(x) for x in made.get(i, [])]) for i in range(5)]
        assert [x["forward"] == n for x, n in zip(lines, old, strict=True)] == free


def test_log_lines_of_several_steps_add_up(tmp_path: Path) -> None:
    totals = []
    for every in (1, 3):
        trainer, _ = start(
            tmp_path / str(every),
            gradient_accumulation_steps=2,
            steps_per_generation=4,
            max_steps=6,
            logging_steps=every,
        )
        trainer.train()
        lines = measured.logged(trainer.state.log_history, "tokens/")
        assert len(lines) == 6 // every
        totals.append({k: round(every * sum(x[k] for x in lines), 6) for k in KINDS})
    assert totals[0] == totals[1]


def test_attempts_that_are_given_up_count(tmp_path: Path) -> None:
    trainer, _ = start(
        tmp_path,
        rules=("wrong", "mixed"),
        options={"all_wrong": "resample", "attempts": 2},
        max_steps=1,
    )
    asked: list[tuple[Any, Any, Any]] = []
    sampler = trainer._sample
    trainer._sample = lambda prompts, plans: (
        asked.append((prompts, plans, sampler(prompts, plans))),
        asked[-1][2],
    )[1]
    trainer.train()
    [line] = measured.logged(trainer.state.log_history, "tokens/")
    assert len(asked) > 1
    assert line["sampled"] == sum(len(ids) for *_, found in asked for ids in found)
    prefilled = 0
    for prompts, plans, _ in asked:
        prefilled += sum(len(p.prefix) for p in plans if p.kept is None)
        open_prompts = {tuple(x) for x, p in zip(prompts, plans, strict=True) if p.kept is None}
        prefilled += sum(map(len, open_prompts))
    assert line["prefilled"] == prefilled
    made = measured.read(tmp_path, "step")[0]
    assert line["sampled"] > sum(len(x["completion_ids"]) - x["prefix_length"] for x in made)


def test_what_a_backend_draws_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``model.generate`` draws beyond the budget of a hybrid row, which is cut off."""
    drawn: list[int] = []
    original = GRPOTrainer._generate_single_turn

    def listen(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        drawn.append(sum(map(len, result[0])))
        return result

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", listen)
    trainer, recorder = start(tmp_path, fast_generation=False, max_steps=2, savings="none")
    trainer.train()
    made, rows = measured.read(tmp_path, "step"), rows_of(recorder)
    wanted = measured.counts(made, rows, scored=0, chunk=4, told=False)
    lines = measured.logged(trainer.state.log_history, "tokens/")
    assert [x.pop("sampled") for x in lines] == drawn
    assert all(n > x.pop("sampled") for n, x in zip(drawn, wanted, strict=True))
    assert lines == wanted


def test_a_backend_is_not_sent_what_lacks_nothing(tmp_path: Path) -> None:
    """Neither prompts nor prefixes of rows that are kept are read again."""
    trainer, _ = start(
        tmp_path,
        rules=("wrong", "mixed"),
        options={"all_wrong": "resample", "attempts": 2},
        fast_generation=False,
        max_steps=1,
    )
    asked: list[tuple[Any, Any]] = []
    turn = trainer._generate_single_turn

    def listen(prompts: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append((prompts, trainer._attempt.plans))
        return turn(prompts, *args, **kwargs)

    trainer._generate_single_turn = listen
    trainer.train()
    [line] = measured.logged(trainer.state.log_history, "tokens/")
    assert any(p.kept is not None for _, plans in asked for p in plans)
    prompts = [
        sum(map(len, {tuple(x) for x, p in zip(ids, plans, strict=True) if p.kept is None}))
        for ids, plans in asked
    ]
    assert prompts[0] > prompts[-1] > 0
    prefixes = [sum(len(p.prefix) for p in plans if p.kept is None) for _, plans in asked]
    assert line["prefilled"] == sum(prompts) + sum(prefixes)


@pytest.mark.parametrize("savings", ["all", "none"])
@pytest.mark.parametrize("method", ["sft", "iw_sft"])
def test_token_counts_of_imitation(tmp_path: Path, method: str, savings: str) -> None:
    """Two micro-batches a step; a method with a reference has a forward of it. The last token of a
    row predicts nothing, and is left out where rows are packed.
    """
    recorder = Recorder()
    trainer = DemonstrationTrainer(
        sharp_model(),
        DemonstrationConfig(
            output_dir=str(tmp_path),
            method=method,
            savings=savings,
            report_to="none",
            use_cpu=True,
            bf16=False,
            **NO_RECOMPUTE,
            disable_tqdm=True,
            logging_steps=1,
            max_steps=3,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
        ),
        train_dataset=make_rows(12),
        processing_class=make_tokenizer(),
        callbacks=[recorder],
    )
    recorder.watch(trainer, "compute_loss")
    trainer.train()
    sizes = [sum(len(r.prompt) + len(r.completion) for r in x.rows) for x in recorder.records]
    if savings == "all":
        sizes = [n - 6 for n in sizes]
    forward = sizes if method == "iw_sft" else [0, 0, 0]
    assert [len(x.rows) for x in recorder.records] == [6, 6, 6]
    assert measured.logged(trainer.state.log_history, "tokens/") == [
        {"trained": n, "forward": f} for n, f in zip(sizes, forward, strict=True)
    ]


# ---- shares of the gradient ----------------------------------------------------------------------


class Sums:
    """Adds up the gradients of all sources of every update."""

    def __init__(self, trainer: Any) -> None:
        self.shares = trainer.gradient_shares
        self.found: list[list[torch.Tensor]] = []
        self.take, self.shares.take = self.shares.take, self.listen

    def listen(self, processes: Any) -> dict[str, float]:
        parts = [[g.clone() for g in gs] for gs in self.shares.sums.values()]
        self.found.append([sum(gs) for gs in zip(*parts, strict=True)])
        return self.take(processes)


def test_gradient_norms_equal_plain_torch(tmp_path: Path) -> None:
    """Five streams, two micro-batches an update, two passes, so that ratios are not 1."""
    recorder = Recorder()
    bonuses = {"beta": 0.05, "entropy_coef": 0.01}
    trainer = PrefixRFTTrainer(
        saved(tmp_path / "model", make_model(make_tokenizer())),
        shaped_reward,
        make_config(
            tmp_path,
            max_steps=2,
            num_iterations=2,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            temperature=0.9,
            gradient_shares_every=1,
            **bonuses,
        ),
        train_dataset=make_rows(),
        processing_class=make_tokenizer(),
        callbacks=[recorder],
    )
    recorder.watch(trainer)
    sums = Sums(trainer)
    trainer.train()
    first = recorder.records[0]
    lines = measured.logged(trainer.state.log_history, "gradient/")
    for record, line, whole in zip(recorder.records, lines, sums.found, strict=True):
        step = update_of(record, first.weights, first.weights, temperature=0.9)
        wanted = measured.norms(measured.gradients(step, beta=0.05, entropy=0.01))
        if record is first:  # the policy is the reference: its KL has no gradient
            assert line.pop("kl_norm") < 1e-7
            assert wanted.pop("kl_norm", 0.0) < 1e-7
        assert line == pytest.approx(wanted, rel=1e-5)
        assert relative_error(whole, record.gradient) < 1e-5
        assert 0.0 < line["prefix_share"] < 1.0


@pytest.mark.parametrize(
    ("method", "names"),
    rest_slow(
        [
            ("luffy", {"policy", "demonstration", "entropy"}),
            ("uft", {"policy", "continuation", "hint", "prefix", "hybrid", "kl", "entropy"}),
            ("gspo", {"policy"}),
            ("adaback", {"policy", "continuation", "hybrid"}),
            ("srft", {"sft", "demonstration", "positive", "negative"}),
        ],
        lambda method, names: method in ("uft", "srft"),
    ),
)
def test_sources_of_a_method_are_its_whole_gradient(
    tmp_path: Path, method: str, names: set[str]
) -> None:
    trainer, recorder = start(
        tmp_path,
        method,
        log_rollouts=False,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=8,
        max_steps=2,
        gradient_shares_every=1,
        saved=method == "uft",
    )
    sums = Sums(trainer)
    trainer.train()
    assert len(sums.found) == 2
    for record, whole in zip(recorder.records, sums.found, strict=True):
        assert relative_error(whole, record.gradient) < 1e-5
    found = {k for x in measured.logged(trainer.state.log_history, "gradient/") for k in x}
    wanted = {f"{n}_norm" for n in names}
    assert found == wanted | ({"prefix_share", "without_prefix_norm"} if "hint" in names else set())


def test_an_origin_that_two_streams_train_is_one_vector() -> None:
    both = ("policy", "prefix")
    streams = (Stream("first", both), Stream("second", both), Stream("kl", both, "kl"))
    sources = sources_of(replace(load("grpo"), streams=streams))
    assert [s.name for s in sources] == ["policy", "prefix", "policy", "prefix", "kl"]
    assert vectors_of(sources) == {
        "policy": [0, 2],
        "prefix": [1, 3],
        "kl": [4],
        "hybrid": [1, 3],
        "without_prefix": [0, 2, 4],
    }


def test_gradients_of_half_precision_and_frozen_weights(tmp_path: Path) -> None:
    """Eight micro-batches add up in single precision; frozen weights have no gradient."""
    model = sharp_model().bfloat16()
    model.model.layers[0].requires_grad_(False)
    trainer, _ = start(
        tmp_path,
        log_rollouts=False,
        model=model,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=8,
        max_steps=1,
        gradient_shares_every=1,
    )
    sums = Sums(trainer)
    trainer.train()
    [whole] = sums.found
    assert {g.dtype for g in whole} == {torch.float32}
    assert (
        len(whole) == sum(p.requires_grad for p in model.parameters()) < len([*model.parameters()])
    )
    total = torch.stack([g.norm() for g in whole]).norm().item()
    [grad_norm] = [x["grad_norm"] for x in trainer.state.log_history if "loss" in x]
    assert total == pytest.approx(grad_norm, rel=2e-2)


@pytest.mark.parametrize(
    "settings",
    rest_slow(
        [
            {},
            {RECOMPUTE: True},
            {"parameter_mask": {"kind": "speft", "fraction": 0.2}},
        ],
        lambda settings: not settings,
    ),
    ids=["plain", "checkpointing", "masked"],
)
def test_measuring_changes_no_weight(tmp_path: Path, settings: dict[str, Any]) -> None:
    runs = []
    for every in (0, 1, 2):
        trainer, _ = start(
            tmp_path / str(every),
            log_rollouts=False,
            options={"entropy_coef": 0.01},
            gradient_accumulation_steps=2,
            per_device_train_batch_size=8,
            num_iterations=2,
            max_steps=4,
            gradient_shares_every=every,
            **settings,
        )
        trainer.train()
        assert (trainer.gradient_shares is None) == (every == 0)
        runs.append(trainer)
    off, *on = (t.model.state_dict() for t in runs)
    assert all(torch.equal(off[name], w[name]) for w in on for name in off)
    never, always, now_and_then = (measured.logged(t.state.log_history, "gradient/") for t in runs)
    assert never == [{}] * 4
    assert all(always)
    assert now_and_then == [always[0], {}, always[2], {}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stream": "hybrid"}, "a stream named 'hybrid'"),
        ({"stream": "prefix"}, "a stream named 'prefix'"),
        ({"sharded": True}, "sharded weights"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "reentrant"),
        ({"ddp_static_graph": True}, "ddp_static_graph"),
        ({"torch_compile": True}, "torch_compile"),
    ],
)
def test_where_the_gradient_cannot_be_taken_apart(settings: dict, message: str) -> None:
    args = {
        "gradient_shares_every": 1,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": None,
        "ddp_static_graph": None,
        "torch_compile": False,
    }
    stream = settings.get("stream", "policy")
    sharded = settings.get("sharded", False)
    args |= {k: v for k, v in settings.items() if k in args}
    method = replace(load("grpo"), streams=(Stream(stream, ("policy",)),))
    with pytest.raises(ValueError, match=message):
        GradientShares.of(SimpleNamespace(**args), method, make_model(make_tokenizer()), sharded)


def test_a_negative_interval_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gradient_shares_every must be at least 0, got -1"):
        make_config(tmp_path, gradient_shares_every=-1)


# ---- means over a step ---------------------------------------------------------------------------


def test_means_are_double_and_what_has_no_count_is_left_out() -> None:
    """2^24 on this process and 1 on another one: their sum has no single precision."""
    other = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    both: Any = SimpleNamespace(sum=lambda x: x + other)
    stats = {
        "none": (torch.tensor(0.0), torch.tensor(0)),
        "large": (torch.tensor(2.0**24), torch.tensor(1)),
    }
    assert means(stats, both) == {"large": (2.0**24 + 1.0) / 2}


# ---- several processes ---------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_measure_together(tmp_path: Path) -> None:
    """A group of eight lies across both; every number is that of the whole update."""
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            str(HERE / "measurements_two_processes.py"),
            str(tmp_path),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    off, on = ranks[0]["models"]
    assert all(torch.equal(off[name], on[name]) for name in off)
    history = ranks[0]["history"]
    each = [joined(rank["records"]) for rank in ranks]
    records = joined(*(rank["records"] for rank in ranks))
    rows, weights = [x.rows for x in records], [x.weights for x in records]
    assert measured.check_kept(tmp_path, weights, rows, temperature=0.9) >= 2

    wanted = measured.counts(measured.read(tmp_path, "step"), rows, scored=1, chunk=1)
    for x, *both in zip(wanted, *each, strict=True):
        own = [y.rows for y in both]
        if x["prefilled"]:  # each process prefills the one prompt of the group that they share
            x["prefilled"] += len(own[0][0].prompt)
            continue  # both samplers have told the entropies of this update
        busy = max(sum(r.prefix > 0 for r in part) for part in own)
        for part in own:  # a process with fewer prefixes to score keeps step on its first row
            idle = busy - sum(r.prefix > 0 for r in part)
            x["forward"] += idle * (len(part[0].prompt) + max(1, part[0].prefix))
    assert measured.logged(history, "tokens/") == wanted

    for x, own in zip([x for x in history if "loss" in x], rows, strict=True):
        share = sum(r.prefix for r in own) / sum(len(r.completion) for r in own)
        assert x["prefix/token_share"] == pytest.approx(share)
        rewards = [r.reward for r in own if not r.prefix]
        assert x["policy/reward"] == pytest.approx(sum(rewards) / len(rewards))

    generations = measured.read(tmp_path, "step")
    for update, line in enumerate(measured.logged(history, "gradient/")):
        start = max(s for s in generations if s <= update)
        record = replace(
            records[update], generation=[measured.row_of(x) for x in generations[start]]
        )
        step = update_of(record, weights[start], temperature=0.9)
        found = measured.gradients(step)
        assert line == pytest.approx(measured.norms(found), rel=1e-5)
