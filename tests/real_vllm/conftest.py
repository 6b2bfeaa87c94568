"""How vLLM runs in these tests; a process reads it as it imports vLLM, and others inherit it."""

import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parent / "plugin"

if find_spec("vllm") is not None:
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # TRL has no key for enforce_eager; this leaves out inductor alone.
        "VLLM_CPU_CI_ENV": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model with heads of 32, the smallest that vLLM's attention takes on a CPU."""
    from tiny import make_model, make_tokenizer

    folder = str(tmp_path_factory.mktemp("model"))
    make_model(make_tokenizer(), hidden=64).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def engines() -> dict[int, Any]:
    """The engines of this process by context length."""
    return {}


@pytest.fixture
def one_engine(monkeypatch: pytest.MonkeyPatch, engines: dict[int, Any]) -> None:
    """Have trainers of one context length share an engine, whose start takes longer than a run."""
    import torch
    from trl.generation import vllm_generation

    real = vllm_generation.LLM

    def engine(**settings: Any) -> Any:
        length = settings["max_model_len"]
        if length not in engines:
            with warnings.catch_warnings():  # it looks through torch for kernels, old names too
                warnings.simplefilter("ignore")
                engines[length] = real(**settings | {"max_num_seqs": 64}, enforce_eager=True)
            assert torch.initial_seed() == 0  # it seeds the process with the process's number
        return engines[length]

    monkeypatch.setattr(vllm_generation, "LLM", engine)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling outlasts all steps here
