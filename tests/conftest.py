"""Tests run offline, on one thread, and leave nothing outside their temporary folders."""

import functools
import gc
import importlib.metadata
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # what it holds is compared with, not built on

import pytest
import torch

torch.set_num_threads(1)

# What tests write need not outlive the machine.
os.fsync = lambda fd: None

# Every trainer asks a dozen times whether peft is installed, and reads its description each time.
importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)


def pytest_collection_finish() -> None:
    """Every training run collects garbage: let it not go through all that has been imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Datasets made by tests are cached in a folder of their own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf")
