"""What a method remembers: how it comes about, and that a run goes on from a checkpoint as if it
had never stopped."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.core.planner import Group
from prefix_rft.engines.trl.safety.own_state import OwnState
from prefix_rft.support.errors import UserError
from second.step import formulas, trl_run
from second.step.update import relative_error, score, solve_rate
from tables import rest_slow
from tiny import make_imitation_config, make_tokenizer

TOKENIZER = make_tokenizer()


def run(folder: Path, method: str, rows: Any, **settings: Any) -> tuple[Any, trl_run.Recorder]:
    trainer, recorder = trl_run.start(PrefixRFTTrainer, folder, method, rows, **settings)
    trainer.train()
    return trainer, recorder


# ---- the queue of demonstrations -----------------------------------------------------------------


MANY = ["wrong", "mixed", "wrong", "wrong", "right", "wrong", "wrong", "wrong", "never"]


@pytest.mark.parametrize(
    ("method", "wanted", "options", "rules", "imitations"),
    [
        pytest.param("relift", 8, {}, [*MANY, *["wrong"] * 3], 2, marks=pytest.mark.slow),
        ("mifo", 3, {"sft_prompts": 3, "unsolved_at": 0.5}, [*MANY, *["wrong"] * 3], 2),
        # Four examples fail in each epoch; they wait once, and so they are never enough.
        pytest.param(
            *("relift", 8, {}, ["wrong", "wrong", "wrong", "right", "right", "wrong", "wrong"], 0),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["all-rows", "three", "never-enough"],
)
def test_the_queue_is_first_in_first_out(
    tmp_path: Path, method: str, wanted: int, options: dict, rules: list[str], imitations: int
) -> None:
    """An example waits once; a step of demonstrations is made of those that have waited longest."""
    rows = trl_run.make_rewards(rules, missing=(2,), several=True)
    seen: list[list[int]] = []
    trainer, recorder = trl_run.start(
        PrefixRFTTrainer,
        tmp_path,
        method,
        rows,
        options=options,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_generations=2,
        max_steps=12 if imitations else 5,
        logging_steps=1,
    )
    original = trainer._generate_and_score_completions

    def listen(inputs: Any) -> Any:
        made = original(inputs)
        seen.append([example for example, _ in trainer.method_state.waiting])
        return made

    trainer._generate_and_score_completions = listen
    trainer.train()
    queue: list[int] = []
    imitated = []
    for number, record in enumerate(recorder.records):
        if len(queue) >= wanted:
            assert all(r.whole for r in record.rows)
            assert sorted(r.example for r in record.rows) == sorted(queue[:wanted])
            for r in record.rows:
                known = rows[r.example]["demonstration"]
                assert TOKENIZER.decode(r.completion[:-1]) in known
                assert r.completion[-1] == trl_run.EOS
            del queue[:wanted]
            imitated.append(number)
        else:
            assert {r.kind for r in record.rows} == {"own"}
            assert len(record.rows) == 8
            for group in range(4):
                mates = [r for r in record.generation if r.group == group]
                example = mates[0].example
                low = solve_rate(mates) <= options.get("unsolved_at", 0.0)
                if low and rows[example]["demonstration"] and example not in queue:
                    queue.append(example)
        assert seen[number] == queue
        told = trainer.state.log_history[number]
        assert told["interleave/step"] == float(number in imitated)
        step = trl_run.update_of(record, record.weights, record.weights)
        loss = {"relift": formulas.relift, "mifo": formulas.mifo}[method](step)
        assert record.loss == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
        assert relative_error(record.gradient, step.gradient(loss)) < 1e-5
    assert len(imitated) >= imitations
    assert bool(imitated) == bool(imitations)
    which = {which for _, which in trainer.method_state.waiting}
    assert which <= {0, 1}


def test_files_of_a_step_of_demonstrations_tell_of_demonstrations(tmp_path: Path) -> None:
    """Rows that only fill it up are no rollouts, and no rewards."""
    trainer, recorder = run(
        tmp_path,
        "relift",
        trl_run.make_rewards(["wrong"] * 8),
        options={"sft_prompts": 3},
        max_steps=2,
        log_rollouts=True,
    )
    assert [{r.whole for r in record.rows} for record in recorder.records] == [{False}, {True}]
    text = (tmp_path / "rollouts/step_000001.jsonl").read_text()
    lines = [json.loads(x) for x in text.splitlines()]
    assert [x["example"] for x in lines] == [0, 1, 2]
    assert all(x["demonstration"] and x["reward"] == 1.0 for x in lines)
    told = trainer.state.log_history[1]
    assert told["demonstration/reward"] == 1.0
    assert "policy/reward" not in told


# ---- what planners remember ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options"),
    [
        pytest.param("adaback", {"plain": 0.3, "ema": 0.5}, marks=pytest.mark.slow),
        ("pope", {"first_ratio": 0.2, "ratio_step": 0.3}),
        pytest.param(
            *("adaback", {"plain": 0.0, "ema": 0.5, "all_right": "resample"}),
            marks=pytest.mark.slow,
        ),
        ("adaback", {"plain": 0.0, "ema": 0.5, "all_wrong": "demonstration"}),
    ],
)
def test_a_planner_remembers_each_of_its_groups(tmp_path: Path, method: str, options: dict) -> None:
    """In the order of the groups, from the rewards of their own rows, over several epochs; what it
    knew when the generation began decides where rows start."""
    trainer, _ = trl_run.start(
        PrefixRFTTrainer,
        tmp_path,
        method,
        trl_run.make_rewards(["hint:9", "mixed", "wrong", "patchy", "right"] * 2, missing=(1,)),
        options=options,
        per_device_train_batch_size=16,
        max_steps=6,
    )
    law, memory, shared = trainer.method.planner, {}, {}
    finished: list[tuple[Any, list[float]]] = []
    sampled = trainer._sampled

    def listen(inputs: Any, plans: Any) -> Any:
        found = sampled(inputs, plans)
        finished.append((plans, found.reward_N.tolist()))
        return found

    trainer._sampled = listen
    generate = trainer._generate_and_score_completions

    def check(inputs: Any) -> Any:
        nonlocal shared
        finished.clear()
        rows = generate(inputs)
        plans, rewards = finished[-1]
        known, average = dict(memory), dict(shared)
        for i in range(0, 16, 4):
            example = trainer.train_dataset[plans[i].example]
            if not example["demonstration"]:
                assert {p.start for p in plans[i : i + 4]} == {None}
                continue
            asked = Group(
                example=plans[i].example,
                rows=4,
                lengths=tuple(len(d) + 1 for d in example["demonstration"]),
                seed=trainer.args.seed,
                step=trainer.state.global_step,
                total_steps=6,
                max_length=24,
                attempts=trainer.method.groups.attempts,
                own=known.get(plans[i].example, {}),
                shared=average,
            )
            # A demonstration in a row's place says nothing of where the row had started.
            rows_of_it = range(i, i + 4)
            begun = finished[0][0]
            starts = tuple(begun[k].start if plans[k].whole else plans[k].start for k in rows_of_it)
            own_rewards = [math.nan if plans[k].whole else rewards[k] for k in rows_of_it]
            assert starts == tuple(s if s and s.length else None for s in law.starts(asked))
            asked = replace(asked, own=memory.get(plans[i].example, {}), shared=shared)
            own, shared = law.learn(asked, starts, own_rewards)
            if own:
                memory[plans[i].example] = dict(own)
        assert trainer.method_state.examples == memory
        assert trainer.method_state.shared == shared
        return rows

    trainer._generate_and_score_completions = check
    trainer.train()
    assert len(memory) >= 5
    assert bool(shared) == (method == "adaback")


# ---- the reference policy ------------------------------------------------------------------------


def weights_that_sample(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights of the model at every call of the sampler from now on."""
    import prefix_rft.engines.trl.rollout.sampler as module

    sampled: list[dict[str, torch.Tensor]] = []

    def listening(original: Any) -> Any:
        def listen(model: Any, *args: Any, **kwargs: Any) -> Any:
            sampled.append({k: v.clone() for k, v in model.state_dict().items()})
            return original(model, *args, **kwargs)

        return listen

    for name in ("sample", "sample_scored"):  # of the reference, and of the policy
        monkeypatch.setattr(module, name, listening(getattr(module, name)))
    return sampled


