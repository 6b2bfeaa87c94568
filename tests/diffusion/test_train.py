"""Whole runs on a UNet of some 40,000 weights, and on other models: all that needs diffusers.

In one file, since the package takes seconds to import.
"""

import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from prefix_rft.cli import main
from prefix_rft.diffusion import checkpoint as checkpoint_module
from prefix_rft.diffusion import train as train_module
from prefix_rft.diffusion.models import Model, load, predict_of
from prefix_rft.diffusion.process import Process, process_of
from prefix_rft.diffusion.recipe import DiffusionRecipe, read
from prefix_rft.diffusion.rows import read_rows
from prefix_rft.diffusion.train import train
from prefix_rft.diffusion.update import Drawn, draw, update
from prefix_rft.support.errors import Interrupted, RunError, UserError

QUIET = Console(quiet=True)
CPU = torch.device("cpu")
RECIPE = """
model: base
train_data: rows.jsonl
learning_rate: 1e-3
beta: 50
max_steps: 10
save_every: 4
pool: 2
batch_size: 4
sample_steps: 3
seed: 9
pictures: 4
"""


def small_unet(labels: bool = True) -> Any:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, add_attention=False, dropout=0.1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        num_class_embeds=2 if labels else None,
    )  # fmt: skip


def scheduler(kind: str) -> Any:
    import diffusers

    if kind == "flow":
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    return diffusers.DDPMScheduler(prediction_type=kind, clip_sample=False)


