"""Muon: gradient descent with orthogonalized updates, for convolution weights.

Keller Jordan 2024, https://kellerjordan.github.io/posts/muon/, in the form of his airbench
(https://github.com/KellerJordan/cifar10-airbench). PyTorch's own `torch.optim.Muon` takes
matrices only.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose every update is the nearest (semi-)orthogonal matrix.

    `params` are (out, in, rows, columns); each filter of a weight is kept at length 1 on average.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.6):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    # The base class allows a closure, which nothing here uses.
    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take one step along the gradients of the parameters."""
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].mul_(group["momentum"]).add_(weight.grad)
                direction = weight.grad + group["momentum"] * momentum
                weight.mul_(len(weight) ** 0.5 / weight.norm())
                step = orthogonalize(direction.reshape(len(weight), -1)).view_as(weight)
                weight.add_(step, alpha=-group["lr"])


def orthogonalize(matrix: Tensor, iterations: int = 3) -> Tensor:
    """Move all singular values of `matrix` toward 1 by a rough Newton-Schulz iteration.

    The coefficients are Keller Jordan's: they trade exactness for steepness at zero.
    """
    # Many CPUs have no bfloat16, and there these products are a small part of the work.
    result = matrix.bfloat16() if matrix.is_cuda else matrix
    tall = len(result) > result.shape[1]
    if tall:
        result = result.T
    result = result / (result.norm() + 1e-7)
    for _ in range(iterations):
        gram = result @ result.T
        result = 3.4445 * result + (-4.7750 * gram + 2.0315 * gram @ gram) @ result
    return (result.T if tall else result).to(matrix.dtype)
