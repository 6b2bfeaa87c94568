"""The command has OpenMP's threads sleep while they wait, from before torch is loaded."""

import os
import subprocess
import sys

import pytest

from prefix_rft.cli import WAITING, have_threads_sleep

PROBE = """
import os, sys
from importlib.abc import MetaPathFinder
from prefix_rft.cli import main

class Listen(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("at import:", os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)  # nothing more is to be seen

sys.meta_path.insert(0, Listen())
assert "torch" not in sys.modules
main(["methods", "grpo"])
"""


@pytest.mark.parametrize(
    ("given", "told"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")]
)
def test_before_torch_is_loaded(given: dict[str, str], told: str) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in WAITING}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=clean | given, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"at import: {told}\n"


@pytest.mark.parametrize("name", WAITING)
def test_what_a_user_says_stays(name: str) -> None:
    environment = {name: "1"}
    have_threads_sleep(environment)
    assert environment == {name: "1"}
