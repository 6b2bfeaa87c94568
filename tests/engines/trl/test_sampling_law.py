"""What is asked for decides the samples; a model's own generation_config reaches no path."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from prefix_rft import PrefixRFTTrainer
from prefix_rft.checks.inspect import continuation
from prefix_rft.data.render import Renderer
from prefix_rft.engines.sampling import SamplingSettings, generate, sample, supported
from prefix_rft.evaluation.samples import Request, sample_and_grade
from prefix_rft.rewards import checked
from tables import rest_slow
from tiny import make_config, make_rows, make_tokenizer, shaped_reward

TOKENIZER = make_tokenizer()
SIZE: dict[str, Any] = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
HEADS: dict[str, Any] = {
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}
POISON: dict[str, dict[str, Any]] = {
    "penalties": {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1},
    "warpers": {"temperature": 0.3, "top_k": 2, "top_p": 0.2, "min_p": 0.9, "typical_p": 0.2},
    "cut-offs": {"epsilon_cutoff": 0.05, "eta_cutoff": 0.05, "do_sample": True},
    "bans": {
        "bad_words_ids": [[i] for i in range(3, 30)],
        "suppress_tokens": list(range(30, 40)),
        "begin_suppress_tokens": list(range(40, 50)),
        "sequence_bias": [[[7], -50.0]],
    },
    "lengths": {
        "min_length": 12,
        "min_new_tokens": 9,
        "max_length": 3,
        "max_time": 1e-9,
        "exponential_decay_length_penalty": (1, 3.0),
        "forced_eos_token_id": 1,
        "forced_bos_token_id": 4,
    },
    "beams": {"num_beams": 3, "num_beam_groups": 1, "length_penalty": 3.0},
    "results": {"num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True},
    "others": {
        "guidance_scale": 3.0,
        "renormalize_logits": True,
        "remove_invalid_values": True,
        "stop_strings": ["1", "2", "a", "e"],
        "use_cache": False,
        "cache_implementation": "static",
        "prompt_lookup_num_tokens": 2,
    },
}


def tiny(kind: str) -> Any:
    """A random model that repeats itself, as penalties would change."""
    torch.manual_seed(0)
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS))
    elif kind == "mamba":
        model = MambaForCausalLM(MambaConfig(**SIZE, state_size=4))
    else:
        linear = {f"linear_{kv}_head_dim": 8 for kv in ("key", "value")}
        linear |= {f"linear_num_{kv}_heads": 2 for kv in ("key", "value")}
        experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
        kinds = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
        experts |= {"shared_expert_intermediate_size": 16}
        model = Qwen3NextForCausalLM(Qwen3NextConfig(**SIZE, **HEADS, **linear, **experts, **kinds))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
    return model.eval()


def poisoned(kind: str, names: Any) -> Any:
    model = tiny(kind)
    for name in names:
        for key, value in POISON[name].items():
            setattr(model.generation_config, key, value)
    return model


def argmaxes(model: Any, prompt: list[int], budget: int) -> list[int]:
    """Greedy by whole forwards, one token after the other: no cache, no generate."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + budget:
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == 1:
                break
    return ids[len(prompt) :]


PROMPTS = [[5, 9, 20, 31], [12], [7, 8, 7, 8, 7, 8]]
KINDS = ["llama", "mamba", "qwen3_next"]


def test_which_path_a_model_takes() -> None:
    assert [supported(tiny(k)) for k in KINDS] == [True, False, False]


@pytest.mark.parametrize(
    ("kind", "names"),
    rest_slow(
        product(KINDS, [*([n] for n in POISON), list(POISON)[:5]]),
        lambda kind, names: kind == "llama" or len(names) > 1,
    ),
    ids=lambda x: x if isinstance(x, str) else "+".join(x),
)
def test_greedy_is_the_argmax(kind: str, names: list[str]) -> None:
    model = poisoned(kind, names)
    own = model.generation_config
    settings = SamplingSettings((1,), 0, temperature=0.0)
    wanted = [argmaxes(tiny(kind), p, 8) for p in PROMPTS]
    assert generate(model, PROMPTS, 8, settings) == wanted
    if supported(model):
        assert sample(model, PROMPTS, [8] * 3, settings) == wanted
    assert model.generation_config is own  # it is saved with the model


@pytest.mark.parametrize(
    ("kind", "names"),
    rest_slow(
        product(KINDS, ([n] for n in POISON)),
        lambda kind, names: kind == "llama" or names == ["warpers"],
    ),
    ids=lambda x: x if isinstance(x, str) else "+".join(x),
)
def test_samples_are_those_of_the_clean_model(kind: str, names: list[str]) -> None:
    settings = SamplingSettings((1,), 0, temperature=0.8, top_k=20, top_p=0.9, min_p=0.01)

    def drawn(model: Any) -> list[list[int]]:
        torch.manual_seed(4)
        return generate(model, PROMPTS * 4, 8, settings)

    assert drawn(poisoned(kind, names)) == drawn(tiny(kind))


