"""Where the tests of this folder run: on the accelerator, or where PREFIX_RFT_DEVICE says."""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    """``cuda``, or what PREFIX_RFT_DEVICE names."""
    wanted = os.environ.get("PREFIX_RFT_DEVICE", "cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU; PREFIX_RFT_DEVICE=cpu runs this on the CPU")
    return wanted