def save(network: Any, kind: str, folder: Path, part: str = "unet") -> Path:
    network.save_pretrained(folder / part)
    scheduler(kind).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, a base, and six rows of pairs with labels."""
    folder = tmp_path_factory.mktemp("made")
    network = small_unet()
    assert 38_000 < sum(p.numel() for p in network.parameters()) < 42_000
    save(network, "epsilon", folder / "base")
    source = np.random.default_rng(0)
    rows = []
    for i in range(6):
        for kind in ("image", "loser"):
            np.save(folder / f"{kind}{i}.npy", source.uniform(-1, 1, (1, 8, 8)).astype("float32"))
        rows.append({"image": f"image{i}.npy", "loser": f"loser{i}.npy", "condition": i % 2})
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return [f"runs={tmp_path / 'runs'}"]


# ---- noise, and samples out of it ---------------------------------------------------------------


def process(kind: str) -> Process:
    made = scheduler(kind)
    return process_of({**made.config, "_class_name": type(made).__name__}, "here")


def levels_of(kind: str) -> tuple[Tensor, Tensor]:
    """How much of the example and of the noise there is at each level, worked out anew."""
    if kind == "flow":
        plain = [(1000 - i) / 1000 for i in range(1000)]
        sigma = torch.tensor([2 * s / (1 + s) for s in plain], dtype=torch.float64)
        return 1 - sigma, sigma
    kept, abar = 1.0, []
    for i in range(1000):
        kept *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        abar.append(kept)
    part = torch.tensor(abar, dtype=torch.float64)
    return part.sqrt(), (1 - part).sqrt()


def targets(kind: str, x: Tensor, noise: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return {"epsilon": noise, "v_prediction": a * noise - b * x, "flow": noise - x}[kind]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (4, 2, 5, 3, 3)], ids=["pictures", "video"])
def test_noise_and_targets_a_second_time(kind: str, shape: tuple[int, ...]) -> None:
    x, noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    level_B = torch.tensor([0, 10, 500, 999])
    found = process(kind).noised(x, noise, level_B, "told")
    a, b = (part[level_B].view(-1, *[1] * (x.dim() - 1)) for part in levels_of(kind))
    torch.testing.assert_close(found.x.double(), a * x + b * noise, atol=1e-5, rtol=1e-5)
    wanted = targets(kind, x, noise, a, b)
    torch.testing.assert_close(found.target.double(), wanted.double(), atol=1e-5, rtol=1e-5)
    assert found.condition == "told"
    if kind == "flow":
        torch.testing.assert_close(found.t_B.double(), 1000 * b.flatten(), atol=1e-2, rtol=1e-5)
    else:
        assert torch.equal(found.t_B, level_B)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_a_model_that_knows_the_picture_draws_it(kind: str) -> None:
    """Whatever the noise; also of a video, and without a gradient."""
    x, noise = torch.randn(2, 3, 2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    x = x.requires_grad_()
    a, b = levels_of(kind)

    def knowing(noisy: Tensor, t_B: Tensor, condition: Any) -> Tensor:
        assert condition == "told"
        assert t_B.shape == (3,)
        t = t_B[0].item()
        level = int((1000 * b - t).abs().argmin()) if kind == "flow" else int(t)
        one, other = a[level].float(), b[level].float()
        return targets(kind, x, (noisy - one * x) / other, one, other)

    sample = process(kind).sample(knowing, noise, "told", 7)
    torch.testing.assert_close(sample, x.detach(), atol=2e-3, rtol=1e-3)
    assert not sample.requires_grad


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "CMStochasticIterativeScheduler"}, "has no betas: give a scheduler that"),
        (
            {
                "_class_name": "DDPMScheduler",
                "beta_schedule": "linear",
                "prediction_type": "sample",
            },
            "unknown prediction_type of the scheduler 'sample'",
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
            "use_dynamic_shifting: true, which is not supported here",
        ),
    ],
)
def test_schedulers_that_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        process_of(config, "scheduler_config.json")


# ---- one update ---------------------------------------------------------------------------------


def pieces_of(made: Path, *overrides: str) -> tuple[DiffusionRecipe, Model, Any, Drawn]:
    """A recipe, a policy that has moved away from its reference, the reference, and a draw."""
    recipe = read(made / "recipe.yaml", overrides)
    model, reference = load(made / "base"), load(made / "base").network
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.network.parameters():
            p.add_(0.02 * torch.randn_like(p))
    rows = read_rows(made / "rows.jsonl", recipe.method == "dpo")
    called = predict_of(reference, None, made, labels=True)
    return recipe, model, reference, draw(recipe, model.process, rows, called, 3, CPU)


def gradient_of(
    made: Path, recipe: DiffusionRecipe, model: Model, reference: Any, drawn: Drawn
) -> tuple[dict[str, float], Tensor]:
    optimizer = torch.optim.SGD(model.network.parameters(), lr=0.0)
    policy, other = (predict_of(n, None, made, True) for n in (model.network, reference))
    told = update(recipe, model.process, policy, other, optimizer, drawn)
    return told, torch.cat([p.grad.flatten() for p in model.network.parameters()])


def second(model: Model, reference: Any, drawn: Drawn, beta: float, flip: str) -> Tensor:
    """The loss row by row, each example in a forward of its own, from the formula."""
    a, b = (part.float() for part in levels_of("epsilon"))
    losses = []
    for i in range(len(drawn.winner)):
        level = drawn.level_B[i : i + 1]
        errors = {}
        for name, network in (("policy", model.network), ("reference", reference)):
            for x, noise in ((drawn.winner, drawn.noise), (drawn.sample, drawn.sample_noise)):
                assert x is not None
                noisy = a[level] * x[i : i + 1] + b[level] * noise[i : i + 1]
                said = network(noisy, level, class_labels=drawn.condition[i : i + 1]).sample  # pyright: ignore[reportOptionalSubscript]
                errors.setdefault(name, []).append(((said - noise[i : i + 1]) ** 2).mean())
        (e_w, e_r), (r_w, r_r) = errors["policy"], [r.item() for r in errors["reference"]]
        x = r_w - e_w.item()
        s = {"sign": (x > 0) - (x < 0), "indicator": int(x > 0), "none": 1}[flip]
        losses.append(torch.log1p(torch.exp(beta * ((e_w - r_w) - s * (e_r - r_r)))))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("overrides", "flip"),
    [
        ([], "sign"),
        (["flip=indicator", "shared_noise=false"], "indicator"),
        (["micro_batch_size=3", "flip=none"], "none"),
        (["method=dpo", "~pool"], "none"),
    ],
)
def test_the_gradient_of_an_update_a_second_time(
    made: Path, overrides: list[str], flip: str
) -> None:
    recipe, model, reference, drawn = pieces_of(made, "max_grad_norm=0", *overrides)
    told, gradient = gradient_of(made, recipe, model, reference, drawn)
    model.network.zero_grad()
    loss = second(model, reference, drawn, 50.0, flip)
    loss.backward()
    wanted = torch.cat([p.grad.flatten() for p in model.network.parameters()])
    assert told["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert (gradient - wanted).norm() < 1e-4 * wanted.norm()
    assert told["grad_norm"] == pytest.approx(wanted.norm().item(), rel=1e-4)
    same = drawn.noise is drawn.sample_noise
    assert same is ("shared_noise=false" not in overrides)


def test_the_first_update_pulls_at_the_winner_alone(made: Path) -> None:
    """theta = ref: log 2, s = 0, and the gradient beta / 2 times that of the winner's error."""
    recipe, _, reference, drawn = pieces_of(made, "max_grad_norm=0")
    same = load(made / "base")
    told, gradient = gradient_of(made, recipe, same, reference, drawn)
    assert told["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert told["diffusion/flip"] == 0.0
    same.network.zero_grad()
    sft = read(made / "recipe.yaml", ["method=sft", "max_grad_norm=0", "~beta", "~pool"])
    winners = Drawn(**{**vars(drawn), "sample": None})
    _, of_winner = gradient_of(made, sft, same, reference, winners)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient, 25.0 * of_winner, atol=2e-4, rtol=1e-3)