def test_a_config_that_speaks_of_generation_is_no_traceback() -> None:
    model = tiny("mamba")
    model.config.repetition_penalty = 3.0  # as configs of old models have it
    settings = SamplingSettings((1,), 0, temperature=0.0)
    assert generate(model, PROMPTS, 5, settings) == [argmaxes(model, p, 5) for p in PROMPTS]


ALL = [n for n in POISON if n != "others"]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_evaluation_and_inspect(kind: str, temperature: float) -> None:
    """RIF and ``prefix-rft eval`` draw with the same function as the evaluation of a run."""
    request = Request(2, temperature, 8, seed=1, batch_size=4)
    args = SimpleNamespace(temperature=0.7, top_k=0, top_p=1.0, min_p=None, seed=3)
    args.max_completion_length, args.repetition_penalty, args.generation_kwargs = 8, 1.0, None

    def drawn(model: Any) -> list[Any]:
        parts = sample_and_grade(model, TOKENIZER, make_rows(3), checked(shaped_reward), request)
        texts: list[Any] = [s.text for part in parts for problem in part for s in problem]
        setup: Any = SimpleNamespace(args=args)
        render = Renderer(TOKENIZER, (1,))
        return [*texts, continuation(setup, model, render, (PROMPTS[0], {}), PROMPTS[1])]

    assert drawn(poisoned(kind, ALL)) == drawn(tiny(kind))


@pytest.mark.parametrize(
    ("kind", "settings"),
    rest_slow(
        [
            ("llama", {}),
            ("llama", {"fast_generation": False}),
            ("mamba", {}),
            ("mamba", {"top_k": 5, "min_p": 0.05}),
            ("llama", {"repetition_penalty": 1.3}),
            ("llama", {"generation_kwargs": {"no_repeat_ngram_size": 2}}),
        ],
        # Our own sampler, TRL's with what the arguments ask for, and one whose cache drops no rows.
        lambda kind, settings: (
            (settings in ({}, {"repetition_penalty": 1.3}) and (kind, settings) != ("mamba", {}))
            or "min_p" in settings
        ),
    ),
)
def test_training(tmp_path: Any, kind: str, settings: dict[str, Any]) -> None:
    """TRL's generation too; what the arguments ask for is followed, as by the clean model."""

    def drawn(model: Any, **more: Any) -> list[list[int]]:
        config = make_config(tmp_path, max_steps=1, method="dr_grpo", **{**settings, **more})
        trainer = PrefixRFTTrainer(
            model, shaped_reward, config, make_rows(4), processing_class=TOKENIZER
        )
        assert trainer._samples_itself() == (kind == "llama" and not settings)
        torch.manual_seed(5)
        return trainer._generate_single_turn(PROMPTS * 5, None, {}, 1)[0]

    clean = drawn(tiny(kind))
    assert drawn(poisoned(kind, ALL)) == clean
    asked = set(settings) & {"repetition_penalty", "generation_kwargs"}
    for key in asked:  # honoured: without it the samples are others
        neutral = {"repetition_penalty": 1.0, "generation_kwargs": None}[key]
        assert drawn(tiny(kind), fast_generation=False, **{key: neutral}) != clean


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_inspect_follows_what_training_is_asked_for(kind: str) -> None:
    model = tiny(kind)

    def drawn(**settings: Any) -> list[int]:
        law = {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "min_p": None, "seed": 3}
        law |= {"max_completion_length": 12, "repetition_penalty": 1.0, "generation_kwargs": None}
        setup: Any = SimpleNamespace(args=SimpleNamespace(**{**law, **settings}))
        asked = (PROMPTS[0], {})
        return continuation(setup, model, Renderer(TOKENIZER, (1,)), asked, PROMPTS[1])

    context = [*PROMPTS[0], *PROMPTS[1]]
    apart = [*context, *drawn(generation_kwargs={"no_repeat_ngram_size": 1})]
    assert len(set(apart)) == len(apart)
    torch.manual_seed(3)
    inputs: Any = {"input_ids": torch.tensor([context]), "attention_mask": torch.ones(1, 5).long()}
    wanted: Any = model.generate(
        **inputs,
        max_new_tokens=11,
        do_sample=True,
        temperature=0.7,
        top_k=0,
        repetition_penalty=2.0,
    )
    assert drawn(repetition_penalty=2.0) == wanted[0, 5:].tolist() != drawn()
