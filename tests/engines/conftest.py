"""What the tests of engines share."""

import datasets
import pytest


@pytest.fixture(autouse=True)
def no_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in memory are cached nowhere: what their fingerprint costs, a step of training does."""

    def update_fingerprint(*args: object) -> str:
        return datasets.fingerprint.generate_random_fingerprint()

    for module in (datasets.arrow_dataset, datasets.fingerprint):
        monkeypatch.setattr(module, "update_fingerprint", update_fingerprint)
