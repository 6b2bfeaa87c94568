"""SSPO's loss: numbers by hand, the formula a second time, finite differences; torch alone."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import prefix_rft
from prefix_rft.diffusion.loss import (
    FLIPS,
    Noised,
    PairErrors,
    preference_loss,
    squared_error,
)
from prefix_rft.support.errors import UserError

BETTER, WORSE = (0.4, 0.5, 0.3, 0.2), (0.6, 0.5, 0.3, 0.2)


def leaf(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("errors", "flip", "loss", "of_winner", "of_sample"),
    [
        # inside = -10 ((.4 - .5) - (.3 - .2)) = 2; log(1 + e^-2); 10 sigmoid(-2).
        (BETTER, "sign", 0.126928, 1.192029, -1.192029),
        (BETTER, "indicator", 0.126928, 1.192029, -1.192029),
        (BETTER, "none", 0.126928, 1.192029, -1.192029),
        # The policy is worse: inside = -10 (.1 + .1) = -2, and both are pulled up.
        (WORSE, "sign", 2.126928, 8.807971, 8.807971),
        # inside = -10 (.1): the winner alone.
        (WORSE, "indicator", 1.313262, 7.310586, 0.0),
        # inside = -10 (.1 - .1) = 0.
        (WORSE, "none", 0.693147, 5.0, -5.0),
    ],
)
def test_by_hand(
    errors: tuple[float, ...], flip: str, loss: float, of_winner: float, of_sample: float
) -> None:
    e_w, r_w, e_r, r_r = map(leaf, errors)
    found = preference_loss(PairErrors(e_w, e_r), PairErrors(r_w, r_r), 10.0, flip)
    found.loss_B.sum().backward()
    assert found.loss_B.item() == pytest.approx(loss, abs=5e-7)
    assert e_w.grad is not None
    assert e_w.grad.item() == pytest.approx(of_winner, abs=5e-7)
    assert e_r.grad is not None
    assert e_r.grad.item() == pytest.approx(of_sample, abs=5e-7)
    # Nothing reaches the reference.
    assert r_w.grad is None
    assert r_r.grad is None
    assert not found.flip_B.requires_grad
    assert found.winner_gain_B.item() == pytest.approx(errors[1] - errors[0])
    assert found.sample_gain_B.item() == pytest.approx(errors[3] - errors[2])


@pytest.mark.parametrize(("flip", "of_sample"), [("sign", 0.0), ("indicator", 0.0), ("none", -5.0)])
def test_where_both_models_are_one(flip: str, of_sample: float) -> None:
    """The first update: log 2, half of beta on the winner, and only DPO pushes the sample."""
    e_w, e_r = leaf(0.3), leaf(0.7)
    found = preference_loss(PairErrors(e_w, e_r), PairErrors(e_w, e_r), 10.0, flip)
    found.loss_B.sum().backward()
    assert found.loss_B.item() == pytest.approx(math.log(2), abs=1e-12)
    assert found.flip_B.item() == (1.0 if flip == "none" else 0.0)
    assert e_w.grad is not None
    assert e_w.grad.item() == pytest.approx(5.0, abs=1e-12)
    assert e_r.grad is not None
    assert e_r.grad.item() == pytest.approx(of_sample, abs=1e-12)


def test_far_away_it_stays_finite() -> None:
    """log(sigmoid(x)) would be -inf at -2000, whatever the precision."""
    e_w, r_w, e_r, r_r = map(leaf, (1.5, 0.5, 0.2, 0.2))
    found = preference_loss(PairErrors(e_w, e_r), PairErrors(r_w, r_r), 2000.0)
    found.loss_B.sum().backward()
    assert found.loss_B.item() == pytest.approx(2000.0)
    assert e_w.grad is not None
    assert e_w.grad.item() == pytest.approx(2000.0)


# ---- the whole way, through a model --------------------------------------------------------------

WEIGHTS = (0.8, -0.3)


def network(weights: Tensor, x: Tensor, t_B: Tensor, condition: Tensor) -> Tensor:
    """A model with two weights."""
    shape = (-1, *[1] * (x.dim() - 1))
    return torch.tanh(weights[0] * x + weights[1] * t_B.view(shape) + condition.view(shape))


def examples(shape: tuple[int, ...]) -> tuple[Noised, Noised]:
    source = torch.Generator().manual_seed(3)
    made = [torch.randn(shape, generator=source, dtype=torch.float64) for _ in range(4)]
    t_B, told_B = torch.rand(2, shape[0], generator=source, dtype=torch.float64)
    return Noised(made[0], t_B, told_B, made[1]), Noised(made[2], t_B, told_B, made[3])


def written_out(weights: Tensor, old: Tensor, shape: tuple[int, ...], flip: str) -> float:
    """The formula a second time: row by row, with Python's floats and no logsigmoid."""
    winner, sample = examples(shape)

    def error(w: Tensor, one: Noised, row: int) -> float:
        said = network(w, one.x, one.t_B, one.condition)[row].flatten().tolist()
        wanted = one.target[row].flatten().tolist()
        return sum((a - b) ** 2 for a, b in zip(said, wanted, strict=True)) / len(said)

    total = 0.0
    for row in range(shape[0]):
        d_w = error(weights, winner, row) - error(old, winner, row)
        d_r = error(weights, sample, row) - error(old, sample, row)
        s = {"sign": (d_w < 0) - (d_w > 0), "indicator": int(d_w < 0), "none": 1}[flip]
        total += math.log(1 + math.exp(7.0 * (d_w - s * d_r)))
    return total / shape[0]


