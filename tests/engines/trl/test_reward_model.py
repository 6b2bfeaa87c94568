"""A reward model of our own: against TRL's, against plain loops, and what padding may not do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Qwen3ForSequenceClassification, Qwen3ForTokenClassification
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from prefix_rft.data.render import Renderer
from prefix_rft.engines.trl.pair_trainer import PairTrainer
from prefix_rft.engines.trl.reward_model import LearntReward, load_reward_model
from prefix_rft.recipe.reward_options import RewardLearning
from prefix_rft.support.errors import UserError
from tiny import NO_RECOMPUTE, make_chat_tokenizer, make_model, make_tokenizer

PAIRS = [
    ([5, 6, 7, 8, 1], [5, 6, 9, 1]),
    ([4, 10, 11, 1], [4, 10, 12, 13, 14, 1]),
    ([7, 1], [7, 8, 1]),
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trainer_of(kind: Any, model: Any, folder: Path, **more: Any) -> Any:
    columns = {"chosen_ids": [a for a, _ in PAIRS], "rejected_ids": [b for _, b in PAIRS]}
    config = RewardConfig(
        str(folder), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, **NO_RECOMPUTE,
        **more.pop("config", {}),
    )  # fmt: skip
    rows = Dataset.from_dict(columns)
    rest = {"train_dataset": rows, "processing_class": make_tokenizer()}
    return kind(**more, model=model, args=config, **rest)


def batch(pad: int = 0) -> dict[str, Any]:
    rows = [{"chosen_ids": a, "rejected_ids": b} for a, b in PAIRS]
    return DataCollatorForPreference(pad_token_id=pad)(rows)


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for n, p in model.named_parameters() if n != "score.bias"])


@pytest.mark.parametrize("center", [0.0, 0.05])
def test_the_last_token_is_trl_s_reward_trainer(base: Path, tmp_path: Path, center: float) -> None:
    torch.manual_seed(0)
    theirs = Qwen3ForSequenceClassification.from_pretrained(base, num_labels=1)
    ours = load_reward_model(str(base), make_tokenizer(), tmp_path)
    ours.load_state_dict({**theirs.state_dict(), "score.bias": torch.zeros(1)})
    config = {"center_rewards_coefficient": center}
    reference = trainer_of(RewardTrainer, theirs, tmp_path / "a", config=config)
    options = RewardLearning(regulariser=center)
    trainer = trainer_of(PairTrainer, ours, tmp_path / "b", options=options)
    expected = reference.compute_loss(theirs, batch())
    found = trainer.compute_loss(ours, batch())
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(
        gradients(ours, found), gradients(theirs, expected), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("loss", ["logistic", "difference"])
def test_all_tokens_against_a_loop_without_padding(base: Path, tmp_path: Path, loss: str) -> None:
    torch.manual_seed(0)
    model = load_reward_model(str(base), make_tokenizer(), tmp_path)
    options = RewardLearning(level="tokens", loss=loss)
    found = trainer_of(PairTrainer, model, tmp_path / "a", options=options).compute_loss(
        model, batch()
    )
    total = torch.zeros(())
    for chosen, rejected in PAIRS:
        values = [model(input_ids=torch.tensor([x])).logits[0, :, 0] for x in (chosen, rejected)]
        length = max(map(len, (chosen, rejected)))
        first = next(i for i in range(length) if chosen[i : i + 1] != rejected[i : i + 1])
        each = []
        for i in range(first, length):
            a, b = (v[min(i, len(v) - 1)] for v in values)  # the last one stays
            each.append(-torch.sigmoid(a - b).log() if loss == "logistic" else b - a)
        total = total + torch.stack(each).mean()
    assert found.item() == pytest.approx(total.item() / len(PAIRS), rel=1e-5)


def test_padding_decides_nothing_even_where_it_is_the_eos(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load_reward_model(str(base), make_tokenizer(), tmp_path)
    trainer = trainer_of(PairTrainer, model, tmp_path / "a", options=RewardLearning())
    losses = [trainer.compute_loss(model, batch(pad)).item() for pad in (0, 1)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_what_it_says_is_read_at_the_last_token_of_the_very_ids(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = load_reward_model(str(base), tokenizer, tmp_path)
    render, reward = Renderer(tokenizer), LearntReward({})
    with pytest.raises(RuntimeError, match="not been learnt yet"):
        reward(prompts=["1+1"], completions=["2"], completion_ids=[[5, 1]])
    reward.become(model, render, batch_size=2)
    prompts, ids = ["1+1", "23-7:", "4"], [[5, 1], [6, 7, 8, 1], [9, 10]]
    found = reward(prompts=prompts, completions=["", "", ""], completion_ids=ids, answer=["x"] * 3)
    for prompt, completion, value in zip(prompts, ids, found, strict=True):
        whole = torch.tensor([[*render.prompt(prompt), *completion]])
        with torch.no_grad():
            assert value == pytest.approx(model(input_ids=whole).logits[0, -1, 0].item(), abs=1e-6)
    assert len({round(x, 4) for x in found}) == 3


def test_a_reward_model_of_another_vocabulary_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another vocabulary than the policy"):
        load_reward_model(str(base), make_chat_tokenizer(), tmp_path)


def test_its_head_is_saved_with_it(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load_reward_model(str(base), make_tokenizer(), tmp_path)
    assert isinstance(model, Qwen3ForTokenClassification)
    model.save_pretrained(tmp_path / "reward")
    make_tokenizer().save_pretrained(tmp_path / "reward")
    again = load_reward_model(str(tmp_path / "reward"), make_tokenizer(), tmp_path)
    assert torch.equal(again.score.weight, model.score.weight)
