"""Run by a test in two gloo processes: weights that are kept beside a model that FSDP2 shards.

Usage: kept_two_processes.py FOLDER CASE..., where a case says whether what a layer has gathered for
a forward is dropped behind it.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from prefix_rft.engines.kept_weights import KeptWeights
from prefix_rft.support.errors import UserError
from tiny import make_model, make_tokenizer

RATES = (0.05, 0.25, 0.5)


def sharded(model: Any, drops: bool) -> Any:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (*model.model.layers, model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=drops)
    return model


def build(seed: int = 0) -> Any:
    return make_model(make_tokenizer(), layers=2, seed=seed)


def rows(rank: int) -> Tensor:
    return torch.randint(3, 40, (4, 12), generator=torch.Generator().manual_seed(rank))


def loss_of(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def whole(model: Any) -> dict[str, Tensor]:
    found = {n: getattr(p, "full_tensor", lambda p=p: p)() for n, p in model.named_parameters()}
    return {n: w.detach().clone() for n, w in found.items()}


def updated(model: Any) -> None:
    """Another step of a model's weights, the same in each process whatever its part."""
    ids = rows(7)
    loss_of(model(input_ids=ids).logits, ids).backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    model.zero_grad()


def forwards(drops: bool) -> dict[str, float]:
    """Student, teacher and student again; a teacher between the student's forward and backward."""
    plain, other, model, rank = build(), build(5), build(), dist.get_rank()
    kept = KeptWeights(model, "teacher")
    if rank == 0:  # the first process's are shared out, the other's may be anything
        kept.weights = whole(other)
    else:
        kept.weights = {n: w.to("meta") for n, w in kept.weights.items()}
    sharded(model, drops)
    ids = rows(rank)
    found: dict[str, float] = {}

    def far(name: str, a: Tensor, b: Tensor) -> None:
        found[name] = max(found.get(name, 0.0), (a - b).abs().max().item())

    with torch.no_grad():
        of_other, of_plain = other(input_ids=ids).logits, plain(input_ids=ids).logits
        far("student", model(input_ids=ids).logits, of_plain)
        with kept.swapped():
            far("teacher", model(input_ids=ids).logits, of_other)
        far("again", model(input_ids=ids).logits, of_plain)
    loss = loss_of(model(input_ids=ids).logits, ids)
    with torch.no_grad(), kept.swapped():
        far("between", model(input_ids=ids).logits, of_other)
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    count = dist.get_world_size()
    all_rows = [rows(i) for i in range(count)]
    losses = [loss_of(plain(input_ids=x).logits, x) for x in all_rows]
    (sum(losses) / count).backward()  # FSDP2 averages over processes
    torch.optim.SGD(plain.parameters(), lr=0.5).step()
    found["moved"] = max((w - v).abs().max().item() for w, v in pairs(plain, build()))
    for a, b in pairs(model, plain):
        far("update", a, b)
    return found


def pairs(a: Any, b: Any) -> list[tuple[Tensor, Tensor]]:
    one, other = whole(a), whole(b)
    return [(one[n], other[n]) for n in one]


def averages(drops: bool, folder: Path) -> dict[str, Any]:
    """A moving average of parts, against that of the whole; saved and loaded."""
    model, plain = build(), build()
    kept = KeptWeights(model, "teacher", torch.float32)
    sharded(model, drops)
    average = {n: w.double() for n, w in whole(plain).items()}
    for rate in RATES:
        updated(model)
        kept.follow(rate)
        updated(plain)
        average = {n: (1 - rate) * average[n] + rate * w for n, w in whole(plain).items()}
    with kept.swapped():
        seen = whole(model)
    other = KeptWeights(sharded(build(3), drops), "teacher", torch.float32)
    kept.save(folder, main=dist.get_rank() == 0)
    dist.barrier()
    other.load(folder)
    frozen, unmoved, of_another = (
        KeptWeights(sharded(build(seed), drops), "frozen") for seed in (0, 0, 3)
    )
    frozen.save(folder, main=dist.get_rank() == 0)
    dist.barrier()
    unmoved.load(folder)
    return {
        "apart": max((seen[n] - average[n]).abs().max().item() for n in average),
        "moved": max((average[n] - w).abs().max().item() for n, w in whole(build()).items()),
        "parts": {n: w.clone() for n, w in kept.weights.items()},
        "loaded": {n: w.clone() for n, w in other.weights.items()},
        "refused": refused(of_another, folder),
        "elsewhere": refused(KeptWeights(build(), "teacher"), folder),
    }


def refused(kept: KeptWeights, folder: Path) -> str:
    try:
        kept.load(folder)
    except UserError as error:
        return str(error)
    return ""


def main(folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    for case in cases:
        (folder / case).mkdir(exist_ok=True)
        drops = case == "drops"
        found[case] = {**forwards(drops), **averages(drops, folder / case)}
    torch.save(found, folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
