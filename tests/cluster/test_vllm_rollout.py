"""verl with a real vLLM on a CPU: steps computed again, and which weights drew their rows."""

import os
from pathlib import Path

import pytest

pytest.importorskip("verl")
pytest.importorskip("vllm")

import torch
import verl_runs as cluster
from transformers import AutoConfig, AutoModelForCausalLM

from prefix_rft.cli import main
from second.step import verl_run

pytestmark = [
    pytest.mark.verl,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

EXACT = 1e-5
"""Nats a token in float32."""

ROLLOUT = "actor_rollout_ref.rollout"
VLLM = (
    f"{ROLLOUT}.name=vllm",
    f"{ROLLOUT}.dtype=float32",
    f"{ROLLOUT}.enforce_eager=True",
    # What is released and comes back is an accelerator's memory.
    f"{ROLLOUT}.free_cache_engine=False",
    f"+{ROLLOUT}.enable_sleep_mode=False",
    f"{ROLLOUT}.gpu_memory_utilization=0.1",
    f"{ROLLOUT}.max_model_len={64 + cluster.BUDGET}",
)
REWARD = (
    "def digits(completions, **kwargs):\n"
    "    return [sum(x.isdigit() for x in c) / max(len(c), 1) for c in completions]\n"
)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task with an untrained base, whose heads of 32 are the smallest for vLLM on a CPU."""
    folder = tmp_path_factory.mktemp("task") / "data"
    sizes = ["--train-rows", "40", "--test-rows", "8", "--valid-rows", "8"]
    assert main(["task", "countdown", str(folder), *sizes]) == 0
    config = AutoConfig.from_pretrained(folder / "base")
    config.head_dim, config.max_position_embeddings = 32, 256
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    # The base solves nothing: a reward that tells its rows apart.
    (folder / "digits_reward.py").write_text(REWARD)
    return folder


@pytest.fixture(scope="module")
def run(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of Prefix-RFT, with the weights of each beside what was trained."""
    folder = tmp_path_factory.mktemp("run")
    tests = cluster.ROOT / "tests"
    paths = [cluster.ROOT / "src", tests / "cluster", tests / "real_vllm/plugin", task]
    done = cluster.run(
        task,
        folder,
        *VLLM,
        "prefix_rft.reward=digits_reward:digits",
        "trainer.save_freq=1",
        PYTHONPATH=os.pathsep.join(map(str, paths)),
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_NO_USAGE_STATS="1",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert not (folder / "look/requests.jsonl").exists()  # the other tests' server was not there
    base = AutoModelForCausalLM.from_pretrained(task / "base", dtype=torch.float32)
    torch.save(dict(base.state_dict()), folder / "look/weights_0.pt")
    for step in (1, 2):
        path = folder / f"checkpoints/global_step_{step}/actor/model_world_size_1_rank_0.pt"
        shards = torch.load(path, weights_only=False)
        whole = {k: v.to_local() if hasattr(v, "to_local") else v for k, v in shards.items()}
        torch.save(whole, folder / f"look/weights_{step}.pt")
    return folder


def farthest(
    rows: list[verl_run.Row], scored: list[torch.Tensor], drawn: list[torch.Tensor]
) -> float:
    """The largest distance, in nats, of the sampler's log-prob of a sampled token from ours."""
    gaps = [
        (a - b.float())[row.prefix : len(row.completion)].abs()
        for row, a, b in zip(rows, scored, drawn, strict=True)
    ]
    return float(torch.cat(gaps).max())


def test_two_steps(task: Path, run: Path) -> None:
    again = verl_run.Again(task, run, verl_run.PREFIX_RFT)
    for step in (1, 2):
        logged = cluster.metrics(run)[step]
        rows, loss, norm = again.step(step, 1, 1)
        assert logged["actor/loss"] == pytest.approx(loss, rel=1e-5, abs=1e-8)
        assert logged["actor/grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert norm > 1e-3
        assert again.weights_apart(step) < 1e-6
        assert len(rows) == 16
        assert sum(r.prefix > 0 for r in rows) in (3, 4)  # one of four, unless it came out empty
        drawn = torch.load(run / f"look/batch_{step}.pt", weights_only=False)["rollout_log_probs"]
        assert farthest(rows, [r.old for r in rows], drawn) <= EXACT
        assert logged["sampling/sampling_logp_difference/mean"] <= EXACT
    # Had the weights of step 1 not arrived, this would have been the distance at step 2.
    assert farthest(rows, [again.drawn_by(0, r) for r in rows], drawn) > 1000 * EXACT