@pytest.mark.parametrize(
    ("method", "options", "stages"),
    rest_slow(
        [
            ("irft", {"stages": 3}, [0, 0, 2, 2, 4, 4]),
            ("irft", {"stages": 4}, [0, 0, 2, 3, 3, 5]),
            ("irft", {"stages": 1}, [0] * 6),
            ("irft", {"stages": 50}, [0, 1, 2, 3, 4, 5]),
            ("discriminative", {}, [0] * 6),
            ("discriminative", {"negatives": "policy"}, [0] * 6),
            ("self_sft", {"rollouts": "reference"}, [0] * 6),
        ],
        # Renewed in stages of unlike length.
        lambda method, options, stages: options.get("stages") == 4,
    ),
)
def test_the_reference_is_renewed_where_a_stage_begins(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    options: dict,
    stages: list[int],
) -> None:
    """It is what samples, and what log-probs are compared with."""
    trainer, recorder = trl_run.start(
        PrefixRFTTrainer,
        tmp_path,
        method,
        trl_run.make_rewards(["mixed"] * 4),
        options=options,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=6,
        learning_rate=1e-2,
    )
    sampled = weights_that_sample(monkeypatch)
    seen: list[dict[str, Any]] = []
    generate = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda x: (seen.append(generate(x)), seen[-1])[1]
    trainer.train()
    assert len(sampled) == 6
    frozen = options.get("negatives") != "policy"
    for step, rows in enumerate(seen):
        reference = recorder.records[stages[step]].weights
        expected = reference if frozen else recorder.records[step].weights
        for name, weight in sampled[step].items():
            assert torch.equal(weight, expected[name])
        known = trl_run.model_of(reference)
        for row, scores in zip(
            trl_run.rows_of(rows, trainer.train_dataset), rows["ref_per_token_logps"], strict=True
        ):
            with torch.no_grad():
                logp = score(known, row)[0]
            assert torch.allclose(scores[: len(logp)], logp, atol=1e-5)
            assert not scores[len(logp) :].any()