def test_samples_come_from_the_reference_and_have_no_gradient(made: Path) -> None:
    recipe, model, reference, drawn = pieces_of(made)
    rows = read_rows(made / "rows.jsonl", losers=False)
    assert drawn.sample is not None
    assert not drawn.sample.requires_grad
    assert any(p.requires_grad for p in reference.parameters())  # they would have one otherwise
    policy = predict_of(model.network, None, made, labels=True)
    other = draw(recipe, model.process, rows, policy, 3, CPU)
    assert torch.equal(other.noise, drawn.noise)
    assert other.sample is not None
    assert (other.sample - drawn.sample).abs().max() > 0.01


def test_noise_is_of_its_step_and_reaches_all_levels(made: Path) -> None:
    recipe = read(made / "recipe.yaml", ["method=sft", "~beta", "~pool"])
    rows, model = read_rows(made / "rows.jsonl", losers=False), load(made / "base")
    called = predict_of(model.network, None, made, labels=True)

    def at(step: int, own: DiffusionRecipe = recipe) -> Drawn:
        return draw(own, model.process, rows, called, step, CPU)

    many = [at(step) for step in range(60)]
    levels = torch.cat([d.level_B for d in many]).double()
    # 240 uniform draws of 1,000 levels: the mean's standard deviation is 18.6.
    assert abs(levels.mean().item() - 499.5) < 75
    assert levels.min() < 50
    assert levels.max() > 949
    assert len({float(d.noise.sum()) for d in many}) == 60
    assert torch.equal(at(7).noise, many[7].noise)
    assert not torch.equal(at(7, read(made / "recipe.yaml", ["seed=1"])).noise, many[7].noise)


def test_a_loss_that_is_not_finite_moves_nothing(made: Path) -> None:
    recipe, model, reference, drawn = pieces_of(made)
    drawn.winner[0, 0, 0, 0] = math.inf
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    optimizer = torch.optim.SGD(model.network.parameters(), lr=1.0)
    policy, other = (predict_of(n, None, made, True) for n in (model.network, reference))
    with pytest.raises(RunError, match="loss nan, norm of the gradient nan: the update was not"):
        update(recipe, model.process, policy, other, optimizer, drawn)
    assert all(torch.equal(v, before[k]) for k, v in model.network.state_dict().items())


# ---- runs, killed and resumed -------------------------------------------------------------------


def left(folder: Path) -> tuple[Any, ...]:
    """All that a run has left, but for clocks: weights, moments, metrics, pictures."""
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["diffusion/seconds"]
    tensors = {
        str(p.relative_to(folder)): load_file(p)
        for p in sorted(folder.rglob("*.safetensors"))
        if "damaged-" not in str(p)
    }
    pictures = {p.name: p.read_bytes() for p in sorted((folder / "pictures").iterdir())}
    return lines, tensors, pictures


def assert_same(one: Path, other: Path) -> None:
    (lines, tensors, pictures), others = left(one), left(other)
    assert lines == others[0]
    assert tensors.keys() == others[1].keys()
    for name, inside in tensors.items():
        assert inside.keys() == others[1][name].keys()
        assert all(torch.equal(v, others[1][name][k]) for k, v in inside.items()), name
    assert pictures == others[2]


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each method that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    methods = {"sspo": [], "dpo": ["method=dpo"], "sft": ["method=sft", "~beta", "~pool"]}
    methods["dpo"].append("~pool")
    return {
        name: train(str(made / "recipe.yaml"), [f"runs={folder / name}", *keys], QUIET)
        for name, keys in methods.items()
    }


