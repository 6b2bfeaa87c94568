"""Hints in prompts: the policy is asked with them, graders and the store do not see them."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trainers import rollout_trainer

from prefix_rft.core.hint import Hint
from prefix_rft.data import tokenize_demonstrations
from prefix_rft.data.render import Renderer
from prefix_rft.engines.trl.rollout.dataset import prompt_lengths
from prefix_rft.engines.verl.method_config import unsupported
from prefix_rft.methods import load
from prefix_rft.runs.rollouts import read_generation
from tiny import make_rows, make_tokenizer, shaped_reward

TEMPLATE = "h:{hint};{prompt}"
SHOWN: dict[str, Any] = {"law": "fixed", "where": "prompt", "template": TEMPLATE, "withdraw": 1.0}


def trained(folder: Path, reward: Any = shaped_reward, **options: Any) -> Any:
    trainer = rollout_trainer(
        folder,
        reward=reward,
        method="control",
        method_options={**SHOWN, **options},
        max_steps=2,
        num_generations=4,
        gradient_accumulation_steps=4,
        log_rollouts=True,
        logging_steps=1,
    )
    trainer.train()
    return trainer


def test_the_policy_is_asked_with_it_and_graders_are_not(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def reward(completions: Any, prompts: Any, answer: Any, **kwargs: Any) -> list[float]:
        asked.extend(zip(prompts, answer, strict=True))
        return shaped_reward(completions, answer)

    trainer = trained(tmp_path, reward, first=0.5, top=1.0, plain=0.5)
    rows = {row["prompt"]: row for row in make_rows(32)}
    assert asked
    assert all(rows[prompt]["answer"] == answer for prompt, answer in asked)
    rollouts = [r for step in (0, 1) for r in read_generation(tmp_path / "rollouts", step)]
    hinted = 0
    for rollout in rollouts:
        assert rollout.prefix_length == 0
        own = rows[rollout.prompt[rollout.prompt.rindex("q:") :]]
        if rollout.hint_length:
            text = own["demonstration"]
            assert rollout.hint_length == (len(text) + 1) // 2  # a token for a character, and EOS
            assert rollout.prompt == f"h:{text[: rollout.hint_length]};{own['prompt']}"
            assert rollout.origin == "hybrid"
            hinted += 1
        else:
            assert rollout.prompt == own["prompt"]
            assert rollout.origin == "on-policy"
        assert len(rollout.prompt_ids) == len(rollout.prompt)
    assert 0 < hinted < len(rollouts)
    logged = [x for x in trainer.state.log_history if "prefix/row_share" in x]
    assert sum(x["prefix/row_share"] for x in logged) * 16 == hinted
    for line, step in zip(logged, (0, 1), strict=True):
        own = [r for r in rollouts if r.step == step and not r.hint_length]
        if own:  # what is said of the policy is said of rows without a hint
            mean = sum(r.reward or 0.0 for r in own) / len(own)
            assert line["policy/reward"] == pytest.approx(mean, rel=1e-5)


def test_all_of_a_demonstration_may_be_shown(tmp_path: Path) -> None:
    trained(tmp_path, first=1.0, top=1.0, plain=0.0)
    rows = {row["prompt"]: row for row in make_rows(32)}
    for rollout in read_generation(tmp_path / "rollouts", 0):
        own = rows[rollout.prompt[rollout.prompt.rindex("q:") :]]
        assert rollout.hint_length == len(own["demonstration"]) + 1
        assert rollout.prompt == f"h:{own['demonstration']};{own['prompt']}"


def test_what_was_sampled_behind_it_is_not_the_policys_own(tmp_path: Path) -> None:
    behind = trained(tmp_path / "a", first=0.5, plain=0.0, own=True)
    assert behind.method_state.traces == {}
    plain = trained(tmp_path / "b", first=0.5, plain=1.0, own=True)
    assert plain.method_state.traces


def test_prompts_are_measured_with_their_longest_hint() -> None:
    rows = {"prompt": ["q:1\n", "q:2\n"], "demonstration": [["1", "1+0"], []]}
    renderer = Renderer(make_tokenizer())
    ids: Any = tokenize_demonstrations(Dataset.from_dict(rows), make_tokenizer(), 24)[0]
    assert list(prompt_lengths(ids, renderer, None)) == [4, 4]
    hint = Hint(TEMPLATE)
    assert list(prompt_lengths(ids, renderer, hint)) == [len("h:1+0;q:1\n"), 4]


def test_verl_refuses_it() -> None:
    why = unsupported(load("control", where="prompt"))
    assert why == "its prompts are tokenized before it is known which hint they get"