@pytest.mark.parametrize(
    ("method", "options"),
    [("irft", {"stages": 2}), ("discriminative", {}), ("self_sft", {"rollouts": "reference"})],
)
def test_what_is_evaluated_is_the_policy_and_not_its_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, options: dict
) -> None:
    trainer, _ = trl_run.start(
        PrefixRFTTrainer,
        tmp_path,
        method,
        trl_run.make_rewards(["mixed"] * 4),
        options=options,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        max_steps=1,
        learning_rate=1e-2,
    )
    trainer.eval_dataset = trl_run.make_rewards(["mixed"] * 2)
    trainer.train()
    sampled = weights_that_sample(monkeypatch)
    trainer.evaluate()
    assert sampled
    trained = trainer.model.state_dict()
    assert not torch.equal(
        trained["model.norm.weight"], torch.ones_like(trained["model.norm.weight"])
    )
    for weights in sampled:
        assert all(torch.equal(weights[n], w) for n, w in trained.items())


def test_what_has_no_reference_of_its_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another engine cannot sample from it, sharded weights cannot be swapped, a stream cannot be
    gone back to."""
    rows = trl_run.make_rewards(["mixed"] * 4)
    continuous = {"use_transformers_continuous_batching": True}
    with pytest.raises(ValueError, match="plain transformers backend and weights that are not"):
        trl_run.start(PrefixRFTTrainer, tmp_path, "irft", rows, **continuous)
    stream = rows.to_iterable_dataset()
    for method, options in (("relift", {}), ("grpo", {"all_right": "resample"})):
        with pytest.raises(ValueError, match="goes back to examples of the dataset"):
            trl_run.start(PrefixRFTTrainer, tmp_path, method, stream, options=options)
    for method, settings in (
        ("irft", {}),
        ("luffy", {"parameter_mask": {"kind": "speft"}}),
        ("luffy", {"gradient_shares_every": 1}),
    ):
        trainer, _ = trl_run.start(PrefixRFTTrainer, tmp_path, method, rows, **settings)
        for flag in ("is_fsdp_enabled", "is_deepspeed_enabled"):
            setattr(trainer, flag, True)
            with pytest.raises(UserError, match="sharded weights"):
                trainer._make_parts()
            setattr(trainer, flag, False)


def test_an_adapter_is_swapped_alone(tmp_path: Path) -> None:
    """The reference of an adapter holds no weight of the base; its log-probs are right."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer, _ = trl_run.start(
        PrefixRFTTrainer,
        tmp_path,
        "irft",
        trl_run.make_rewards(["mixed"] * 8),
        options={"stages": 2},
        model=get_peft_model(trl_run.sharp_model(), adapter),
        per_device_train_batch_size=8,
        max_steps=4,
        learning_rate=1e-2,
    )
    states: list[dict[str, torch.Tensor]] = []
    generate = trainer._generate_and_score_completions
    gaps: list[float] = []

    def listen(inputs: Any) -> Any:
        states.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
        rows = generate(inputs)
        now = trainer.model.state_dict()
        assert all(torch.equal(now[k], v) for k, v in states[-1].items())
        step = len(states) - 1
        trainer.model.load_state_dict(states[step - step % 2])
        for row, scores in zip(
            trl_run.rows_of(rows, trainer.train_dataset), rows["ref_per_token_logps"], strict=True
        ):
            with torch.no_grad():
                logp = score(trainer.model, row)[0]
            gaps.append((scores[: len(logp)] - logp).abs().max().item())
        trainer.model.load_state_dict(states[-1])
        return rows

    trainer._generate_and_score_completions = listen
    # The recorder reads weights that a plain model has.
    trainer.callback_handler.callbacks = [
        c for c in trainer.callback_handler.callbacks if not isinstance(c, trl_run.Recorder)
    ]
    trainer.train()
    assert set(trainer.reference.weights) == {
        n for n, p in trainer.model.named_parameters() if p.requires_grad
    }
    assert len(gaps) == 32
    assert max(gaps) < 1e-5


