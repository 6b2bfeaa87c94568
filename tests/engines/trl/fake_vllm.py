"""An engine with the interface that TRL's trainer has to vLLM, where no vLLM is installed."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl.trainer.grpo_trainer

from prefix_rft.engines.sampling import SamplingSettings, sample


class FakeVLLM:
    """In place of TRL's ``VLLMGeneration``: ids in, ids and noisy log-probs out.

    A server keeps one prompt in ``num_generations``, samples that many from it, and refuses what
    its context has no room for. A colocated engine samples one continuation of each prompt, and has
    seeded the process with its own number.
    """

    limit = 1000
    dtype = torch.float32
    noise = 0.01

    def __init__(
        self,
        model: Any,
        mode: str,
        max_completion_length: int,
        tensor_parallel_size: int,
        processing_class: Any,
        **settings: Any,
    ) -> None:
        self.model, self.mode = model, mode
        self.max_completion_length = max_completion_length
        self.tensor_parallel_size = tensor_parallel_size
        tokenizer = processing_class
        self.settings = SamplingSettings((tokenizer.eos_token_id,), tokenizer.pad_token_id)
        self.contexts: list[list[list[int]]] = []
        self.sampled: list[list[list[int]]] = []
        self.asked: list[tuple[int, int]] = []
        self.synchronised = 0
        if mode == "colocate":
            random.seed(0)
            torch.manual_seed(0)
            config = SimpleNamespace(dtype=self.dtype)
            self.llm = SimpleNamespace(llm_engine=SimpleNamespace(model_config=config))
        else:
            told = {"max_model_len": self.limit, "dtype": str(self.dtype)}
            told["logprobs_mode"] = "processed_logprobs"
            self.vllm_client = SimpleNamespace(get_server_info=lambda: {"model_config": told})

    def sync_weights(self) -> None:
        self.synchronised += 1

    def generate(
        self, prompts: Any, images: Any, num_generations: int, profiler: Any = None
    ) -> Any:
        n = num_generations if self.mode == "server" else 1
        budget = self.max_completion_length
        contexts = [p for p in prompts[::n] for _ in range(n)]
        if self.mode == "server":
            assert max(map(len, contexts)) + budget <= self.limit, "HTTP 400"
        training = self.model.training
        self.model.eval()
        ids = sample(self.model, contexts, [budget] * len(contexts), self.settings)
        logps = [self.score(c, i) for c, i in zip(contexts, ids, strict=True)]
        self.model.train(training)
        self.contexts.append(contexts)
        self.sampled.append(ids)
        self.asked.append((num_generations, budget))
        return prompts, ids, logps, None

    @torch.no_grad()
    def score(self, context: list[int], ids: list[int]) -> list[list[float]]:
        table = self.model(input_ids=torch.tensor([context + ids])).logits[0].log_softmax(-1)
        picked = table[len(context) - 1 : -1][range(len(ids)), ids]
        return [[x + self.noise * torch.randn(()).item()] for x in picked.tolist()]


def put_in_place(monkeypatch: pytest.MonkeyPatch, **qualities: Any) -> None:
    """Have TRL's trainer start this engine.

    Args:
        monkeypatch: puts things back.
        qualities: of the engine, in place of the attributes of the class.
    """
    engine = type("FakeVLLM", (FakeVLLM,), qualities)
    monkeypatch.setattr(trl.trainer.grpo_trainer, "VLLMGeneration", engine)
