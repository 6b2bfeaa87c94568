"""Real runs of verl's trainer: Ray, FSDP2 over gloo, weight sync; and each step computed again."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

pytest.importorskip("verl")

import torch
import trl_beside
import verl_runs as cluster
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefix_rft.cli import main
from prefix_rft.runs.reader import RunFolder
from second.step import verl_run

PREFIX = "prefix_rft_prefix_length"
OF_RECIPES = {
    f"trainer.{x}"
    for x in (
        *("logger", "total_training_steps", "total_epochs", "default_local_dir", "save_freq"),
        *("val_before_train", "test_freq", "resume_mode", "project_name", "experiment_name"),
    )
}
"""Settings that a recipe makes of its own keys."""

pytestmark = [pytest.mark.verl, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    sizes = ["--train-rows", "40", "--test-rows", "8", "--valid-rows", "8"]
    assert main(["task", "countdown", str(folder / "data"), *sizes]) == 0
    return folder / "data"


def ended_well(done) -> None:
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def sentence(done) -> str:
    """What a run that stopped says of it, among the lines of Ray's processes."""
    begins = "prefix-rft: error: "
    said = [x for x in done.stderr.splitlines() if x.startswith(begins)]
    assert len(said) == 1, done.stderr[-4000:]
    return said[0].removeprefix(begins)


