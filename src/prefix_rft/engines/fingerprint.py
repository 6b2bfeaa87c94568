"""Which model a source names, so that what was measured of it is not taken for another's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from prefix_rft.engines.adapters import find_adapter


def fingerprint(source: str) -> dict[str, Any]:
    """A model's source and, of a folder, a hash of its weights, config and tokenizer.

    Of an adapter also those of its base, without which it says nothing.
    """
    adapter = find_adapter(source)
    if adapter is not None:
        revision = {} if adapter.revision is None else {"revision": adapter.revision}
        return {**_of_folder(source), "base": {**_of_folder(adapter.base), **revision}}
    return _of_folder(source)


def _of_folder(source: str) -> dict[str, Any]:
    folder = Path(source)
    if not folder.is_dir():
        return {"source": source}
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja", ".model"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return {"source": source, "sha256": digest.hexdigest()}
