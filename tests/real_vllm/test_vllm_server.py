"""A real vLLM server over loopback, whose weights go over the disk: TRL's way needs NCCL."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

pytest.importorskip("vllm")

import torch
from disk_sync import replacements
from trl.generation.vllm_client import VLLMClient
from vllm_runs import BUDGET, colocated, distance, launch

from prefix_rft.support.errors import UserError
from tiny import make_rows, make_tokenizer

EXACT = 1e-5


def needed() -> int:
    """Tokens of the longest prompt with all but the last token of its demonstration, and BUDGET."""
    tokenizer, rows = make_tokenizer(), make_rows()
    return BUDGET + max(
        # EOS is behind a demonstration, so its characters are as many as a prefix may have.
        len(tokenizer(row["prompt"])["input_ids"]) + len(row["demonstration"])
        for row in rows
    )


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def address(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with just as much room as Prefix-RFT needs on these rows."""
    log, port = tmp_path_factory.mktemp("server") / "log.txt", free_port()
    words = ["serve", model_folder, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    words += ["--max-model-len", str(needed()), "--logprobs-mode", "processed_logprobs"]
    words += ["--weight-transfer-config", '{"backend": "nccl"}']
    with (
        log.open("w") as out,
        subprocess.Popen(
            [str(Path(sys.executable).parent / "vllm"), *words],
            env=os.environ | {"VLLM_SERVER_DEV_MODE": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        ) as server,
    ):
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                assert server.poll() is None, log.read_text()[-4000:]
                try:
                    with urlopen(f"{url}/health", timeout=5):  # noqa: S310  (our own)
                        break
                except (URLError, OSError):
                    time.sleep(1)
            else:
                pytest.fail(log.read_text()[-4000:])
            yield url
        finally:
            server.terminate()


@pytest.fixture
def over_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model_folder: str
) -> list[dict[str, Any]]:
    """Send weights as a file, and hear what is asked of the server."""
    shutil.copytree(model_folder, tmp_path / "synced")
    requests: list[dict[str, Any]] = []
    for name, method in replacements(tmp_path / "synced", requests).items():
        monkeypatch.setattr(VLLMClient, name, method)
    return requests


def served(folder: Path, model: str, address: str, **settings: Any) -> Any:
    """The same trainer as beside a colocated engine, which asks a server."""
    where = {"vllm_mode": "server", "vllm_server_base_url": address, "vllm_server_timeout": 30.0}
    return colocated(folder, model, None, **where | settings)


@pytest.mark.parametrize(
    ("method", "contexts", "n"),
    [("prefix_rft", [16] * 4, 1), ("dr_grpo", [2] * 4, 8), ("luffy", [14] * 4, 1)],
)
def test_rows_and_weights(
    tmp_path: Path,
    model_folder: str,
    address: str,
    over_the_disk: list[dict[str, Any]],
    method: str,
    contexts: list[int],
    n: int,
) -> None:
    run = served(tmp_path / "run", model_folder, address, method=method, max_steps=4)
    run.trainer.train()
    assert [len(asked["prompt"]) for asked in over_the_disk] == contexts
    assert {asked["n"] for asked in over_the_disk} == {n}
    assert [distance(rows) <= EXACT for _, rows in run.made] == [True] * 4
    tokenizer = make_tokenizer()
    for inputs, rows in run.made:
        for i, example in enumerate(inputs):
            known = int((rows["prefix_mask"] | rows["demo_mask"])[i].sum())
            ids = rows["completion_ids"][i][:known].tolist()
            assert ids == [*tokenizer(example["demonstration"])["input_ids"], 1][:known]
            assert (known > 0) == (method != "dr_grpo" and i % 8 == 0)


def test_a_server_with_too_little_room_is_refused_before_the_first_step(
    tmp_path: Path, model_folder: str, address: str, over_the_disk: list[dict[str, Any]]
) -> None:
    room, more = needed(), BUDGET + 1
    words = f"takes {room} tokens, but {room + 1} are needed, {room - BUDGET} of the longest .* "
    with pytest.raises(UserError, match=f"{words}--max-model-len {room + 1}, or lower"):
        served(tmp_path, model_folder, address, max_completion_length=more)
    # Without prefixes that is enough.
    run = served(
        tmp_path, model_folder, address, max_completion_length=more, method="dr_grpo", max_steps=1
    )
    run.trainer.train()
    assert len(over_the_disk) == 1


def test_a_server_that_is_not_there(tmp_path: Path, model_folder: str) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=f"no vLLM server answers at {address} within 0 seconds: "):
        served(tmp_path, model_folder, address, vllm_server_timeout=0.0)


@pytest.mark.slow
def test_two_processes_share_a_server(tmp_path: Path, model_folder: str, address: str) -> None:
    """It takes as many rows of each: one that lacks fewer fills up with rows that are done."""
    shutil.copytree(model_folder, tmp_path / "synced")
    first, second = launch(tmp_path, model_folder, "dapo", address)
    # What was asked for is what came back to each, in as many calls.
    assert first["sent"] == second["sent"]
    assert len(first["sent"]) > 3
    # The second one's group fails whatever is drawn, and is asked for three times more.
    assert first["lacking"] == [8, 0, 0, 0] * 3
    assert second["lacking"] == [8, 8, 8, 8] * 3
    most = [max(x) for x in zip(first["lacking"], second["lacking"], strict=True)]
    assert first["sent"] == [n for n in most if n]
    for rank in (first, second):
        assert max(rank["distances"]) <= EXACT
    for a, b in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(a, b)
