"""Retention-based masking where all of it can be worked out: linear regression (arXiv 2410.03833).

    python examples/unlearning_linear.py

More features than rows. Rows to retain use some features, rows to forget use others; some features
may be shared. A model is a vector w of d weights, a row's answer is its product with w.

- pretrained: the shortest w that fits all rows;
- golden: the shortest w that fits the rows to retain, as if the others had never been there;
- fine-tuned: from a start, the nearest w that fits the rows to retain, as gradient descent does;
- retention mask: before fine-tuning, weights that the rows to retain do not use become 0;
- forget mask: before fine-tuning, weights that the rows to forget use become 0.

Fine-tuning alone forgets nothing: the pretrained model fits the rows to retain already, so nothing
moves. Behind a retention mask it is the golden model where no feature is shared, and the rows to
retain are as right as before where some are. A forget mask breaks them there.

This is the theory. What `parameter_mask: {kind: retain, action: zero}` does to a language model is
ours, after it: see docs/methods/parameter_masks.md.

Shape letters: R rows to retain, F rows to forget, D features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """Rows to retain and rows to forget.

    Attributes:
        x_RD: features of the rows to retain.
        y_R: their answers.
        x_FD: features of the rows to forget.
        y_F: their answers.
    """

    x_RD: Tensor
    y_R: Tensor
    x_FD: Tensor
    y_F: Tensor


def nearest_fit(x_ND: Tensor, y_N: Tensor, start_D: Tensor) -> Tensor:
    """The weights nearest to a start that fit all rows, shape (D,); the start where it fits."""
    return start_D + torch.linalg.pinv(x_ND) @ (y_N - x_ND @ start_D)


def pretrained(task: Task) -> Tensor:
    """The shortest weights that fit all rows, shape (D,)."""
    x_ND, y_N = torch.cat([task.x_RD, task.x_FD]), torch.cat([task.y_R, task.y_F])
    return nearest_fit(x_ND, y_N, torch.zeros_like(x_ND[0]))


def golden(task: Task) -> Tensor:
    """The shortest weights that fit the rows to retain, shape (D,)."""
    return nearest_fit(task.x_RD, task.y_R, torch.zeros_like(task.x_RD[0]))


def fine_tuned(task: Task, start_D: Tensor) -> Tensor:
    """A start, trained on the rows to retain, shape (D,)."""
    return nearest_fit(task.x_RD, task.y_R, start_D)


def retention_masked(task: Task, w_D: Tensor) -> Tensor:
    """The weights with 0 where no row to retain has a feature, shape (D,)."""
    return w_D * (task.x_RD != 0).any(0)


def forget_masked(task: Task, w_D: Tensor) -> Tensor:
    """The weights with 0 where a row to forget has a feature, shape (D,)."""
    return w_D * ~(task.x_FD != 0).any(0)


def losses(task: Task, w_D: Tensor) -> tuple[float, float]:
    """Mean squared errors on the rows to retain and on those to forget."""
    retained, forgotten = task.x_RD @ w_D - task.y_R, task.x_FD @ w_D - task.y_F
    return (retained**2).mean().item(), (forgotten**2).mean().item()


def drawn(own: int, shared: int, others: int, rows: int, seed: int) -> Task:
    """A task with standard normal features and answers.

    Args:
        own: features of the rows to retain alone.
        shared: features of both.
        others: features of the rows to forget alone.
        rows: rows of each kind.
        seed: decides all numbers.
    """
    rng = torch.Generator().manual_seed(seed)
    draw = torch.randn(2, rows, own + shared + others, generator=rng, dtype=torch.float64)
    x_RD, x_FD = draw
    x_RD[:, own + shared :], x_FD[:, :own] = 0.0, 0.0
    truth_D = torch.randn(own + shared + others, generator=rng, dtype=torch.float64)
    return Task(x_RD, x_RD @ truth_D, x_FD, x_FD @ truth_D)


def main() -> None:
    """Print the losses of every model, without and with shared features."""
    for shared in (0, 4):
        task = drawn(20, shared, 20, 5, seed=0)
        w_D, best_D = pretrained(task), golden(task)
        print(f"{shared} shared features")
        for name, model_D in {
            "golden": best_D,
            "pretrained": w_D,
            "fine-tuned": fine_tuned(task, w_D),
            "retention mask": retention_masked(task, w_D),
            "retention mask, fine-tuned": fine_tuned(task, retention_masked(task, w_D)),
            "forget mask": forget_masked(task, w_D),
            "forget mask, fine-tuned": fine_tuned(task, forget_masked(task, w_D)),
        }.items():
            retain, forget = losses(task, model_D)
            away = (model_D - best_D).norm().item()
            print(
                f"  {name:27} retain {retain:7.3f}  forget {forget:7.3f}  from golden {away:6.3f}"
            )


if __name__ == "__main__":
    main()
