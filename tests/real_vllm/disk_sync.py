"""For a server on a CPU: weights as a file, which it reads again. TRL's way needs NCCL."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from trl.generation.vllm_client import VLLMClient


def replacements(model: Path, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """What takes the place of methods of TRL's client, by name.

    Args:
        model: a folder like the server's own model, whose weights are written anew at each sync.
        requests: to which every request for completions is added.
    """
    stock_post = VLLMClient._post

    def update(self: Any, metadata: Any, named: Any) -> None:
        tensors = {name: p.detach().clone().contiguous() for name, p in named}
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(model)}}
        stock_post(self, f"{self.base_url}/collective_rpc", json=call)

    def post(self: Any, url: str, **kwargs: Any) -> Any:
        if url.endswith("/v1/completions"):
            requests.append(kwargs["json"])
        return stock_post(self, url, **kwargs)

    return {
        "init_communicator": lambda self, device=0: None,
        "update_named_params": update,
        "_post": post,
    }
