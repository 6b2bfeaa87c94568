"""A script of the tests in two gloo processes at once."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
Ranks = tuple[Path, list[dict[str, Any]]]


def launch(script: str, folder: Path, cases: Sequence[str]) -> Ranks:
    """What each of two processes found, of all these cases in one launch of a script beside us."""
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # As torchrun starts them, without the seconds that it takes for itself.
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / script), str(folder), *cases],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        said = [process.communicate(timeout=800)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, words in zip(processes, said, strict=True):
        assert process.returncode == 0, words[-4000:]
    return folder, [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