# ---- going on from a checkpoint ------------------------------------------------------------------

RESUMED = {
    "relift": ("relift", {"sft_prompts": 3}, ["wrong", "mixed"] * 6, {}),
    "adaback": ("adaback", {"plain": 0.0, "ema": 0.5}, ["hint:9"] * 4, {}),
    "pope": ("pope", {"first_ratio": 0.2, "ratio_step": 0.2}, ["hint:12"] * 4, {}),
    "pass_rate": ("pass_rate", {"hard_below": 0.9, "easy_above": 0.1}, ["mixed"] * 4, {}),
    "hint": ("control", {"where": "prompt", "template": "h:{hint};{prompt}"}, ["mixed"] * 4, {}),
    "discriminative": ("discriminative", {"gamma": 0.5}, ["mixed"] * 4, {}),
    "irft": ("irft", {"stages": 4}, ["mixed"] * 12, {}),
    "dapo": ("dapo", {}, ["wrong", "mixed", "right", "mixed"] * 3, {}),
    "bread": ("bread", {}, ["hint:9", "mixed"] * 6, {}),
    "luffy": ("luffy", {}, ["mixed"] * 12, {"steps_per_generation": 2}),
}
KEPT = ("examples", "shared", "waiting", "stage")
REMEMBERS = ("relift", "adaback", "pope", "pass_rate", "hint", "discriminative", "irft")


