"""verl's own worker in this process, without Ray: updates of methods with teachers, written down.

One of the processes that share the steps: ``RANK``, ``WORLD_SIZE`` and the rest are torch's.
"""

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
os.environ.setdefault("VERL_USE_EXTERNAL_MODULES", "verl_cpu")

import torch
import torch.distributed as dist
import verl  # noqa: F401  (which takes in the platform)
import verl_runs as cluster
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch.distributed.fsdp import FSDPModule
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import response_from_nested

from prefix_rft.engines.verl import columns
from prefix_rft.engines.verl.credit import CreditedRows
from prefix_rft.engines.verl.settings import configure
from prefix_rft.engines.verl.teachers import TEACHER
from prefix_rft.engines.verl.worker import FOLLOWED, MOVED, STEP, TOTAL, MethodWorker


def nested(rows: list[Any]) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.as_tensor(r) for r in rows], layout=torch.jagged)


def made(task: Path, method: str, options: dict[str, Any], *more: str) -> Any:
    """A worker with the actor alone."""
    given = cluster.overrides(task, task, int(os.environ["WORLD_SIZE"]))
    own = [*more, f"prefix_rft.method={method}", "actor_rollout_ref.actor.optim.lr=1e-2"]
    own += ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"]
    given = [x for x in given if not x.startswith(cluster.names_of(tuple(own)))]
    with initialize_config_module("prefix_rft.engines.verl.config", version_base=None):
        config = compose("prefix_rft", overrides=[*given, *own])
    config.prefix_rft.method_options = options
    configure(config)
    OmegaConf.resolve(config)
    worker = MethodWorker(config=config.actor_rollout_ref, role="actor")
    worker.init_model()
    return worker


def batch(case: dict[str, Any], worker: Any, step: int) -> Any:
    """This process's rows of a generation, as verl's trainer hands them to the actor."""
    rows = case["rows"][step]
    table = TensorDict(
        {
            "prompts": nested([r["prompt"] for r in rows]),
            "responses": nested([r["completion"] for r in rows]),
            "response_mask": nested([[1] * len(r["completion"]) for r in rows]),
            "loss_mask": nested([[1] * len(r["completion"]) for r in rows]),
            "input_ids": nested([r["prompt"] + r["completion"] for r in rows]),
            "position_ids": nested([list(range(len(r["prompt"] + r["completion"]))) for r in rows]),
            columns.PREFIX: torch.zeros(len(rows), dtype=torch.int64),
            columns.WHOLE: torch.zeros(len(rows), dtype=torch.bool),
            columns.CONTEXT: torch.zeros(len(rows), dtype=torch.bool),
            columns.ATTEMPT: torch.zeros(len(rows), dtype=torch.int64),
            columns.REWARD: torch.tensor([r["reward"] for r in rows], dtype=torch.float64),
            columns.asked(0): nested([r["asked"] or [1] for r in rows]),
            columns.taught(0): torch.tensor([r["asked"] is not None for r in rows]),
        },
        batch_size=len(rows),
    )
    table["uid"] = [str(r["group"]) for r in rows]
    credit = CreditedRows.of(worker.actor.method, table, [{}] * len(rows), cluster.BUDGET, (1,))
    table[columns.GROUP], table[columns.ADVANTAGE] = credit.group_N, credit.advantage_SN.T.clone()
    table[columns.DROPPED], table[columns.TRUNCATED] = credit.dropped_N, credit.truncated_N
    rank, share = dist.get_rank(), len(rows) // dist.get_world_size()
    mine = tu.index_select_tensor_dict(table, list(range(rank * share, (rank + 1) * share)))
    how = {"temperature": 1.0, STEP: step, TOTAL: len(case["rows"]), MOVED: False}
    tu.assign_non_tensor(mine, calculate_entropy=True, compute_loss=False, **how)
    out = worker.compute_log_prob(mine.copy())
    for name, column in (("old_log_probs", "log_probs"), ("entropy", "entropy")):
        mine[name] = response_from_nested(out[column], mine["response_mask"])
    return mine


def scores(worker: Any, data: Any) -> torch.Tensor:
    """The policy's log-probs of the rows."""
    found = worker.compute_log_prob(data.copy())["log_probs"]
    return columns.padded(response_from_nested(found, data["response_mask"]))


def weights_of(worker: Any) -> dict[str, torch.Tensor]:
    """The policy's, gathered from all processes."""
    module = worker.actor.engine.module
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    return {n: p.detach().full_tensor().clone() for n, p in module.named_parameters()}


def update(worker: Any, data: Any, updates: int) -> dict[str, Any]:
    """verl's loop over the updates of a generation; what each began with, and metrics."""
    actor, begun, said = worker.actor, [], []
    begin = actor.teachers.begin

    def watched(part: Any) -> None:
        begin(part)
        begun.append(weights_of(worker))  # which brings FSDP2's shards back, and so not before
        if columns.said(0) in part.keys():  # noqa: SIM118
            said.append(columns.padded(part[columns.said(0)]))

    actor.teachers.begin = watched
    size = len(data) * dist.get_world_size() // updates
    tu.assign_non_tensor(
        data, mini_batch_size=size, global_batch_size=size, epochs=1, seed=1, temperature=1.0,
        dataloader_kwargs={"shuffle": False}, calculate_entropy=True, **{FOLLOWED: "{}"},
    )  # fmt: skip
    out = worker.update_actor(data)
    actor.teachers.begin = begin
    return {"begun": begun, "said": said, "metrics": dict(tu.get(out, "metrics"))}


def generation(worker: Any, case: dict[str, Any], step: int) -> dict[str, Any]:
    """The updates of a generation; a teacher that stands is asked before them."""
    data, found, teacher = batch(case, worker, step), {}, worker.actor.method.teachers[0]
    if not teacher.moves:
        tu.assign_non_tensor(data, **{TEACHER: 0})
        before, other = scores(worker, data), teacher.weights == "model"
        asked = (worker.ask_model if other else worker.ask_teacher)(data.copy())
        data[columns.said(0)] = asked[columns.said(0)]
        found["asked"] = columns.padded(data[columns.said(0)])
        found["undisturbed"] = torch.equal(before, scores(worker, data))
    return found | update(worker, data, case["updates"])


def run(case: dict[str, Any], task: Path, folder: Path) -> dict[str, Any]:
    """All generations of a case; with ``resume`` the later ones again from a checkpoint."""
    make = lambda: made(task, case["method"], case["options"], *case.get("more", ()))  # noqa: E731
    worker, steps, saved = make(), [], str(folder / case["name"])
    for step in range(len(case["rows"])):
        steps.append(generation(worker, case, step))
        if case.get("resume") and step == 0:
            worker.save_checkpoint(saved)
    result = {"steps": steps, "last": weights_of(worker), "kept": kept_of(worker)}
    if case.get("resume"):
        worker = make()
        worker.load_checkpoint(saved)
        for step in range(1, len(case["rows"])):
            generation(worker, case, step)
        result |= {"again": weights_of(worker), "kept_again": kept_of(worker)}
    return result


def kept_of(worker: Any) -> dict[str, torch.Tensor]:
    """This process's shards of what is kept for the teacher."""
    kept = worker.actor.teachers.kept.get("teacher")
    return {} if kept is None else dict(kept.weights)


def main() -> None:
    """Run the cases of a file."""
    task, folder = Path(sys.argv[1]), Path(sys.argv[2])
    results = {}
    for case in torch.load(folder / "cases.pt", weights_only=False):
        results[case["name"]] = run(case, task, folder)
    torch.save(results, folder / f"results_{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
