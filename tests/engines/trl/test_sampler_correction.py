"""Tokens are weighed by what the trainer gives them over what the sampler gave them."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefix_rft import PrefixRFTTrainer
from prefix_rft.core import Batch
from prefix_rft.engines.trl.rollout import scores
from prefix_rft.engines.trl.rollout.sampler import check_sampler
from prefix_rft.engines.trl.update.correction import Correction
from prefix_rft.methods import load
from prefix_rft.support.errors import UserError
from second.step.trl_run import Recorder, make_rewards, start
from second.step.update import relative_error

NAN = math.nan
NAME = "sampling/importance_sampling_ratio"


def batch(old: list[float] | None) -> Batch:
    """A hybrid row with one token of prefix, and a row that ends early."""
    true_2, old_2 = [True, True, True], None if old is None else torch.tensor([old, old])
    return Batch(
        tokens_BT=torch.tensor([[5, 6, 7], [5, 6, 0]]),
        response_mask_BT=torch.tensor([true_2, [True, True, False]]),
        prefix_mask_BT=torch.tensor([[True, False, False], [False] * 3]),
        demo_mask_BT=torch.zeros(2, 3, dtype=torch.bool),
        old_logp_BT=old_2,
        reward_B=torch.ones(2),
        group_B=torch.zeros(2, dtype=torch.long),
    )


def test_weights_by_hand() -> None:
    logs = [[0.1, 0.2, 0.1], [0.4, 0.5, 0.5], [0.3] * 3]  # of rows that lie elsewhere in the step
    sampler_BT = torch.tensor(logs).log()
    sampler_BT[1, 1] = NAN
    logp_BT = torch.tensor([[0.8, 0.5, 0.4], [0.2, 0.5, 0.5]]).log()
    # The prefix 1; .5 / .2 = 2.5; .4 / .1 = 4, bounded. The other row .2 / .3 = 2/3, .5 / .3 = 5/3.
    found, drawn_BT = Correction(sampler_BT, 3.0).of(batch(None), logp_BT, torch.tensor([0, 2]))
    wanted = torch.tensor([[1, 2.5, 3.0], [2 / 3, 5 / 3, 1]])
    assert torch.allclose(found.weight_BT, wanted)  # type: ignore[arg-type]
    assert drawn_BT.tolist() == [[False, True, True], [True, True, False]]
    # What the sampler does not know is not corrected.
    found, drawn_BT = Correction(sampler_BT, 3.0).of(batch(None), logp_BT, torch.tensor([0, 1]))
    assert torch.allclose(found.weight_BT[1], torch.tensor([0.5, 1, 1]))  # type: ignore[index]
    assert drawn_BT[1].tolist() == [True, False, False]


def test_a_policy_that_has_moved_is_not_the_one_that_sampled() -> None:
    correction = Correction(torch.full((2, 3), 0.2).log(), 9.0)
    old = torch.tensor([0.4, 0.6, 0.8]).log().tolist()
    found, _ = correction.of(batch(old), torch.full((2, 3), 0.1).log())
    assert torch.allclose(found.weight_BT[0], torch.tensor([1.0, 3.0, 4.0]))  # type: ignore[index]


def run(folder: Path, method: str, **more: Any) -> tuple[Any, Recorder]:
    rows = make_rewards(("mixed",) * 8)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "max_steps": 1,
        **more,
    }
    trainer, recorder = start(PrefixRFTTrainer, folder, method, rows, **settings)
    trainer.train()
    return trainer, recorder


@pytest.mark.parametrize("savings", ["all", ["sampler_scores"]])
@pytest.mark.parametrize("passes", [1, 2])
def test_the_gradient_has_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, savings: Any, passes: int
) -> None:
    """A sampler that says half of the probabilities it has: every weight is 2, or its bound."""
    more = {"savings": savings, "num_iterations": passes, "max_steps": passes}
    _, plain = run(tmp_path / "plain", "dr_grpo", learning_rate=0.0, **more)
    original = scores.score_columns

    def halved(*args: Any) -> Any:
        columns = original(*args)
        return {**columns, "policy_logp": columns["policy_logp"] - math.log(2.0)}

    monkeypatch.setattr("prefix_rft.engines.trl.rollout.generation.score_columns", halved)
    for most, weight in ((1.5, 1.5), (8.0, 2.0)):
        folder = tmp_path / str(most)
        trainer, found = run(folder, "dr_grpo", learning_rate=0.0, sampler_correction=most, **more)
        for one, other in zip(found.records, plain.records, strict=True):
            assert relative_error(one.gradient, [weight * g for g in other.gradient]) < 1e-5
        line = trainer.state.log_history[0]
        for end in ("mean", "min", "max"):
            assert line[f"{NAME}/{end}"] == pytest.approx(weight, abs=1e-4)


def test_nothing_is_corrected_unless_asked(tmp_path: Path) -> None:
    trainer, _ = run(tmp_path, "prefix_rft")
    assert not any(NAME in line for line in trainer.state.log_history)


@pytest.mark.parametrize(
    ("method", "more", "words"),
    [
        ("dr_grpo", {"fast_generation": False}, "without our own sampler"),
        ("dr_grpo", {"savings": ["packing"]}, "without sampler_scores among savings"),
    ],
)
def test_a_correction_without_effect_is_refused(
    tmp_path: Path, method: str, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=f"sampler_correction=2.0 has no effect {words}"):
        run(tmp_path, method, sampler_correction=2.0, **more)


def test_other_samplers() -> None:
    args: Any = SimpleNamespace(
        sampler_correction=2.0,
        use_vllm=True,
        use_transformers_continuous_batching=False,
        savings=["sampler_scores"],
    )
    with pytest.raises(UserError, match="with use_vllm: set vllm_importance_sampling_correction"):
        check_sampler(args, load("prefix_rft"), ours=False, sharded=False)
    args.use_vllm = False
    check_sampler(args, load("prefix_rft"), ours=True, sharded=False)
    with pytest.raises(UserError, match="with 'irft', which samples from its reference policy"):
        check_sampler(args, load("irft"), ours=True, sharded=False)
    with pytest.raises(UserError, match="needs the plain transformers backend"):
        check_sampler(args, load("irft"), ours=False, sharded=True)