def checkpointed(folder: Path, case: str) -> Any:
    method, options, rules, settings = RESUMED[case]
    trainer, _ = trl_run.start(
        PrefixRFTTrainer,
        folder,
        method,
        trl_run.make_rewards(rules),
        options=options,
        per_device_train_batch_size=8,
        max_steps=6,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=2,
        **settings,
    )
    return trainer


def state(folder: Path, step: int) -> dict[str, Any]:
    return json.loads((folder / f"checkpoint-{step}" / "method_state.json").read_text())


def equal(a: Any, b: Any) -> bool:
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize(
    "case",
    # A memory of examples. A queue, a stage and a reference are among the slow ones.
    rest_slow(RESUMED, lambda case: case in ("adaback", "pass_rate")),
)
def test_a_resumed_run_is_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Weights, memory, queue, stage and reference, bit for bit; each is in every checkpoint. A
    control that does not read what is in the checkpoint goes another way."""
    whole = checkpointed(tmp_path / "whole", case)
    whole.train()
    states = {step: state(tmp_path / "whole", step) for step in (2, 4, 6)}
    for step in (2, 4) if case in REMEMBERS else (4,):
        folder = tmp_path / f"from{step}"
        folder.mkdir()
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        again = checkpointed(folder, case)
        again.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        assert again.state.global_step == 6
        assert equal(whole, again)
        assert vars(again.method_state) == vars(whole.method_state)
        for later in range(step + 2, 7, 2):
            assert state(folder, later) == states[later]
        if whole.reference is not None:
            for name, weight in whole.reference.weights.items():
                assert torch.equal(weight, again.reference.weights[name])
    if case in REMEMBERS:
        # What waits is used up now and then.
        kept = [n for n in (4, 2) if any(states[n][k] for k in KEPT)]
        monkeypatch.setattr(OwnState, "load", lambda *args: None)
        other = checkpointed(tmp_path / "other", case)
        other.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{kept[0]}"))
        monkeypatch.undo()
        assert not equal(whole, other) or vars(other.method_state) != vars(whole.method_state)


def imitation(folder: Path, model: Any = None, method: str = "iw_sft") -> Any:
    return DemonstrationTrainer(
        trl_run.sharp_model() if model is None else model,
        make_imitation_config(
            folder,
            method=method,
            max_steps=4,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            save_strategy="steps",
            save_steps=2,
        ),
        train_dataset=trl_run.make_rewards(["mixed"] * 16),
        eval_dataset=trl_run.make_rewards(["mixed"] * 4),
        processing_class=make_tokenizer(),
    )


def test_imitation_is_evaluated_with_its_reference(tmp_path: Path) -> None:
    """At first all weights are 1, and the loss is that of sft."""
    losses = [imitation(tmp_path, method=m).evaluate()["eval_loss"] for m in ("iw_sft", "sft")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_imitation_goes_on_with_the_first_model_as_reference(tmp_path: Path) -> None:
    whole = imitation(tmp_path)
    whole.train()
    again = imitation(tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert equal(whole, again)
    other = trl_run.sharp_model()
    with torch.no_grad():
        other.model.norm.weight.mul_(1.5)
    with pytest.raises(UserError, match="another reference policy"):
        imitation(tmp_path, other).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with memory, a renewed reference and a mask."""
    folder = tmp_path_factory.mktemp("finished")
    irft_with_mask(folder).train()
    return folder


