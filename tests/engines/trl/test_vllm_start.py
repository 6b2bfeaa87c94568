"""What is asked of a vLLM engine at the start, and which rows are sent to it."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl.trainer.grpo_trainer
from fake_vllm import put_in_place

from prefix_rft import PrefixRFTTrainer
from prefix_rft.engines.plan import RowPlan
from prefix_rft.engines.trl.rollout.backend import Backend
from prefix_rft.engines.trl.rollout.sampler import BackendRequest
from prefix_rft.support.errors import UserError
from tiny import make_config, make_model, make_rows, make_tokenizer, shaped_reward


def start(folder: Path, mode: str, stream: bool = False, **settings: Any) -> PrefixRFTTrainer:
    rows: Any = make_rows()
    defaults = {"max_steps": 2, "use_vllm": True, "vllm_mode": mode}
    return PrefixRFTTrainer(
        make_model(make_tokenizer()),
        shaped_reward,
        make_config(folder, **defaults | settings),
        train_dataset=rows.to_iterable_dataset() if stream else rows,
        processing_class=make_tokenizer(),
    )


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_runs_of_other_seeds_draw_other_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """A colocated engine seeds the process with 0."""
    put_in_place(monkeypatch)
    drawn = []
    for seed in (3, 4, 3):
        start(tmp_path, mode, seed=seed)
        assert torch.initial_seed() == seed
        drawn.append((random.random(), torch.rand(()).item()))
    assert drawn[0] == drawn[2]
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


@pytest.mark.parametrize(("index", "shared", "seed"), [(0, 1, 3), (3, 1, 6), (3, 2, 4), (2, 2, 4)])
def test_processes_that_share_an_engine_share_a_seed(index: int, shared: int, seed: int) -> None:
    config = SimpleNamespace(dtype=torch.bfloat16)
    llm = SimpleNamespace(llm_engine=SimpleNamespace(model_config=config))
    engine = SimpleNamespace(mode="colocate", tensor_parallel_size=shared, llm=llm)
    args = SimpleNamespace(seed=3, max_completion_length=24)
    processes: Any = SimpleNamespace(index=index)
    backend = Backend.ready(engine, args, processes)
    assert torch.initial_seed() == seed
    assert backend.dtype == "bfloat16"
    assert backend.together == (shared > 1)


# ---- a server's context ------------------------------------------------------------------------


def room_of(rows: Any) -> int:
    """Characters are tokens here, and EOS is no part of a prefix."""
    return max(len(row["prompt"]) + len(row["demonstration"]) for row in rows)


def test_a_server_needs_room_for_prompt_prefix_and_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no less: where just that much room is, the longest row may be sent."""
    longest = room_of(make_rows())
    put_in_place(monkeypatch, limit=longest + 24 - 1)
    words = f"takes {longest + 23} tokens, but {longest + 24} are needed, {longest} of the longest"
    with pytest.raises(UserError, match=f"{words} .*--max-model-len {longest + 24}, or lower"):
        start(tmp_path, "server")
    start(tmp_path, "colocate")  # which has no limit of this kind
    put_in_place(monkeypatch, limit=longest + 24)
    start(tmp_path, "server").train()


def test_without_prefixes_a_server_needs_less_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(monkeypatch, limit=10 + 24)
    start(tmp_path, "server", method="dr_grpo").train()
    put_in_place(monkeypatch, limit=10 + 24 - 1)
    with pytest.raises(UserError, match="takes 33 tokens, but 34 are needed, 10 of the longest"):
        start(tmp_path, "server", method="dr_grpo")


def test_rows_of_a_stream_are_looked_at_before_they_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(monkeypatch, limit=10 + 24)
    trainer = start(tmp_path, "server", stream=True)
    with pytest.raises(UserError, match=r"the vLLM server takes 34 tokens, but [3-5]\d are needed"):
        trainer.train()
    assert not getattr(trainer, "vllm_generation").contexts  # noqa: B009  (TRL sets it)


# That of requests, which TRL raises, is none of Python's.
@pytest.mark.parametrize("error", [ConnectionError, type("ConnectionError", (OSError,), {})])
def test_a_server_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def unreached(**kwargs: Any) -> None:
        raise error("can't be reached")

    monkeypatch.setattr(trl.trainer.grpo_trainer, "VLLMGeneration", unreached)
    told = "no vLLM server answers at http://127.0.0.1:8000 within 5 seconds: start it with"
    with pytest.raises(UserError, match=told):
        start(tmp_path, "server", vllm_server_host="127.0.0.1", vllm_server_timeout=5.0)
    told = "answers at http://there:1 within"
    with pytest.raises(UserError, match=told):
        start(tmp_path, "server", vllm_server_base_url="http://there:1")
    with pytest.raises(error, match="can't be reached"):  # no server is asked for
        start(tmp_path, "colocate")


def test_other_errors_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**kwargs: Any) -> None:
        raise FileNotFoundError("no such model")

    monkeypatch.setattr(trl.trainer.grpo_trainer, "VLLMGeneration", broken)
    with pytest.raises(FileNotFoundError, match="no such model"):
        start(tmp_path, "server")


# ---- how close the sampler is to be --------------------------------------------------------------

GAP = "sampling/sampling_logp_difference/mean"