def agree(again: verl_run.Again, folder: Path, step: int, ranks: int, updates: int, parts: int = 1):
    """Loss, gradient norm and weights of a step; its rows."""
    logged = cluster.metrics(folder)[step]
    rows, loss, norm = again.step(step, ranks, updates, parts)
    assert logged["actor/loss"] == pytest.approx(loss, rel=1e-5, abs=1e-7)
    assert logged["actor/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert again.weights_apart(step) < 1e-5
    return rows


@pytest.fixture(scope="module")
def first(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix-RFT on one rank: two steps, with validation before them and a checkpoint each."""
    folder = tmp_path_factory.mktemp("first")
    done = cluster.run(
        task,
        folder,
        "prefix_rft.reward=countdown",
        "trainer.val_before_train=True",
        "trainer.save_freq=1",
        "actor_rollout_ref.actor.optim.lr=1e-3",
    )
    ended_well(done)
    return folder


def test_prefix_rft_is_computed_again(task: Path, first: Path) -> None:
    again = verl_run.Again(task, first, verl_run.PREFIX_RFT)
    assert again.weights_apart(0) == 0.0
    for step in (1, 2):
        rows = agree(again, first, step, 1, 1)
        assert len(rows) == 16
        assert sum(r.prefix > 0 for r in rows) in (3, 4)  # one of four, unless it came out empty
        logged = cluster.metrics(first)[step]
        hybrid = [r for r in rows if r.prefix]
        assert logged["prefix/row_share"] == pytest.approx(len(hybrid) / 16)
        tokens = sum(r.prefix for r in rows) / sum(len(r.completion) for r in rows)
        assert logged["prefix/token_share"] == pytest.approx(tokens)
        assert logged["prefix/reward"] == pytest.approx(sum(r.reward for r in hybrid) / len(hybrid))
        own = [r.reward for r in rows if not r.prefix]
        assert logged["policy/reward"] == pytest.approx(sum(own) / len(own))
        assert logged["sampling/sampling_logp_difference/mean"] < 1e-5
        right = sum(r.reward == 1.0 for r in rows) / len(rows)
        assert logged["verdicts/countdown/correct"] == pytest.approx(right)
        assert logged["verdicts/countdown/wrong"] == pytest.approx(1 - right)


def test_validation_sees_no_demonstration(task: Path, first: Path) -> None:
    """It comes first, greedy; what the server was sent are prompts and nothing behind them."""
    prompts = {
        tuple(torch.load(first / "look/batch_1.pt", weights_only=False)["prompts"][i].tolist())
        for i in range(16)
    }
    asked = cluster.requests(first)
    validation = [r for r in asked if r["temperature"] == 0]
    training = [r for r in asked if r["temperature"] == 1]
    assert len(validation) == 4
    assert len(training) == 32
    again = verl_run.Again(task, first, verl_run.PREFIX_RFT)
    test = [json.loads(x) for x in (task / "test.jsonl").read_text().splitlines()][:4]
    tokenizer = AutoTokenizer.from_pretrained(task / "base")
    expected = {tuple(tokenizer(row["prompt"])["input_ids"]) for row in test}
    assert {tuple(r["prompt_ids"]) for r in validation} == expected
    longer = [r for r in training[:16] if tuple(r["prompt_ids"]) not in prompts]
    assert longer
    for r in longer:
        ids = next(
            r["prompt_ids"][len(p) :] for p in prompts if tuple(r["prompt_ids"][: len(p)]) == p
        )
        assert any(d[: len(ids)] == ids for d in again.demonstrations)
        assert r["max_tokens"] == cluster.BUDGET - len(ids)


def test_verls_own_command_goes_on_from_a_checkpoint(
    task: Path, first: Path, tmp_path: Path
) -> None:
    """The other way to launch; rows and prefixes of the next step are those of a run without a
    stop."""
    shutil.copytree(first / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints/global_step_2")
    (tmp_path / "checkpoints/latest_checkpointed_iteration.txt").write_text("1")
    done = cluster.run(
        task,
        tmp_path,
        "trainer.resume_mode=auto",
        "trainer.v1.trainer_mode=prefix_rft",
        "algorithm.adv_estimator=grpo",
        "+prefix_rft={reward: countdown}",
        module="verl.trainer.main_ppo",
        VERL_USE_EXTERNAL_MODULES="verl_cpu,prefix_rft.engines.verl.plugin",
    )
    ended_well(done)
    before, after = (
        torch.load(f / "look/batch_2.pt", weights_only=False) for f in (first, tmp_path)
    )

    def by_row(batch) -> list:
        rollout = [k.rsplit("_", 2)[1] for k in batch["keys"]]
        return sorted(zip(batch["index"], rollout, map(int, batch[PREFIX]), strict=True))

    assert by_row(after) == by_row(before)
    again = torch.load(tmp_path / "look/weights_1.pt", weights_only=True)
    was = torch.load(first / "look/weights_1.pt", weights_only=True)
    assert all(torch.equal(again[k], was[k]) for k in was)


def test_a_hybrid_over_two_ranks_with_rows_that_fill(task: Path, tmp_path: Path) -> None:
    """LUFFY: 3 prompts of 4 rows, updates of 2 prompts: verl adds 4 rows."""
    done = cluster.run(
        task,
        tmp_path,
        "prefix_rft.reward=countdown",
        "prefix_rft.method=luffy",
        "data.train_batch_size=3",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
        f"trainer.rollout_data_dir={tmp_path}/rollouts",
        ranks=2,
    )
    ended_well(done)
    again = verl_run.Again(task, tmp_path, verl_run.LUFFY)
    for step in (1, 2):
        text = (tmp_path / f"rollouts/step_{step - 1:06d}.jsonl").read_text()
        written = [json.loads(x) for x in text.splitlines()]
        batch = torch.load(tmp_path / f"look/batch_{step}.pt", weights_only=False)
        assert sum(batch["padding"]) == 4
        rows = agree(again, tmp_path, step, 2, 2)
        assert len(rows) == 12
        assert sum(r.whole for r in rows) == 3
        as_written = [(x["completion_ids"], x["demonstration"], x["advantage"]) for x in written]
        expected = [(r.completion, r.whole, pytest.approx(r.advantage)) for r in rows]
        assert len(written) == 12
        assert all(x in expected for x in as_written)
        assert cluster.metrics(tmp_path)[step]["demonstration/row_share"] == 0.25


@pytest.fixture(scope="module")
def chord(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CHORD on one rank: two steps."""
    folder = tmp_path_factory.mktemp("chord")
    ended_well(cluster.run(task, folder, "prefix_rft.reward=countdown", "prefix_rft.method=chord"))
    return folder


def test_another_hybrid_is_computed_again(task: Path, chord: Path) -> None:
    again = verl_run.Again(task, chord, verl_run.CHORD)
    for step in (1, 2):
        rows = agree(again, chord, step, 1, 1)
        assert sum(r.whole for r in rows) == 4


WAITS = {"sizes": [1, 2, 1], "shares": [0.0, 0.5, 1.0], "below": [0, 1, 3]}
"""Of a group of four, two rows at a half if the first fails, and the demonstration."""


@pytest.fixture(scope="module")
def trapo(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TRAPO on two ranks: two steps."""
    folder = tmp_path_factory.mktemp("trapo")
    done = cluster.run(
        task,
        folder,
        "prefix_rft.reward=countdown",
        "prefix_rft.method=trapo",
        f"prefix_rft.method_options='{json.dumps(WAITS)}'",
        ranks=2,
    )
    ended_well(done)
    return folder


def test_rollouts_that_wait_are_computed_again(task: Path, trapo: Path) -> None:
    """What a rollout starts from is decided by the rewards of those before it."""
    again, helped = verl_run.Again(task, trapo, verl_run.TRAPO), set()
    for step in (1, 2):
        rows = agree(again, trapo, step, 2, 1)
        assert len(rows) == 16
        for group in {r.group for r in rows}:
            first, second, third, last = sorted(
                (r for r in rows if r.group == group), key=lambda r: r.place
            )
            assert not first.prefix
            assert second.prefix == third.prefix
            assert bool(second.prefix) == (first.reward < 1.0)
            assert last.whole == (first.reward + second.reward + third.reward < 3.0)
            helped |= {bool(second.prefix), last.whole}
        asked = cluster.metrics(trapo)[step]
        assert asked["demonstration/row_share"] == sum(r.whole for r in rows) / 16
        trained = [r.prefix for r in rows if r.place == 2 and not r.whole]
        prefixes = [r.prefix for r in rows if not r.whole]
        assert asked["prefix/kept"] == pytest.approx(sum(trained) / sum(prefixes))
    assert helped == {True, False}


@pytest.mark.parametrize("method", ["prefix_rft", "chord", "trapo"])
def test_the_trl_engine_takes_the_same_steps(
    task: Path, method: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """It starts the same rows from the same ids; and given the same samples it has the same loss,
    gradient norm and weights."""
    folder = request.getfixturevalue("first" if method == "prefix_rft" else method)
    options = WAITS if method == "trapo" else None
    steps = [torch.load(folder / f"look/batch_{n}.pt", weights_only=False) for n in (1, 2)]
    trainer = trl_beside.Beside(task, method, steps, tmp_path, options)
    trainer.train()
    logged = [x for x in trainer.state.log_history if "grad_norm" in x]
    for n, line in enumerate(logged, 1):
        theirs = cluster.metrics(folder)[n]
        assert line["loss"] == pytest.approx(theirs["actor/loss"], rel=1e-5, abs=1e-7)
        assert line["grad_norm"] == pytest.approx(theirs["actor/grad_norm"], rel=1e-5)
        assert line["reward"] == pytest.approx(theirs["reward"])
        sent = torch.load(folder / f"look/weights_{n}.pt", weights_only=True)
        assert all((sent[k] - w).abs().max() < 1e-5 for k, w in trainer.weights[n - 1].items())
    assert len(logged) == 2


def test_a_kl_term(task: Path, tmp_path: Path) -> None:
    """verl's reference policy gives its log-probs on prefixes, too."""
    done = cluster.run(task, tmp_path, "prefix_rft.reward=countdown", "prefix_rft.beta=0.1")
    ended_well(done)
    again = verl_run.Again(task, tmp_path, verl_run.WITH_KL)
    for step in (1, 2):
        batch = torch.load(tmp_path / f"look/batch_{step}.pt", weights_only=False)
        assert "ref_log_prob" in batch
        agree(again, tmp_path, step, 1, 1)


def test_rollouts_that_an_update_interrupts(task: Path, tmp_path: Path) -> None:
    """Rows go on under newer weights; the sampler's log-probs are those of the weights that drew
    each token, and their correction (token, at most 2) leaves prefixes as they are."""
    done = cluster.run(
        task,
        tmp_path,
        "prefix_rft.reward=countdown",
        "trainer.v1.trainer_mode=prefix_rft_colocate_async",
        "algorithm.rollout_correction.rollout_is=token",
        "algorithm.rollout_correction.rollout_is_threshold=2.0",
        "trainer.total_training_steps=4",
    )
    ended_well(done)
    again = verl_run.Again(task, tmp_path, verl_run.PREFIX_RFT)
    old, mixed = 0, 0
    for step in (1, 2, 3, 4):
        batch = torch.load(tmp_path / f"look/batch_{step}.pt", weights_only=False)
        rows = agree(again, tmp_path, step, 1, 1)
        for i, (row, (first, last)) in enumerate(zip(rows, batch["versions"], strict=True)):
            old += first < step - 1
            torch.testing.assert_close(batch["rollout_is_weights"][i].float(), row.weight)
            sampled = slice(row.prefix, None)
            laws = [again.drawn_by(v, row)[sampled] for v in range(first, last + 1)]
            apart = [(batch["rollout_log_probs"][i][sampled] - x).abs() for x in laws]
            assert torch.stack(apart).amin(0).max() < 1e-5
            mixed += first < last and bool(torch.stack(apart).amax(0).max() > 1e-4)
    assert old
    assert mixed


@pytest.mark.slow
def test_samplers_with_machines_of_their_own(task: Path, tmp_path: Path) -> None:
    """Weights go over every second update; the log-probs of both batches in between are those of
    the weights that were sent, the entropies that select are the present ones."""
    rollout = "actor_rollout_ref.rollout"
    done = cluster.run(
        task,
        tmp_path,
        "prefix_rft.reward=countdown",
        "trainer.v1.trainer_mode=prefix_rft_separate_async",
        "trainer.v1.separate_async.parameter_sync_step=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        f"{rollout}.nnodes=1",
        f"{rollout}.n_gpus_per_node=1",
        f"{rollout}.checkpoint_engine.backend=verl_cpu_file",
        "+ray_kwargs.ray_init.num_gpus=2",
        "actor_rollout_ref.actor.optim.lr=5e-3",
        "trainer.total_training_steps=3",
    )
    ended_well(done)
    again = verl_run.Again(task, tmp_path, verl_run.PREFIX_RFT, 5e-3)
    for step in (1, 2, 3):
        rows = agree(again, tmp_path, step, 1, 1, parts=2)
        assert len(rows) == 16


def test_a_recipe_starts_it(task: Path, tmp_path: Path) -> None:
    """The recipe of the TRL engine, with ``engine: verl``: the same rows, prefixes and names."""
    theirs = {}
    for line in cluster.overrides(task, tmp_path, 1):
        key, _, value = line.partition("=")
        named = key.startswith("data.") or key in OF_RECIPES
        if not (named or "optim" in key or key.endswith((".n", "ppo_mini_batch_size"))):
            theirs[key] = yaml.safe_load(value)
    theirs |= {"data.max_prompt_length": 64, "data.dataloader_num_workers": 0}
    recipe = {
        "engine": "verl",
        "name": "mine",
        "model": "base",
        "train_data": "train.jsonl",
        "eval_data": "test.jsonl",
        "eval_problems": 4,
        "reward": "countdown",
        "method": {"name": "adaback"},
        "num_generations": 4,
        "prompts_per_step": 4,
        "micro_batch_size": 4,
        "max_completion_length": cluster.BUDGET,
        "max_steps": 2,
        "save_steps": 1,
        "runs": str(tmp_path / "runs"),
        "verl": theirs,
    }
    path = task / "cluster.yaml"
    path.write_text(yaml.safe_dump(recipe))
    done = cluster.start(tmp_path, "-m", "prefix_rft", "train", str(path))
    ended_well(done)
    folder = tmp_path / "runs/mine"
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [0, 1, 2]
    assert {"loss", "grad_norm", "prefix/reward", "prefix/length", "entropy"} <= lines[1].keys()
    assert (folder / "report.html").is_file()
    # Rollouts are those that `show` and the report read.
    for step in (0, 1):
        rows = RunFolder(folder).rollouts(step)
        assert len(rows) == 16
        assert all(r.text and r.verdicts["countdown"]["status"] for r in rows)
        rewards = [r.reward for r in rows if r.reward is not None]
        assert len(rewards) == 16
        mean = sum(rewards) / 16
        assert lines[step + 1]["reward"] == pytest.approx(mean)
    assert main(["show", str(folder)]) == 0
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["method"]["name"] == "adaback"
    # What the planner has learnt is in the checkpoint, and a run goes on with it.
    learnt = remembered(folder, 2)
    assert learnt
    done = cluster.start(
        tmp_path, "-m", "prefix_rft", "train", str(path), "max_steps=3", "--resume"
    )
    ended_well(done)
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [0, 1, 2, 3]
    now, sampled = remembered(folder, 3), {r.example for r in RunFolder(folder).rollouts(2)}
    assert learnt.keys() - sampled
    assert all(now[x] == learnt[x] for x in learnt.keys() - sampled)
    assert lines[3]["memory/examples"] == len(now)
    # What it said at its end makes one model of the parts, in bf16.
    command = next(x for x in done.stdout.splitlines() if x.startswith("python -m verl.model"))
    ended_well(cluster.start(tmp_path, *command.split()[1:]))
    merged = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    sent = torch.load(tmp_path / "look/weights_3.pt", weights_only=True)
    assert all(torch.equal(sent[k].bfloat16().float(), w) for k, w in merged.state_dict().items())
    assert (folder / "model/tokenizer.json").is_file()


def remembered(folder: Path, step: int) -> dict[int, dict[str, float]]:
    """What a run's planner knew of examples at a checkpoint."""
    state = folder / f"checkpoints/global_step_{step}/method_state.json"
    return {int(k): v for k, v in json.loads(state.read_text())["examples"].items()}


def test_groups_that_fail_are_sampled_again(task: Path, tmp_path: Path) -> None:
    """BREAD: prompts that the base does not solve branch from their demonstrations."""
    done = cluster.run(task, tmp_path, "prefix_rft.reward=countdown", "prefix_rft.method=bread")
    ended_well(done)
    for step in (1, 2):
        batch = torch.load(tmp_path / f"look/batch_{step}.pt", weights_only=False)
        attempt = [int(x) for x in batch["prefix_rft_attempt"]]
        prefix = [int(x) for x in batch[PREFIX]]
        reward = [float(x) for x in batch["prefix_rft_reward"]]
        groups: dict[str, list[int]] = {}
        for i, key in enumerate(batch["keys"]):
            groups.setdefault(key.rsplit("_", 2)[0], []).append(i)
        for rows in groups.values():
            if max(attempt[i] for i in rows) == 0:
                assert any(reward[i] > 0 for i in rows)
                assert not any(prefix[i] for i in rows)
            else:
                assert any(prefix[i] for i in rows)
                assert any(reward[i] > 0 for i in rows) or max(attempt[i] for i in rows) == 3
        share = sum(max(attempt[i] for i in rows) > 0 for rows in groups.values()) / 4
        assert cluster.metrics(tmp_path)[step]["groups/resampled"] == share
    assert any(attempt)


@pytest.mark.slow
def test_prefix_rft_over_two_ranks_and_two_updates(task: Path, tmp_path: Path) -> None:
    """In the second update entropies are those of the policy that the first one has made."""
    done = cluster.run(
        task,
        tmp_path,
        "prefix_rft.reward=countdown",
        "prefix_rft.method_options={entropy_keep: 0.5}",
        "trainer.total_training_steps=3",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.actor.optim.lr=5e-3",
        ranks=2,
    )
    ended_well(done)
    again = verl_run.Again(task, tmp_path, verl_run.KEEPS_HALF, 5e-3)
    for step in (1, 2, 3):
        agree(again, tmp_path, step, 2, 2)


def test_a_sampler_with_old_weights_stops_the_run(task: Path, tmp_path: Path) -> None:
    done = cluster.run(
        task,
        tmp_path,
        "prefix_rft.reward=countdown",
        "prefix_rft.weight_check=0.001",
        "actor_rollout_ref.actor.optim.lr=1e-2",
        VERL_CPU_FAULT="stale",
    )
    assert done.returncode == 1
    said = sentence(done)
    assert said.startswith("step 2: sampler and actor are")
    assert "the sampler may have old weights" in said
    assert sorted(cluster.metrics(tmp_path)) == [1]


def test_rows_without_what_the_method_needs(task: Path, tmp_path: Path) -> None:
    """They are read in another process; what is said is one sentence."""
    lines = (task / "train.jsonl").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(x).items() if k != "demonstration"} for x in lines]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = cluster.run(
        task, tmp_path, "prefix_rft.reward=countdown", f"data.train_files={tmp_path}/bare.jsonl"
    )
    assert done.returncode == 2
    assert sentence(done).startswith("method 'prefix_rft' needs demonstrations")
