"""Which arms a comparison has, and which it refuses."""

from typing import Any

import pytest

from prefix_rft.compare.arm import Arm, overrides_of
from prefix_rft.compare.arms import METHODS, read_comparison
from prefix_rft.support.errors import UserError

RECIPE: dict[str, Any] = {
    "learning_rate": 2e-6,
    "num_generations": 8,
    "temperature": 1.0,
    "micro_batch_size": 64,
    "method": "prefix_rft",
}


def test_an_honest_table_by_default() -> None:
    found = read_comparison(RECIPE)
    assert tuple(a.name for a in found.arms) == METHODS
    assert (found.seeds, found.reference) == (3, "prefix_rft")
    assert found.temperatures == (1.0, 0.6, 0.0)


def test_imitation_gets_a_sweep_and_no_key_of_rollouts() -> None:
    sft = read_comparison(RECIPE).arm("sft")
    assert sft.keys["method"] == "sft"
    assert {"~num_generations", "~temperature", "~micro_batch_size"} <= sft.keys.keys()
    assert "~learning_rate" not in sft.keys
    assert sft.sweep["learning_rate"] == [1e-5, 2e-5, 1e-4]
    assert read_comparison(RECIPE, learning_rates=[1e-4]).arm("sft").sweep == {
        "learning_rate": [1e-4]
    }


def test_one_method_after_the_other() -> None:
    found = read_comparison(RECIPE, ["sft+dr_grpo", "dr_grpo"])
    assert [a.name for a in found.arms] == ["sft", "sft+dr_grpo", "dr_grpo"]
    arm = found.arm("sft+dr_grpo")
    assert (arm.start, arm.match, arm.keys["method"]) == ("sft", "dr_grpo", "dr_grpo")
    # Nothing to match where the second method is not an arm of its own.
    assert read_comparison(RECIPE, ["sft+dr_grpo"]).arm("sft+dr_grpo").match is None
    assert found.reference == "sft"  # the first one without prefix_rft


def test_steps_that_are_counted_out_cost_the_same() -> None:
    """Rows without gradient stay in, in the arm that is matched and in the one that matches."""
    own = {"arms": {"sft": {"method": "sft"}, "a": {}, "b": {"match": "a"}, "c": {}}}
    found = read_comparison({**RECIPE, "compare": own})
    priced = ["packing", "sampler_scores"]
    assert [a.keys.get("savings") for a in found.arms] == [None, priced, priced, None]
    kept = read_comparison({**RECIPE, "savings": ["packing"], "compare": own})
    assert [a.keys.get("savings") for a in kept.arms] == [None] * 4
    elsewhere = read_comparison({**RECIPE, "engine": "verl", "compare": own})
    assert [a.keys.get("savings") for a in elsewhere.arms] == [None] * 4


def test_arms_of_the_recipe() -> None:
    own = {
        "arms": {
            "prefix_rft": None,
            "keep/50": {"method.entropy_keep": 0.5, "sweep": {"learning_rate": [1, 2]}},
            "later": {"start": "keep/50", "match": "prefix_rft"},
        },
        "seeds": 2,
        "by": ["level"],
    }
    found = read_comparison({**RECIPE, "compare": own})
    assert found.arms[1] == Arm(
        "keep/50", {"method.entropy_keep": 0.5}, sweep={"learning_rate": [1, 2]}
    )
    assert [a.group for a in found.arms] == ["", "keep", ""]
    assert (found.seeds, found.by) == (2, ["level"])
    assert read_comparison({**RECIPE, "compare": own}, ["keep/50"], seeds=7).seeds == 7
    # Naming one arm brings those that it needs.
    assert [a.name for a in read_comparison({**RECIPE, "compare": own}, ["later"]).arms] == [
        "keep/50", "prefix_rft", "later"
    ]  # fmt: skip


def test_overrides() -> None:
    keys = {"method.entropy_keep": 0.5, "~num_generations": None, "train_data": "a b.jsonl"}
    assert overrides_of(keys) == [
        "method.entropy_keep=0.5", "~num_generations", 'train_data="a b.jsonl"'
    ]  # fmt: skip


BAD: dict[str, Any] = {
    "must be a mapping": 3,
    "unknown key of 'compare' 'seed': did you mean 'seeds'": {"seed": 3},
    "'arms' of 'compare' must be a mapping": {"arms": ["a"]},
    "'../x' cannot name an arm": {"arms": {"../x": {}}},
    "'a/b/c' cannot name an arm": {"arms": {"a/b/c": {}}},
    "arm 'a' must be a mapping": {"arms": {"a": 3}},
    "key of arm 'a': 'start'": {"arms": {"a": {"start": 3}}},
    "'sweep' of arm 'a' must be one key and a list": {"arms": {"a": {"sweep": {"seed": []}}}},
    "'sweep' of arm 'b' must be one key": {"arms": {"b": {"sweep": {"x": [1], "y": [2]}}}},
    "unknown arm as 'start' of arm 'a' 'b'": {"arms": {"a": {"start": "b"}}},
    "unknown arm as 'reference'": {"arms": {"a": {}}, "reference": "b"},
    "'a' cannot match the operations of 'b' by its number of steps: a step of it costs something "
    "else (method); give max_steps": {"arms": {"a": {"method": "sft", "match": "b"}, "b": {}}},
    "(prompts_per_step)": {"arms": {"a": {"prompts_per_step": 3, "match": "b"}, "b": {}}},
    "(savings)": {"arms": {"a": {"savings": [], "match": "b"}, "b": {}}},
    "arm 'b' is matched by its number of steps, but with 'untrained' among its savings no step "
    "costs what another does: give ['packing', 'sampler_scores']": {
        "arms": {"a": {"match": "b"}, "b": {"savings": ["untrained"]}}
    },
    "(peft)": {"arms": {"a": {"peft.r": 4, "match": "b"}, "b": {"peft.r": 8}}},
    "arm 'a' waits for itself": {"arms": {"a": {"start": "b"}, "b": {"match": "a"}}},
    "at least one of 'seeds'": {"arms": {"a": {}}, "seeds": -1},
    "'samples'": {"arms": {"a": {}}, "samples": 0},
    "'seeds'": {"arms": {"a": {}}, "seeds": "many"},
    "'temperatures' of 'compare' must be a list of numbers": {"arms": {"a": {}}, "temperatures": 1},
    "must be a list of numbers": {"arms": {"a": {}}, "temperatures": ["hot"]},
}


@pytest.mark.parametrize("message", BAD)
def test_refused(message: str) -> None:
    with pytest.raises(UserError) as refused:
        read_comparison({**RECIPE, "compare": BAD[message]})
    assert message in str(refused.value)


def test_no_seed_is_not_the_default() -> None:
    with pytest.raises(UserError, match="at least one of 'seeds'"):
        read_comparison(RECIPE, seeds=0)


def test_unknown_method() -> None:
    with pytest.raises(UserError, match="unknown method 'prefix_rtf'"):
        read_comparison(RECIPE, ["sft", "prefix_rtf"])