def irft_with_mask(folder: Path) -> Any:
    trainer, _ = trl_run.start(
        PrefixRFTTrainer,
        folder,
        "irft",
        trl_run.make_rewards(["mixed"] * 8),
        options={"stages": 2},
        per_device_train_batch_size=8,
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        parameter_mask={"kind": "speft", "fraction": 0.1},
    )
    return trainer


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def other_shape(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    name = next(n for n, t in tensors.items() if t.ndim == 2)
    save_file({**tensors, name: tensors[name][:1].clone()}, path)


def one_less(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors.pop(next(n for n, t in tensors.items() if t.ndim == 2))
    save_file(tensors, path)


DAMAGE = {
    "no-state": ("method_state.json", Path.unlink),
    "half-state": ("method_state.json", cut),
    "empty-state": ("method_state.json", lambda p: p.write_text("")),
    "list-state": ("method_state.json", lambda p: p.write_text("[]")),
    "foreign-state": ("method_state.json", lambda p: p.write_text('{"step": 3}')),
    "wrong-examples": ("method_state.json", lambda p: rewrite(p, examples=[1])),
    "wrong-example": ("method_state.json", lambda p: rewrite(p, examples={"a": {}})),
    "wrong-waiting": ("method_state.json", lambda p: rewrite(p, waiting=[3])),
    "wrong-stage": ("method_state.json", lambda p: rewrite(p, stage=None)),
    "other-method": ("method_state.json", lambda p: rewrite(p, method="discriminative")),
    "no-reference": ("reference.safetensors", Path.unlink),
    "half-reference": ("reference.safetensors", cut),
    "shape-reference": ("reference.safetensors", other_shape),
    "part-reference": ("reference.safetensors", one_less),
    "no-fingerprint": ("reference.sha256", Path.unlink),
    "part-mask": ("parameter_mask.safetensors", one_less),
    "no-mask": ("parameter_mask.safetensors", Path.unlink),
    "half-mask": ("parameter_mask.safetensors", cut),
    "shape-mask": ("parameter_mask.safetensors", other_shape),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_with_a_sentence(
    tmp_path: Path, finished: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the checkpoint; the run does not go on with half of what it knew.

    Also where its manifest says that these are the files that were written.
    """
    monkeypatch.setattr("prefix_rft.engines.trl.safety.checkpointing.fault", lambda folder: None)
    name, spoil = DAMAGE[damage]
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(finished / "checkpoint-2", checkpoint)
    trainer = irft_with_mask(tmp_path)
    spoil(checkpoint / name)
    with pytest.raises(UserError, match="checkpoint-2"):
        trainer._load_from_checkpoint(str(checkpoint))


def test_a_checkpoint_of_another_trainer_is_refused(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefix_rft.engines.trl.safety.checkpointing.fault", lambda folder: None)
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(finished / "checkpoint-2", checkpoint)
    (checkpoint / "method_state.json").unlink()
    with pytest.raises(UserError, match=r"has no method_state\.json"):
        irft_with_mask(tmp_path).train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(UserError, match=r"has no method_state\.json"):
        imitation(tmp_path, method="sft").train(resume_from_checkpoint=str(checkpoint))


# ---- a checkpoint of another run -----------------------------------------------------------------


def resumed(folder: Path, rows: Any, method: str, **settings: Any) -> Any:
    trainer, _ = trl_run.start(
        PrefixRFTTrainer,
        folder,
        method,
        rows,
        **{"per_device_train_batch_size": 8, "max_steps": 3, "learning_rate": 1e-2, **settings},
    )
    return trainer


@pytest.mark.parametrize("given", [{"kind": "speft", "fraction": 0.5}, None], ids=["other", "none"])
def test_a_mask_of_other_options_is_not_taken_over_in_silence(
    tmp_path: Path, finished: Path, given: dict | None
) -> None:
    """The options of the run and the mask of the checkpoint must be of one kind."""
    settings = {"options": {"stages": 2}, "parameter_mask": given}
    rows = trl_run.make_rewards(["mixed"] * 8)
    trainer = resumed(tmp_path, rows, "irft", **settings)
    with pytest.raises(UserError, match="mask"):
        trainer.train(resume_from_checkpoint=str(finished / "checkpoint-1"))


def test_a_reference_that_differs_in_any_weight_is_refused(tmp_path: Path) -> None:
    """Also behind the first rows of an embedding or a projection."""
    saving = {"save_strategy": "steps", "save_steps": 1, "options": {"stages": 1}}
    rows = trl_run.make_rewards(["mixed"] * 8)
    resumed(tmp_path, rows, "irft", **saving).train()
    other = trl_run.sharp_model()
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[10:] *= 2.0
    trainer = resumed(tmp_path, rows, "irft", model=other, **saving)
    with pytest.raises(UserError, match="another reference policy"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize("rows", [3, 8])
def test_what_waits_must_be_in_the_dataset(tmp_path: Path, rows: int) -> None:
    """Memory and queue know examples by their place: another dataset is refused with a sentence."""
    options = {"sft_prompts": 6}
    saving = {"save_strategy": "steps", "save_steps": 1, "options": options}
    whole = trl_run.make_rewards(["wrong"] * 8)
    resumed(tmp_path, whole, "relift", **saving).train()
    other = whole.select(range(rows)[::-1])
    trainer = resumed(tmp_path, other, "relift", **{**saving, "max_steps": 6})
    with pytest.raises(UserError, match="was made with other rows"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_files_claim_no_advantage_that_is_not_known_yet(tmp_path: Path) -> None:
    rows = trl_run.make_rewards(["mixed"] * 4)
    resumed(tmp_path, rows, "irft", max_steps=1, log_rollouts=True).train()
    resumed(tmp_path / "grpo", rows, "grpo", max_steps=1, log_rollouts=True).train()
    for folder, known in ((tmp_path, False), (tmp_path / "grpo", True)):
        text = (folder / "rollouts/step_000000.jsonl").read_text()
        lines = [json.loads(x) for x in text.splitlines()]
        assert lines
        assert all((x["advantage"] is not None) == known for x in lines)


def test_an_example_that_fails_twice_in_a_step_waits_once(tmp_path: Path) -> None:
    """The group that was right gives way to the other prompt, which fails in both groups."""
    options = {"all_right": "resample", "attempts": 9, "sft_prompts": 4}
    rows = trl_run.make_rewards(["right", "wrong"])
    trainer = resumed(tmp_path, rows, "relift", options=options, max_steps=1, log_rollouts=True)
    trainer.train()
    text = (tmp_path / "rollouts/step_000000.jsonl").read_text()
    assert [json.loads(x)["example"] for x in text.splitlines()] == [1] * 8
    assert trainer.method_state.waiting == [(1, 0)]


def test_what_is_kept_was_sampled_from_the_prompt(tmp_path: Path) -> None:
    """No rollout behind a prefix becomes the policy's own, though many are solved."""
    trainer, _ = trl_run.start(
        PrefixRFTTrainer,
        tmp_path,
        "control",
        trl_run.make_rewards(["mixed"] * 4),
        options={"own": True, "floor": -0.5, "plain": 0.5},
        per_device_train_batch_size=8,
        max_steps=8,
        log_rollouts=True,
    )
    trainer.train()
    rollouts = [
        json.loads(line)
        for path in sorted((tmp_path / "rollouts").glob("step_*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    traces = trainer.method_state.traces
    assert traces
    assert any(r["prefix_length"] and r["reward"] > 0 for r in rollouts)
    for example, some in traces.items():
        assert len(some) <= 2
        for trace in some:
            [*same] = [
                r
                for r in rollouts
                if (r["example"], r["step"]) == (example, trace.step)
                and tuple(r["completion_ids"]) == trace.ids
            ]
            assert any(not r["prefix_length"] and (r["reward"] > 0) == trace.solved for r in same)