def computed(weights: Tensor, old: Tensor, shape: tuple[int, ...], flip: str) -> Tensor:
    def errors(w: Tensor) -> PairErrors:
        return PairErrors(
            *(squared_error(lambda *a: network(w, *a), one) for one in examples(shape))
        )

    return preference_loss(errors(weights), errors(old), 7.0, flip).loss_B.mean()


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("shape", [(5, 1, 4, 4), (3, 2, 3, 4, 4)], ids=["pictures", "video"])
def test_loss_and_gradient_of_a_model_a_second_time(shape: tuple[int, ...], flip: str) -> None:
    weights = torch.tensor(WEIGHTS, dtype=torch.float64, requires_grad=True)
    old = torch.tensor((0.6, -0.1), dtype=torch.float64, requires_grad=True)
    loss = computed(weights, old, shape, flip)
    assert loss.item() == pytest.approx(written_out(weights, old, shape, flip), rel=1e-12)
    loss.backward()
    assert old.grad is None
    assert weights.grad is not None
    for i in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[i] = 1e-6
        with torch.no_grad():
            up, down = (written_out(weights + s, old, shape, flip) for s in (step, -step))
        assert weights.grad[i].item() == pytest.approx((up - down) / 2e-6, rel=1e-6)


def test_without_the_detaching_the_gradient_is_another() -> None:
    """A reference that shares the policy's weights would cancel everything."""
    shape = (5, 1, 4, 4)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64, requires_grad=True)
    computed(weights, weights, shape, "none").backward()
    assert weights.grad is not None
    assert weights.grad.abs().max() > 0.1
    winner, sample = (
        squared_error(lambda *a: network(weights, *a), one) for one in examples(shape)
    )
    inside_B = -7.0 * ((winner - winner) - (sample - sample))
    [attached] = torch.autograd.grad(-torch.nn.functional.logsigmoid(inside_B).mean(), weights)
    assert attached.abs().max() == 0


def test_errors_are_means_over_all_but_rows() -> None:
    x = torch.zeros(2, 1, 2, 2)
    target = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    noised = Noised(x, torch.zeros(2), None, target)
    assert squared_error(lambda x, t, c: x, noised).tolist() == [1.0, 4.0]


def test_half_precision_is_widened_before_it_is_subtracted() -> None:
    """Neither number is one of bfloat16's: 253/256 is the nearest to 0.99, and 1 to 1.001."""
    target = torch.full((1, 4), 1.001)
    noised = Noised(target, torch.zeros(1), None, target)
    error_B = squared_error(lambda x, t, c: torch.full((1, 4), 0.99).bfloat16(), noised)
    assert error_B.dtype == torch.float32
    assert error_B.item() == pytest.approx((1.001 - 0.98828125) ** 2, rel=1e-5)


def test_another_shape_is_refused() -> None:
    noised = Noised(torch.zeros(1, 3), torch.zeros(1), None, torch.zeros(1, 3))
    with pytest.raises(UserError, match=r"predicts \(1, 6\) where the target is \(1, 3\)"):
        squared_error(lambda x, t, c: torch.zeros(1, 6), noised)
    with pytest.raises(UserError, match="did you mean 'sign'"):
        preference_loss(*[PairErrors(torch.zeros(1), torch.zeros(1))] * 2, 1.0, "sing")


HEAVY = ("diffusers", "PIL", "transformers")


def test_the_loss_needs_torch_alone() -> None:
    code = "import sys, prefix_rft.diffusion.loss\n"
    code += f"print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_imports_diffusers_or_pillow_before_it_is_used() -> None:
    """Where it is imported at all, it is within a function."""
    inside = set()
    for path in (Path(prefix_rft.__file__).parent).rglob("*.py"):
        tree = ast.parse(path.read_text())
        above = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [getattr(node, "module", None) or node.names[0].name]
                if names[0].partition(".")[0] in HEAVY[:2]:
                    assert node not in above, path
                    inside.add(path.name)
    assert inside >= {"library.py", "pictures.py", "rows.py"}