def test_what_a_run_leaves(whole: dict[str, Path]) -> None:
    lines, tensors, pictures = left(whole["sspo"])
    assert [x["step"] for x in lines] == list(range(1, 11))
    # Stages begin behind 0, 4 and 8 updates, and draw among the newest two checkpoints.
    drawn = [x["diffusion/reference"] for x in lines]
    assert drawn == [0] * 4 + [4] * 4 + [4] * 2
    # Where the reference is what the policy is, nothing is known of its samples yet.
    assert [x["diffusion/flip"] for x in (lines[0], lines[4])] == [0.0, 0.0]
    assert [x["loss"] for x in (lines[0], lines[4])] == [pytest.approx(math.log(2))] * 2
    assert lines[8]["loss"] != pytest.approx(math.log(2), abs=1e-3)
    assert list(pictures) == [
        "data.png", *(f"grid_{step:06d}.png" for step in (0, 4, 8, 10)),
    ]  # fmt: skip
    steps = sorted(p.name for p in whole["sspo"].glob("checkpoint-*"))
    assert steps == ["checkpoint-10", "checkpoint-4", "checkpoint-8"]
    last = "unet/diffusion_pytorch_model.safetensors"
    model, before = (tensors[f"{x}/{last}"] for x in ("model", "checkpoint-10"))
    assert all(torch.equal(v, before[k]) for k, v in model.items())
    assert load(whole["sspo"] / "model").process.levels == 1000


def killed(target: Callable[[], object]) -> None:
    """Run something in a copy of this process that kills itself."""
    child = multiprocessing.get_context("fork").Process(target=target)
    child.start()
    child.join(100)
    assert child.exitcode == -signal.SIGKILL


def kill_at(monkeypatch: pytest.MonkeyPatch, holder: Any, name: str, call: int) -> None:
    """Die as a function is called for the ``call``-th time."""
    plain, count = getattr(holder, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*args, **kwargs)

    monkeypatch.setattr(holder, name, counted)


