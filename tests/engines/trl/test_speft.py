"""SPEFT as published: linear layers, demonstrations looked at before the first step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from masked_runs import Steps, flat, run, same, top
from masked_two_processes import BATCH, CASES, STEPS
from torch import Tensor, nn
from two_gloo import Ranks, launch

from prefix_rft import PrefixRFTTrainer
from prefix_rft.engines.trl.update.mask_options import EXAMPLES, MaskOptions
from prefix_rft.engines.trl.update.mask_targets import targets
from prefix_rft.support.errors import UserError
from second.step import trl_run
from second.step.update import Row
from second.step.update import score as score_of
from tiny import make_model, make_rows, make_tokenizer

Weights = dict[str, Tensor]
LINEAR = (
    *(f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkvo"),
    *(f"model.layers.0.mlp.{x}_proj.weight" for x in ("gate", "up", "down")),
)


def looked_at(weights: Weights, score: str, names: Any = LINEAR, rows: int = 12) -> Weights:
    """Scores by one plain backward for each demonstration of the training rows."""
    model, tokenizer = trl_run.sharp_model(), make_tokenizer()
    model.load_state_dict(weights, strict=False)
    named = dict(model.named_parameters())
    totals = {n: torch.zeros_like(named[n]) for n in names}
    for row in make_rows(rows).to_list():
        target = [*tokenizer(row["demonstration"])["input_ids"], trl_run.EOS]
        logp, _ = score_of(model, Row(tokenizer(row["prompt"])["input_ids"], target))
        model.zero_grad()
        (-logp.mean()).backward()
        for n in names:
            totals[n] += named[n].grad ** 2 if score == "fisher" else named[n].grad
    w = {n: named[n].detach() for n in names}
    return {
        "gradient": lambda: {n: t.abs() for n, t in totals.items()},
        "snip": lambda: {n: (w[n] * t).abs() for n, t in totals.items()},
        "force": lambda: {n: -w[n] * t for n, t in totals.items()},
        "fisher": lambda: totals,
        "magnitude": lambda: {n: w[n].abs() for n in names},
    }[score]()


def check_chosen(steps: Steps, step: int, score: str, amount: float, differing: int = 2) -> None:
    """The mask of a step is that of its weights; what is no linear layer stands still."""
    best = top(looked_at(steps.before[step], score), amount, "global")
    mask = steps.masks[step]
    assert mask is not None
    assert same({n: mask[n] for n in LINEAR}, best, differing)
    assert not any(m.any() for n, m in mask.items() if n not in LINEAR)
    steps.check(step)


@pytest.mark.parametrize("score", ["gradient", "magnitude", "snip", "force", "fisher"])
def test_demonstrations_are_looked_at_before_the_first_step(tmp_path: Path, score: str) -> None:
    """Without an update: the first step trains already, its norm is that of what it trains."""
    mask = {"kind": "speft", "fraction": 0.1, "score": score}
    trainer, steps, _ = run(tmp_path, "sft", mask, max_steps=3)
    start = trl_run.sharp_model().state_dict()
    trainer.train()
    assert all(torch.equal(w, start[n]) for n, w in steps.before[0].items())
    check_chosen(steps, 0, score, 0.1)
    for step in (1, 2):
        steps.check(step)
        assert same(steps.masks[step], steps.masks[0])
    told = [line["grad_norm"] for line in trainer.state.log_history[:3]]
    own = [flat(used).double().norm().item() for used in steps.used]
    assert told == pytest.approx(own, rel=1e-4)


def test_the_paper_is_the_default(tmp_path: Path) -> None:
    """One in a hundred of the linear weights, by 1,024 demonstrations; RL looks at its own step."""
    trainer, steps, _ = run(tmp_path, "sft", {"kind": "speft"}, max_steps=1)
    trainer.train()
    check_chosen(steps, 0, "gradient", 0.01, differing=0)
    own = trainer.method_state.parameter_mask
    assert (own["examples"], own["score_steps"], own["count"]) == (EXAMPLES, None, None)
    assert EXAMPLES == 1024
    trainer, steps, _ = run(tmp_path, "luffy", {"kind": "speft"}, max_steps=1)
    trainer.train()
    own = trainer.method_state.parameter_mask
    assert (own["examples"], own["score_steps"]) == (None, 1)
    found = {n: steps.found[0][n].abs() for n in LINEAR}
    assert same({n: steps.masks[0][n] for n in LINEAR}, top(found, 0.01, "global"))


def test_a_method_with_rollouts_may_look_at_demonstrations(tmp_path: Path) -> None:
    mask = {"kind": "speft", "fraction": 0.1, "score": "fisher", "examples": 99}
    trainer, steps, _ = run(tmp_path, "prefix_rft", mask, max_steps=2)
    trainer.train()
    check_chosen(steps, 0, "fisher", 0.1)
    steps.check(1)


def test_the_number_of_examples_is_kept(tmp_path: Path) -> None:
    """Three of twelve: another mask than that of all, and the same with the same seed."""
    masks = []
    for examples, seed in ((3, 0), (3, 0), (12, 0), (3, 1)):
        mask = {"kind": "speft", "fraction": 0.1, "examples": examples}
        trainer, steps, _ = run(tmp_path, "sft", mask, max_steps=1, seed=seed, data_seed=7)
        trainer.train()
        masks.append(steps.masks[0])
    assert same(masks[0], masks[1])
    assert not same(masks[0], masks[2], 20)
    assert not same(masks[0], masks[3], 20)


def test_other_examples_are_looked_at_each_time(tmp_path: Path) -> None:
    """Although no weight has moved by an amount that matters."""
    mask = {"kind": "speft", "fraction": 0.1, "examples": 2, "update_every": 1}
    trainer, steps, _ = run(tmp_path, "sft", mask, max_steps=3, learning_rate=1e-12)
    trainer.train()
    assert not same(steps.masks[0], steps.masks[1], 20)
    assert not same(steps.masks[1], steps.masks[2], 20)


@pytest.mark.parametrize("score", ["gradient", "magnitude"])
def test_a_mask_is_chosen_anew(tmp_path: Path, score: str) -> None:
    """By the weights of then; the optimizer begins anew."""
    mask = {"kind": "speft", "fraction": 0.05, "score": score, "update_every": 3}
    trainer, steps, _ = run(tmp_path, "sft", mask, max_steps=8, learning_rate=5e-2)
    trainer.train()
    for step in range(8):
        if step % 3 == 0:
            check_chosen(steps, step, score, 0.05)
        else:
            assert same(steps.masks[step], steps.masks[step - 1])
            steps.check(step)
    assert not same(steps.masks[0], steps.masks[3])
    memory = getattr(trainer.optimizer, "optimizer", trainer.optimizer).state
    assert {int(own["step"]) for own in memory.values()} == {2}  # steps 6 and 7


@pytest.mark.parametrize(
    ("method", "mask"),
    [
        ("sft", {"score": "fisher", "examples": 5}),
        pytest.param("sft", {"score": "random"}, marks=pytest.mark.slow),
        pytest.param("luffy", {"score": "force", "examples": 5}, marks=pytest.mark.slow),
    ],
    ids=["sft", "random", "luffy"],
)
def test_a_run_goes_on_to_the_bit(tmp_path: Path, method: str, mask: dict) -> None:
    """From behind, from before and from the very step at which a mask is chosen anew."""
    mask = {"kind": "speft", "fraction": 0.1, "update_every": 2, **mask}
    settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1}
    whole, steps, _ = run(tmp_path, method, mask, **settings)
    whole.train()
    assert not same(steps.masks[1], steps.masks[2])
    for step in (1, 2, 3):
        again, later, _ = run(tmp_path, method, mask, **settings)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        for now, then in zip(later.masks, steps.masks[step:], strict=True):
            assert same(now, then)
        assert all(torch.equal(w, later.after[-1][n]) for n, w in steps.after[-1].items())


def test_a_count(tmp_path: Path) -> None:
    trainer, steps, _ = run(tmp_path, "sft", {"kind": "speft", "count": 7}, max_steps=1)
    trainer.train()
    assert int(flat(steps.masks[0]).sum()) == 7
    mask = {"kind": "speft", "count": 17, "scope": "local"}
    trainer, steps, _ = run(tmp_path, "sft", mask, max_steps=1)
    trainer.train()
    assert [int(steps.masks[0][n].sum()) for n in LINEAR] == [3, 3, 3, 2, 2, 2, 2]


# ---- modules -------------------------------------------------------------------------------------


def untied() -> Any:
    model = make_model(make_tokenizer(), layers=2)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


@pytest.mark.parametrize(
    ("modules", "wanted"),
    [
        ("linear", [n.replace("layers.0", f"layers.{i}") for i in (0, 1) for n in LINEAR]),
        (["q_proj", "mlp.up_proj"], [f"model.layers.{i}.{x}.weight" for i in (0, 1)
                                     for x in ("self_attn.q_proj", "mlp.up_proj")]),
        (r"layers\.1\.(self_attn\.[kv]_proj|mlp\.up_proj)",
         [f"model.layers.1.{x}.weight"
          for x in ("self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj")]),
        ("model.layers.1.mlp", [f"model.layers.1.mlp.{x}_proj.weight"
                                for x in ("gate", "up", "down")]),
        ("lm_head", ["lm_head.weight"]),
    ],
)  # fmt: skip
def test_weights_by_the_names_of_modules(modules: Any, wanted: list[str]) -> None:
    model = untied()
    assert list(targets(model, modules)) == wanted
    everything = [n for n, _ in model.named_parameters()]
    assert list(targets(model, "all")) == everything
    assert len(wanted) < len(everything)


def test_a_shared_matrix_and_a_bias() -> None:
    tied = make_model(make_tokenizer())
    assert list(targets(tied, ["lm_head"])) == ["model.embed_tokens.weight"]
    assert not any("embed" in name for name in targets(tied, "linear"))
    plain = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    assert list(targets(plain, "linear")) == list(targets(plain, "0")) == ["0.weight"]
    plain[0].weight.requires_grad_(False)
    with pytest.raises(UserError, match=r"have no matrix that is trained: .* modules: all"):
        targets(plain, "linear")


@pytest.mark.parametrize(
    ("modules", "sentence"),
    [
        (["q_pro"], "the model has no module 'q_pro': did you mean 'q_proj'"),
        (["q_porj"], "the model has no module 'q_porj': did you mean 'q_proj'"),
        (["q_proj", "prj"], "no module 'prj'"),
        ("q_proj|(", r"'q_proj\|\(' is no regular expression"),
        (["q_norm"], "have no matrix that is trained"),
    ],
)
def test_unknown_modules(tmp_path: Path, modules: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        run(tmp_path, "sft", {"kind": "speft", "modules": modules})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        ({"count": 10**6}, r"count=1000000 is more than the \d+ weights there are: lower it"),
        ({"count": 4000, "scope": "local"}, "count=4000 is 572 of each of 7 tensors, and one has"),
        ({"kind": "mifo", "count": 10**6}, "count=1000000 is more than"),
    ],
)
def test_more_than_there_is(tmp_path: Path, mask: dict, sentence: str) -> None:
    mask = {"kind": "speft", **mask}
    with pytest.raises(UserError, match=f"parameter_mask: {sentence}"):
        run(tmp_path, "mifo" if mask["kind"] == "mifo" else "sft", mask)


def test_all_cannot_be_frozen(tmp_path: Path) -> None:
    make_rows(3).to_json(tmp_path / "keep.jsonl")
    size = sum(p.numel() for p in targets(trl_run.sharp_model(), "linear").values())
    mask = {"kind": "retain", "data": str(tmp_path / "keep.jsonl"), "modules": "linear"}
    run(tmp_path, "sft", {**mask, "count": size - 1})
    with pytest.raises(UserError, match="is all of the weights that kind retain chooses from"):
        run(tmp_path, "sft", {**mask, "count": size})


def test_no_demonstration_to_look_at(tmp_path: Path) -> None:
    mask = {"kind": "speft", "examples": 4}
    rows = trl_run.make_rewards(("mixed",) * 8, missing=range(8))
    trainer, _ = trl_run.start(PrefixRFTTrainer, tmp_path, "grpo", rows, parameter_mask=mask)
    with pytest.raises(UserError, match="no row has one: give score_steps"):
        trainer.train()
    rows = trl_run.make_rewards(("mixed",) * 8).to_iterable_dataset()
    trainer, _ = trl_run.start(PrefixRFTTrainer, tmp_path, "grpo", rows, parameter_mask=mask)
    with pytest.raises(UserError, match="a stream does not allow"):
        trainer.train()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"fraction": 0.1, "count": 5}, "fraction and count say the same"),
        ({"count": 0}, "count must be at least 1"),
        ({"examples": 3, "score_steps": 1}, "give one of the two"),
        ({"examples": 0}, "examples must be at least 1"),
        ({"examples": 3, "score": "magnitude"}, "examples has no effect with score magnitude"),
        ({"score_steps": 3, "score": "random"}, "score_steps has no effect with score random"),
        ({"modules": []}, "modules must be 'linear', 'all', a pattern or a list"),
        ({"modules": [3]}, "modules must be"),
        ({"modules": 3}, "'modules' must be"),
        ({"history": 0.5}, "history has no effect with kind speft"),
        ({"action": "zero"}, "action has no effect with kind speft"),
        ({"kind": "mifo", "score": "snip"}, "score has no effect with kind mifo"),
        ({"kind": "mifo", "examples": 3}, "examples has no effect with kind mifo"),
        ({"kind": "retain", "data": "x", "update_every": 3}, "no effect with kind retain"),
        ({"kind": "retain", "data": "x", "action": "zero"}, "needs a fraction or a count"),
        ({"kind": "retain", "data": "x", "score": "random"}, "looks at no data"),
        ({"score": "fores"}, "did you mean 'force'"),
    ],
)
def test_options_that_make_no_sense(given: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        MaskOptions.read({"kind": "speft", **given})
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 250


def test_a_retain_set_is_read_by_its_fisher_information() -> None:
    options = MaskOptions.read({"kind": "retain", "data": "x"})
    assert (options.score, options.modules, options.fraction) == ("fisher", "all", 0.05)
    options = MaskOptions.read({"kind": "mifo"})
    assert (options.score, options.modules, options.fraction) == (None, "all", 0.05)


# ---- two processes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return launch("masked_two_processes.py", tmp_path_factory.mktemp("two"), list(CASES))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_choose_as_one_does(tmp_path: Path, ranks: Ranks, case: str) -> None:
    """Each has looked at half of the demonstrations, and both have one mask."""
    first, second = (r[case] for r in ranks[1])
    for kind in ("masks", "before", "after"):
        for a, b in zip(first[kind], second[kind], strict=True):
            assert all(map(torch.equal, a.values(), b.values()))
    trainer, steps, _ = run(
        tmp_path, "sft", CASES[case], max_steps=1, per_device_train_batch_size=BATCH
    )
    trainer.train()
    assert len(first["masks"]) == STEPS
    assert same(first["masks"][0], steps.masks[0], differing=4)
    if case == "gradient":
        for step in (0, 2):
            best = top(looked_at(first["before"][step], "gradient"), 0.1, "global")
            assert same({n: first["masks"][step][n] for n in LINEAR}, best, differing=4)
