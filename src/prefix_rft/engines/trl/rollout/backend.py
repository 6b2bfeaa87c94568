"""What TRL samples with where our own sampler does not serve, and what TRL leaves open about vLLM.

That is the seed of the process, a server's context limit, and how close log-probs are to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import set_seed

from prefix_rft.engines.plan import RowPlan
from prefix_rft.engines.trl.pictures import chosen
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.rollout.sampler import BackendRequest, one_generation_each
from prefix_rft.support.errors import UserError

Drawn = tuple[list[list[int]], list[list[Any]] | None]
"""Token ids of each row, and their log-probs where a backend says them."""


@contextmanager
def server_errors(args: Any) -> Iterator[None]:
    """Say in one sentence that no server answers, while TRL connects to it.

    Args:
        args: the trainer's configuration.

    Raises:
        UserError: there is no server.
    """
    try:
        yield
    except OSError as error:
        # TRL's is that of requests, which is there only where vLLM is.
        unreached = "ConnectionError" in {cls.__name__ for cls in type(error).__mro__}
        if not (unreached and args.use_vllm and args.vllm_mode == "server"):
            raise
        address = args.vllm_server_base_url
        address = address or f"http://{args.vllm_server_host}:{args.vllm_server_port}"
        raise UserError(
            f"no vLLM server answers at {address} within {args.vllm_server_timeout:g} seconds: "
            "start it with `vllm serve`, name another with vllm_server_base_url, or set "
            "vllm_mode: colocate"
        ) from error


@dataclass(frozen=True)
class Backend:
    """TRL's way to sample.

    Attributes:
        processes: the run's processes.
        budget: the most tokens of a completion, prefix included.
        generation: TRL's ``VLLMGeneration``; None where transformers samples.
        limit: the most tokens of a context with what is asked for behind it, where the engine
            refuses more; None where it takes all, and cuts what it samples.
        dtype: the name of the type in which an engine computes; None where there is none.
    """

    processes: Processes
    budget: int
    generation: Any = None
    limit: int | None = None
    dtype: str | None = None

    @classmethod
    def ready(cls, generation: Any, args: Any, processes: Processes) -> Backend:
        """Ask an engine what it is, and seed this process again if the engine is in it.

        A colocated engine has seeded the process with its own number, the same in every run.
        Processes that share an engine draw the same tokens, so they get the same seed.

        Args:
            generation: TRL's ``VLLMGeneration``; None where there is none.
            args: the trainer's configuration.
            processes: the run's processes, all of which call this.
        """
        budget = args.max_completion_length
        if generation is None:
            return cls(processes, budget)
        if generation.mode != "server":
            set_seed(args.seed + processes.index // generation.tensor_parallel_size)
            dtype = name_of(generation.llm.llm_engine.model_config.dtype)
            return cls(processes, budget, generation, None, dtype)
        told = []
        if processes.main:  # which alone has a client
            model = generation.vllm_client.get_server_info()["model_config"]
            told = [(int(model["max_model_len"]), name_of(model["dtype"]))]
        return cls(processes, budget, generation, *processes.gather_list(told)[0])

    @property
    def together(self) -> bool:
        """Whether one engine samples for several processes, and wants as many rows of each."""
        engine = self.generation
        return engine is not None and (engine.mode == "server" or engine.tensor_parallel_size > 1)

    def refuse_too_long(self, longest: int, budget: int) -> None:
        """Look whether an engine takes a request, which would end the run otherwise.

        Args:
            longest: tokens of the longest prompt with the prefix behind it.
            budget: tokens that are asked for behind each.

        Raises:
            UserError: it does not.
        """
        needed = longest + budget
        if self.limit is not None and needed > self.limit:
            raise UserError(
                f"the vLLM server takes {self.limit} tokens, but {needed} are needed, {longest} of "
                f"the longest prompt with its prefix and {budget} behind it: start the server with "
                f"--max-model-len {needed}, or lower max_completion_length"
            )

    def in_float32(self, args: Any, model: Any) -> bool:
        """Whether engine and trainer both compute in float32, and so agree to its precision.

        Args:
            args: the trainer's configuration.
            model: the policy.
        """
        dtypes = {self.dtype, name_of(next(model.parameters()).dtype)}
        exact = torch.get_float32_matmul_precision() == "highest"
        return exact and dtypes == {"float32"} and not (args.bf16 or args.fp16)

    def ask(
        self,
        draw: Callable[..., Drawn],
        prompts: Sequence[list[int]],
        plans: Sequence[RowPlan],
        branches: bool,
        images: Any,
        fields: Any,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[list[list[int]], list[list[Any]] | None, list[int]]:
        """What is drawn for the rows that lack something, and which rows were sent for it.

        Args:
            draw: TRL's sampling of contexts, images, fields, and a number of continuations.
            prompts: token ids of each row's prompt.
            plans: the plans of the same rows.
            branches: rows of a group may differ, so that each is sent and not one for all.
            images: each row's pictures; None where no row has any.
            fields: what TRL's processor made of the prompts beside ids and mask.
            args: what else ``draw`` is given, a number of continuations first.
            kwargs: the same by name.

        Returns:
            The ids of each row, their log-probs if there are any, the places of the rows sent.

        Raises:
            UserError: an engine does not take so long a row.
        """
        request = BackendRequest.of(
            prompts, plans, self.budget, branches, self.together, self.processes
        )
        if request is None:
            nothing: list[list[Any]] = [[] for _ in plans]
            return nothing, None if self.generation is None else nothing, []
        self.refuse_too_long(max(map(len, request.contexts)), request.budget)
        if request.single:
            args, kwargs = one_generation_each(args, kwargs)
        pairs = zip(request.rows, request.contexts, strict=True)
        behind = [len(context) - len(prompts[i]) for i, context in pairs]
        pictures = chosen(images, fields, request.rows, behind)
        with self._capped(request.budget):
            ids, logps = draw(request.contexts, *pictures, *args, **kwargs)
        return request.placed(ids), None if logps is None else request.placed(logps), request.rows

    @contextmanager
    def _capped(self, budget: int) -> Iterator[None]:
        """Have no row of a call drawn longer than the one that lacks most.

        TRL gives all rows of a call one ``max_tokens``: behind a longer prefix than the shortest,
        more is drawn than is used.
        """
        engine = self.generation
        if engine is None:
            yield
            return
        before, engine.max_completion_length = engine.max_completion_length, budget
        try:
            yield
        finally:
            engine.max_completion_length = before


def name_of(dtype: Any) -> str:
    """The name of a type, without the word torch before it."""
    return str(dtype).removeprefix("torch.")