@pytest.mark.parametrize(
    ("holder", "name", "call"),
    [
        (train_module, "update", 7),
        pytest.param(train_module, "append_metrics", 9, marks=pytest.mark.slow),
        (checkpoint_module, "save_file", 3),  # the checkpoint of step 8
        pytest.param(checkpoint_module, "place", 1, marks=pytest.mark.slow),  # that of step 0
        pytest.param(train_module, "place", 1, marks=pytest.mark.slow),  # the model itself
    ],
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_killed_run_ends_with_the_same_bits(
    made: Path, runs: list[str], whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
    holder: Any, name: str, call: int,
) -> None:  # fmt: skip
    path = str(made / "recipe.yaml")
    with monkeypatch.context() as patch:
        kill_at(patch, holder, name, call)
        killed(lambda: train(path, runs, QUIET))
    folder = train(path, runs, QUIET, resume=True)
    assert folder.name == "diffusion"
    assert_same(folder, whole["sspo"])


@pytest.mark.parametrize("method", ["dpo", pytest.param("sft", marks=pytest.mark.slow)])
def test_an_interrupted_run_says_how_to_go_on(
    made: Path, runs: list[str], whole: dict[str, Path], method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path, keys = str(made / "recipe.yaml"), [*runs, f"method={method}", "~pool"]
    keys += ["~beta"] if method == "sft" else []
    plain = train_module.update

    def stopped(*args: Any) -> dict[str, float]:
        monkeypatch.setattr(train_module, "update", plain)
        raise KeyboardInterrupt

    def sixth(run: Any, *args: Any, count: list[int] = []) -> dict[str, float]:  # noqa: B006
        count.append(1)
        return (stopped if len(count) == 6 else plain)(run, *args)

    monkeypatch.setattr(train_module, "update", sixth)
    with pytest.raises(
        Interrupted, match="behind update 5; go on from step 4 with: prefix-rft dif"
    ):
        train(path, keys, QUIET)
    assert_same(train(path, keys, QUIET, resume=True), whole[method])


def test_a_damaged_checkpoint_is_passed_over(
    made: Path, runs: list[str], whole: dict[str, Path]
) -> None:
    """The one before it is there still, with all that its stage may draw."""
    copied = Path(runs[0].removeprefix("runs=")) / "diffusion"
    shutil.copytree(whole["sspo"], copied)
    shutil.rmtree(copied / "model")
    (copied / "checkpoint-10/optimizer.safetensors").write_bytes(b"damaged")
    assert_same(train(str(made / "recipe.yaml"), runs, QUIET, resume=True), whole["sspo"])


def test_what_a_run_does_not_go_on_with(
    made: Path, runs: list[str], whole: dict[str, Path]
) -> None:
    folder = Path(runs[0].removeprefix("runs=")) / "diffusion"
    shutil.copytree(whole["sspo"], folder)
    path = str(made / "recipe.yaml")
    assert train(path, runs, QUIET, resume=True) == folder  # finished
    shutil.rmtree(folder / "model")
    with pytest.raises(UserError, match="began with beta 50, and this recipe has 7"):
        train(path, [*runs, "beta=7"], QUIET, resume=True)
    lines = (made / "rows.jsonl").read_text().splitlines(keepends=True)
    original = (made / "rows.jsonl").read_text()
    try:
        (made / "rows.jsonl").write_text("".join(lines[:5]))
        with pytest.raises(UserError, match=r"rows.jsonl' has changed since '.*checkpoint-10'"):
            train(path, runs, QUIET, resume=True)
    finally:
        (made / "rows.jsonl").write_text(original)
    # Longer is the same run: its first updates do not depend on how many there are.
    assert left(folder)[0] == left(train(path, [*runs, "max_steps=11"], QUIET, True))[0][:10]
    (folder / "checkpoint-4/state.json").write_text("{}")
    shutil.rmtree(folder / "model")
    with pytest.raises(RunError, match="checkpoint-4' is the reference of this stage, and state"):
        train(path, [*runs, "max_steps=12"], QUIET, resume=True)


# ---- other models -------------------------------------------------------------------------------


def embedding_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def video_unet() -> Any:
    from diffusers import UNet3DConditionModel

    return UNet3DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )  # fmt: skip


def transformer() -> Any:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        norm_num_groups=1, sample_size=8, patch_size=2, num_embeds_ada_norm=3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("build", "kind", "shape", "condition"),
    [
        (embedding_unet, "v_prediction", (4, 8, 8), (5, 8)),
        pytest.param(embedding_unet, "flow", (4, 8, 8), (5, 8), marks=pytest.mark.slow),
        (video_unet, "epsilon", (4, 3, 8, 8), (5, 8)),
        (transformer, "epsilon", (4, 8, 8), 2),
        (lambda: small_unet(labels=False), "flow", (1, 8, 8), None),
    ],
    ids=["embeddings-v", "embeddings-flow", "video", "dit", "unconditional-flow"],
)
def test_other_models_train(
    tmp_path: Path, build: Callable[[], Any], kind: str, shape: tuple[int, ...], condition: Any
) -> None:
    torch.manual_seed(0)
    save(build(), kind, tmp_path / "base", "transformer" if build is transformer else "unet")
    source = np.random.default_rng(0)
    row: dict[str, Any] = {"image": "0.npy"}
    np.save(tmp_path / "0.npy", source.normal(size=shape).astype("float32"))
    if isinstance(condition, tuple):
        np.save(tmp_path / "told.npy", source.normal(size=condition).astype("float32"))
        row["condition"] = "told.npy"
    elif condition is not None:
        row["condition"] = condition
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    keys = [f"runs={tmp_path}", "max_steps=3", "save_every=2", "batch_size=2", "sample_steps=2"]
    folder = train(str(tmp_path / "recipe.yaml"), [*keys, "pictures=1"], QUIET)
    lines = left(folder)[0]
    assert lines[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert all(math.isfinite(v) for line in lines for v in line.values())
    assert lines[1]["diffusion/winner_gain"] != 0
    before, after = (load(f).network.state_dict() for f in (tmp_path / "base", folder / "model"))
    moved = [k for k, v in after.items() if not torch.equal(v, before[k])]
    assert len(moved) > len(after) / 2


def test_a_function_of_ones_own_calls_the_network(made: Path, runs: list[str]) -> None:
    (made / "own_call.py").write_text(
        "def call(network, x, t, condition):\n"
        "    return network(x, t, class_labels=1 - condition).sample\n"
    )
    path = str(made / "recipe.yaml")
    keys = ["max_steps=1", "pictures=0", "name=a"]
    told = [
        left_line(train(path, [*runs, *keys, *own], QUIET))
        for own in ([], ["predict=own_call:call"])
    ]
    assert told[0]["diffusion/winner_error"] != told[1]["diffusion/winner_error"]
    with pytest.raises(UserError, match="predict 'own_call:none' cannot be imported"):
        train(path, [*runs, "predict=own_call:none"], QUIET)


def left_line(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])


# ---- the command --------------------------------------------------------------------------------