@pytest.mark.parametrize(
    ("dtype", "settings", "bound"),
    [
        (torch.float32, {}, 1e-3),
        (torch.bfloat16, {}, 0.1),
        (torch.float32, {"bf16": True}, 0.1),
    ],
)
def test_the_bound_of_a_stale_sampler_is_that_of_the_precision(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    settings: dict[str, Any],
    bound: float,
) -> None:
    put_in_place(monkeypatch, dtype=dtype)
    trainer = start(tmp_path, "server", tripwire_steps=1, **settings)
    line = {"loss": 0.1}
    assert not trainer.tripwires.observe({**line, GAP: 0.99 * bound}, 1)
    ((action, words),) = trainer.tripwires.observe({**line, GAP: bound}, 1)
    assert action == "warn"
    assert f"sampler and trainer were {bound:g} nats a token apart" in words


def test_a_policy_in_16_bits_has_the_wider_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(monkeypatch)
    trainer = PrefixRFTTrainer(
        make_model(make_tokenizer()).to(torch.bfloat16),
        shaped_reward,
        make_config(tmp_path, use_vllm=True, vllm_mode="server", tripwire_steps=1),
        train_dataset=make_rows(),
        processing_class=make_tokenizer(),
    )
    assert not trainer.tripwires.observe({"loss": 0.1, GAP: 0.05}, 1)


# ---- which rows are sent -------------------------------------------------------------------------

OPEN, DONE = RowPlan(0, 0, 0), RowPlan(0, 0, 1, kept=(5, 6))
BEHIND = RowPlan(0, 0, 2, prefix=(7, 8, 9))


def request(plans: list[RowPlan], others: list[tuple[int, int, int]], **how: Any) -> Any:
    """What the first process asks for, where the others lack so many rows, and so many tokens."""
    processes: Any = SimpleNamespace(gather_list=lambda own: own + others)
    settings = {"branches": False, "together": False} | how
    prompts = [[i] for i in range(len(plans))]
    return BackendRequest.of(prompts, plans, 10, processes=processes, **settings)


def test_only_rows_that_lack_something_are_sent() -> None:
    one = request([DONE, BEHIND, OPEN], [])
    assert (one.rows, one.contexts, one.single, one.budget) == (
        [1, 2],
        [[1, 7, 8, 9], [2]],
        True,
        10,
    )
    assert one.placed(["a", "b"]) == [[], "a", "b"]
    one = request([DONE, BEHIND], [])
    assert (one.rows, one.contexts, one.budget) == ([1], [[1, 7, 8, 9]], 7)
    assert request([DONE, DONE], []) is None


def test_whole_groups_that_begin_alike_are_sent_as_before() -> None:
    one = request([OPEN, OPEN], [(2, 2, 10)])
    assert (one.rows, one.single, one.budget) == ([0, 1], False, 10)
    assert request([OPEN, OPEN], [(2, 2, 10)], branches=True).single
    # Another process has a row that is done: all must ask for single ones.
    assert request([OPEN, OPEN], [(1, 2, 10)]).single


def test_who_lacks_nothing_takes_part_where_others_do() -> None:
    """Weights that are sharded are sent by all processes together."""
    one = request([DONE, DONE], [(2, 2, 9)])
    assert (one.rows, one.contexts, one.budget) == ([0], [[0]], 1)
    assert request([DONE, DONE], [(0, 2, 0)]) is None


def test_an_engine_of_several_processes_gets_as_many_rows_of_each() -> None:
    one = request([DONE, BEHIND, DONE, DONE], [(3, 4, 9)], together=True)
    assert (one.rows, one.contexts) == ([0, 1, 2], [[0], [1, 7, 8, 9], [2]])
    assert one.budget == 9  # one number for all, or the longest would be cut short
    assert one.placed(["a", "b", "c"]) == ["a", "b", "c", []]


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_nothing_is_drawn_beyond_what_the_neediest_row_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    put_in_place(monkeypatch)
    trainer: Any = start(tmp_path, mode, method_options={"num_hybrid": 8})
    trainer.train()
    engine = trainer.vllm_generation
    for contexts, (_, budget) in zip(engine.contexts, engine.asked, strict=True):
        prefixes = [len(context) - 10 for context in contexts]
        assert budget == 24 - min(prefixes) < 24
    assert engine.max_completion_length == 24


def test_a_generation_that_lacks_nothing_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ReLIFT's second step is of the demonstrations of prompts that failed in the first."""
    put_in_place(monkeypatch)
    trainer: Any = PrefixRFTTrainer(
        make_model(make_tokenizer()),
        lambda completions, **kwargs: [0.0] * len(completions),
        make_config(
            tmp_path,
            method="relift",
            method_options={"sft_prompts": 2},
            use_vllm=True,
            vllm_mode="colocate",
            max_steps=3,
        ),
        train_dataset=make_rows(),
        processing_class=make_tokenizer(),
    )
    counts: list[float] = []
    draw = trainer.tokens.draw
    trainer.tokens.draw = lambda *a: (draw(*a), counts.append(trainer.tokens.sums["sampled"]))[0]
    trainer.train()
    engine = trainer.vllm_generation
    assert [len(x) for x in engine.contexts] == [16, 16]
    assert counts[1] == 0 < min(counts[0], counts[2])
    assert engine.synchronised == 2
