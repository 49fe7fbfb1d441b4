"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al. 2024)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

#: A quintic that drives singular values in (0, 1] towards one when it is applied again and again; they end between
#: 0.7 and 1.2, which serves as well as one.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
MOMENTUM = 0.95
#: Root mean square of the updates of AdamW, which those of Muon are scaled to, so that one learning rate fits both
#: (Liu et al. 2025).
ADAMW_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonal matrix nearest to the momentum of each weight's gradient.

    With G the gradient of a weight W of m rows and n columns, M <- 0.95 M + 0.05 G its momentum, and Nesterov's look
    ahead, W <- (1 - lr * weight_decay) W - lr * 0.2 sqrt(max(m, n)) * orthogonal(0.05 G + 0.95 M). A convolution's
    kernel is the matrix of its output channels by all else.

    Parameters
    ----------
    parameters
        Weights of two or more dimensions, in hidden layers.
    lr, weight_decay
        As of AdamW.
    dtype
        What the matrices are multiplied in; their precision hardly matters.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        for group in self.param_groups:
            # Matrices of one shape together: a few large products in place of many small ones.
            alike = defaultdict[torch.Size, list[tuple[Tensor, Tensor]]](list)
            for weight in group["params"]:
                if weight.grad is not None:
                    update = self._momentum(weight, weight.grad).flatten(1)  # (m, n)
                    alike[update.shape].append((weight, update))

            for (rows, columns), pairs in alike.items():
                updates = orthogonal(torch.stack([update for _, update in pairs]).to(self.dtype))  # (k, m, n)
                for (weight, _), update in zip(pairs, updates, strict=True):
                    weight.mul_(1.0 - group["lr"] * group["weight_decay"])
                    scale = ADAMW_RMS * max(rows, columns) ** 0.5
                    weight.add_(update.view(weight.shape).to(weight.dtype), alpha=-group["lr"] * scale)

    def _momentum(self, weight: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1.0 - MOMENTUM)
        return gradient.lerp(state["momentum"], MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (k, m, n) -> those with the same singular vectors and singular values of about one (Newton-Schulz)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.transpose(1, 2) if tall else matrices).contiguous()  # (k, r, s), r <= s
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.dtype == torch.float32 and x.shape[2] >= 2 * x.shape[1]:
        x = _factor(x @ x.transpose(1, 2)) @ x  # (k, r, s)
    else:
        for _ in range(ITERATIONS):
            square = x @ x.transpose(1, 2)  # (k, r, r)
            x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=B, alpha=C), x, beta=A)  # (k, r, s)
    return x.transpose(1, 2) if tall else x


def _factor(square: Tensor) -> Tensor:
    """What the iterations multiply a wide x by, from x x^T (k, r, r) alone: half of the work, and exact in float32.

    Each iterate is a polynomial in x x^T times x. In bfloat16 the squares of small singular values would be lost.
    """
    factor: Tensor | None = None
    for _ in range(ITERATIONS):
        step = torch.baddbmm(square, square, square, beta=B, alpha=C)  # (k, r, r)
        step.diagonal(dim1=1, dim2=2).add_(A)
        factor = step if factor is None else step @ factor  # (k, r, r)
        square = step @ square @ step  # (k, r, r)
    assert factor is not None
    return factor