def test_the_command_and_its_report(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = str(made / "recipe.yaml")
    assert main(["diffusion", recipe, "--resume", "max_steps=3", "save_every=2"]) == 0
    said = capsys.readouterr().out
    assert "no run of the name 'diffusion' to go on with: a new one begins" in said
    assert "sspo: 6 rows, 40,553 weights on cpu, update 1 to 3: runs/diffusion" in said
    assert "report: runs/diffusion/report.html" in said
    page = (tmp_path / "runs/diffusion/report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 4  # data, 0, 2, 3
    assert 'id="samples"' not in page
    assert 'id="evaluation"' not in page
    assert "Gain on winners" in page
    assert "http" not in page.replace('http-equiv="Content', "")
    environment = json.loads((tmp_path / "runs/diffusion/environment.json").read_text())
    assert environment["packages"]["diffusers"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["model=nowhere"], "is no folder: get one of the Hub's with hf download NAME"),
        (["model=base/unet"], "has neither unet/config.json nor transformer/config.json"),
        (["train_data=none.jsonl"], "does not exist: give a file of jsonl rows"),
        (["betta=3"], "unknown key of a diffusion recipe 'betta': did you mean 'beta'?"),
        (["method=grpo"], "unknown value of recipe key 'method' 'grpo'"),
        (["train_data=unlike.jsonl"], "cannot be called with the first row of"),
        (["train_data=class.jsonl"], "condition 2 is no class of the model, which has 0 to 1"),
        (["train_data=bare.jsonl"], "condition no condition"),
    ],
)
def test_what_the_command_refuses(
    made: Path, tmp_path: Path, keys: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    np.save(made / "unlike.npy", np.ones((3, 8, 8), np.float32))
    (made / "unlike.jsonl").write_text('{"image": "unlike.npy", "condition": 0}\n')
    (made / "class.jsonl").write_text('{"image": "image0.npy", "condition": 2}\n')
    (made / "bare.jsonl").write_text('{"image": "image0.npy"}\n')
    assert main(["diffusion", str(made / "recipe.yaml"), *keys]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_weights_that_are_no_safetensors_are_not_read(
    made: Path, tmp_path: Path, runs: list[str]
) -> None:
    base = shutil.copytree(made / "base", tmp_path / "base")
    weights = base / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UserError, match="its weights must be whole, and in safetensors"):
        load(base)
    (base / "unet/config.json").write_text('{"_class_name": "os"}')
    with pytest.raises(UserError, match="diffusers has no model 'os'"):
        load(base)
    (base / "scheduler/scheduler_config.json").unlink()
    with pytest.raises(UserError, match="save the scheduler beside the model"):
        load(base)


def test_without_the_extra_one_sentence_names_it(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert main(["diffusion", str(made / "recipe.yaml")]) == 2
    assert "needs the package diffusers: pip install 'prefix-rft[diffusion]'" in (
        capsys.readouterr().err
    )


# ---- end to end ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("keys", "at_least"), [(["method=sft"], 0.8), (["beta=20"], 0.6)])
def test_winners_of_one_mode_raise_its_share(
    tmp_path: Path, keys: list[str], at_least: float
) -> None:
    """Bars of two directions, winners of one: a minute of base, then 90 updates."""
    from test_bars import bars

    save(small_unet(labels=False), "epsilon", tmp_path / "new")
    bars.write_rows(tmp_path / "both", {"image": bars.drawn(256, [0, 1], seed=1)})
    bars.write_rows(tmp_path / "one", {"image": bars.drawn(64, [0], seed=2)})
    plain = {"learning_rate": 2e-3, "batch_size": 64, "sample_steps": 10, "pictures": 0}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"model": "", "train_data": "", **plain}))
    shared = [f"runs={tmp_path}", f"model={tmp_path / 'new'}", "train_data=both/rows.jsonl"]
    start = train(str(tmp_path / "recipe.yaml"), [*shared, "method=sft", "max_steps=1200"], QUIET)
    shared[1:] = [f"model={(start / 'model').resolve()}", "train_data=one/rows.jsonl"]
    more = ["learning_rate=5e-4", "batch_size=32", "max_steps=90", "name=arm"]
    end = train(str(tmp_path / "recipe.yaml"), [*shared, *more, *keys], QUIET)
    shares = []
    for folder in (start, end):
        model = load(folder / "model")
        noise = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(5))
        predict = predict_of(model.network, None, folder, labels=False)
        shares.append(bars.measured(model.process.sample(predict, noise, None, 20)))
    before, after = shares
    assert before["neither"] < 0.2, shares
    assert 0.3 < before["vertical"] < 0.7, shares
    assert after["vertical"] > max(at_least, before["vertical"] + 0.08), shares
