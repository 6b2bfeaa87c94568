"""Start verl's trainer on this machine's processor, with Ray, as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUDGET = 48
EPS = 1e-4


def overrides(task: Path, folder: Path, ranks: int) -> list[str]:
    """What every run here has in common."""
    parts = ("actor", "rollout", "model", "ref")
    actor, rollout, model, ref = (f"actor_rollout_ref.{x}" for x in parts)
    return [
        "trainer.device=cpu",
        f"trainer.n_gpus_per_node={ranks}",
        "trainer.nnodes=1",
        "trainer.logger=[console,file]",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.resume_mode=disable",
        "trainer.total_training_steps=2",
        "trainer.total_epochs=10",
        f"trainer.default_local_dir={folder}/checkpoints",
        "trainer.project_name=test",
        "trainer.experiment_name=run",
        f"data.train_files={task}/train.jsonl",
        f"data.val_files={task}/test.jsonl",
        "data.val_max_samples=4",
        "data.train_max_samples=40",
        "data.train_batch_size=4",
        "data.max_prompt_length=64",
        f"data.max_response_length={BUDGET}",
        "data.dataloader_num_workers=0",
        "data.seed=1",
        f"{model}.path={task}/base",
        f"{model}.use_remove_padding=False",
        f"{model}.enable_gradient_checkpointing=False",
        f"+{model}.override_config.attn_implementation=sdpa",
        f"{actor}.strategy=fsdp2",
        f"{actor}.use_torch_compile=False",
        f"{actor}.fsdp_config.use_torch_compile=False",
        f"+{actor}.fsdp_config.mixed_precision.param_dtype=fp32",
        f"+{actor}.fsdp_config.mixed_precision.reduce_dtype=fp32",
        f"{actor}.optim.lr=1e-3",
        # Where a gradient is all but 0, Adam's first steps would show its sign and nothing else.
        f"{actor}.optim.override_optimizer_config={{eps: {EPS}}}",
        f"{actor}.ppo_mini_batch_size=4",
        f"{actor}.ppo_micro_batch_size_per_gpu=4",
        f"{rollout}.name=verl_cpu",
        f"{rollout}.tensor_model_parallel_size=1",
        f"{rollout}.n=4",
        f"{rollout}.log_prob_micro_batch_size_per_gpu=4",
        f"{ref}.log_prob_micro_batch_size_per_gpu=4",
        f"+{ref}.fsdp_config.mixed_precision.param_dtype=fp32",
        f"{rollout}.agent.num_workers=1",
        f"{rollout}.load_format=auto",
        "reward.num_workers=1",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        "transfer_queue.backend.SimpleStorage.total_storage_size=2000",
        "ray_kwargs.ray_init.num_cpus=16",
        f"+ray_kwargs.ray_init.num_gpus={ranks}",
        "+ray_kwargs.ray_init.include_dashboard=False",
        "+ray_kwargs.ray_init.object_store_memory=500000000",
    ]


def run(
    task: Path,
    folder: Path,
    *more: str,
    ranks: int = 1,
    module: str = "prefix_rft.engines.verl",
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run to the end; what it leaves is in ``folder``."""
    given = [x for x in overrides(task, folder, ranks) if not x.startswith(names_of(more))]
    return start(folder, "-m", module, *given, *more, **environment)


def names_of(given: tuple[str, ...]) -> tuple[str, ...]:
    """What overrides begin with, up to their values."""
    return tuple(x.partition("=")[0] + "=" for x in given)


def start(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user of a machine without an accelerator would."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT / "src"), str(ROOT / "tests/cluster")]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "VERL_USE_EXTERNAL_MODULES": "verl_cpu",
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",
        "VERL_CPU_LOOK": str(folder / "look"),
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HYDRA_FULL_ERROR": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        **environment,
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


def metrics(folder: Path) -> dict[int, dict[str, Any]]:
    """What verl has logged, by step."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found: dict[int, dict[str, Any]] = {}
    for line in map(json.loads, lines):
        found.setdefault(line["step"], {}).update(line["data"])
    return found


def requests(folder: Path) -> list[dict[str, Any]]:
    """What the rollout server was asked for."""
    path = folder / "look/requests.jsonl"
    return [json.loads(x) for x in path.read_text().splitlines()]
