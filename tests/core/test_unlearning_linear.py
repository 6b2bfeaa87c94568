"""The linear theory of retention-based masking, by hand and by gradient descent."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

PAGE = Path(__file__).parents[2] / "examples/unlearning_linear.py"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("unlearning_linear", PAGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "unlearning_linear", module)
    spec.loader.exec_module(module)
    return module


def t(*numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_by_hand(page: Any) -> None:
    """One feature of the row to retain, two others of the row to forget."""
    task = page.Task(t([1, 0, 0]), t(1), t([0, 1, 1]), t(2))
    start = page.pretrained(task)
    torch.testing.assert_close(start, t(1, 1, 1))
    torch.testing.assert_close(page.fine_tuned(task, start), t(1, 1, 1))
    masked = page.fine_tuned(task, page.retention_masked(task, start))
    torch.testing.assert_close(masked, t(1, 0, 0))
    torch.testing.assert_close(page.golden(task), t(1, 0, 0))
    assert page.losses(task, start) == pytest.approx((0, 0))
    assert page.losses(task, masked) == pytest.approx((0, 4))  # 2 squared


def test_a_shared_feature_by_hand(page: Any) -> None:
    """X_r = [1, 1, 0], y = 2; X_f = [0, 1, 1], y = 2."""
    task = page.Task(t([1, 1, 0]), t(2), t([0, 1, 1]), t(2))
    start = page.pretrained(task)
    torch.testing.assert_close(start, t(2 / 3, 4 / 3, 2 / 3))
    torch.testing.assert_close(page.golden(task), t(1, 1, 0))
    kept = page.retention_masked(task, start)
    torch.testing.assert_close(kept, t(2 / 3, 4 / 3, 0))
    assert page.losses(task, kept) == pytest.approx((0, (4 / 3 - 2) ** 2))
    broken = page.forget_masked(task, start)
    torch.testing.assert_close(broken, t(2 / 3, 0, 0))
    assert page.losses(task, broken) == pytest.approx(((2 / 3 - 2) ** 2, 4))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_distinct_features(page: Any, seed: int) -> None:
    """Fine-tuning forgets nothing; behind a retention mask it is the golden model."""
    task = page.drawn(10, 0, 8, 4, seed)
    start, best = page.pretrained(task), page.golden(task)
    torch.testing.assert_close(page.fine_tuned(task, start), start)
    assert page.losses(task, start) == pytest.approx((0, 0))
    forgotten = page.losses(task, best)[1]
    assert forgotten > 0.5
    for masked in (page.retention_masked, page.forget_masked):
        torch.testing.assert_close(page.fine_tuned(task, masked(task, start)), best)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shared_features(page: Any, seed: int) -> None:
    """A retention mask leaves the rows to retain right, a forget mask does not."""
    task = page.drawn(10, 4, 8, 4, seed)
    start, best = page.pretrained(task), page.golden(task)
    assert page.losses(task, page.fine_tuned(task, start)) == pytest.approx((0, 0))
    kept = page.retention_masked(task, start)
    retain, forget = page.losses(task, kept)
    assert retain == pytest.approx(0)
    assert forget > 0.3 * page.losses(task, best)[1]
    assert not torch.allclose(kept, best, atol=0.1)
    broken = page.forget_masked(task, start)
    assert page.losses(task, broken)[0] > 0.05
    assert page.losses(task, page.fine_tuned(task, broken))[0] == pytest.approx(0)


def test_the_nearest_fit_is_where_gradient_descent_ends(page: Any) -> None:
    """Of the mean squared error, from the same start; the weights move in the rows' span only."""
    task = page.drawn(6, 2, 3, 3, 0)
    start = torch.linspace(-1, 1, 11, dtype=torch.float64)
    w = start.clone().requires_grad_()
    for _ in range(20_000):
        loss = ((task.x_RD @ w - task.y_R) ** 2).mean()
        (g,) = torch.autograd.grad(loss, w)
        w = (w - 0.05 * g).detach().requires_grad_()
    torch.testing.assert_close(w.detach(), page.fine_tuned(task, start), atol=1e-6, rtol=0)


def test_the_page_runs(page: Any, capsys: pytest.CaptureFixture[str]) -> None:
    page.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16
    numbers = [line.split("retain ")[-1].split() for line in lines if "fine-tuned  " in line]
    assert len(numbers) == 6
