"""Muon (Jordan et al. 2024): the momentum of each weight matrix is made orthogonal before it is applied, so that all
directions of a matrix are learned at one speed. In equal time it halves the Fréchet distance of short runs: see
docs/recipes.md.

What is no matrix (biases, gains of norms) is AdamW's. A convolution's weights (out, in, k, k) are the matrix
(out, in k k).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

# Of the quintic polynomial that moves every singular value towards 1 (Jordan et al. 2024): in five steps all of
# 1e-3..1 end in about 0.7..1.2, which serves as well as 1.
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
# Of five steps: how many are multiplied with each other before they are applied. Each enlarges what rounding has left
# of x x^T below its largest value: after three in bf16 a matrix whose singular values are 1 and 0.05 ends in thousands,
# after two where fp32 takes it.
_ITERATIONS = {torch.float32: (5,), torch.bfloat16: (2, 2, 1)}
# Of an update's entries, as AdamW's usually have it, so that both take the same learning rate and weight decay (Liu et
# al. 2025, Muon is Scalable for LLM Training, Eq. 4).
_ROOT_MEAN_SQUARE = 0.2


class Muon(torch.optim.Optimizer):
    """lr, weight_decay: of all, as AdamW takes them. momentum: of matrices, in Nesterov's form. betas, eps: the rest's.
    compute_dtype: in which matrices are made orthogonal, float32 or bfloat16, at half the time.

    fused: as torch's fused optimisers it leaves out the step where its attribute `found_inf`, a tensor on the device,
    is 1, without the host having to know.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        fused: bool = True,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "fused": fused})
        self.found_inf: Tensor | None = None
        self.compute_dtype = compute_dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if not trained:
                continue
            left_out = torch.zeros((), device=trained[0].device) if self.found_inf is None else self.found_inf
            self._step_matrices([p for p in trained if is_matrix(p)], group, left_out)
            self._step_others([p for p in trained if not is_matrix(p)], group, left_out)
        return loss

    def _step_matrices(self, params: list[Tensor], group: dict[str, Any], left_out: Tensor) -> None:
        """Those of one shape together, as a batch: on a GPU small matrices are no work, and to launch each is."""
        keep, by_shape = 1 - left_out, dict[tuple[int, ...], list[Tensor]]()
        for p in params:
            by_shape.setdefault(tuple(p.shape), []).append(p)
        for shape, alike in by_shape.items():
            gradients = torch.stack([p.grad.flatten(1) for p in alike if p.grad is not None])
            gradients = torch.where(left_out > 0, 0.0, gradients)  # they may hold what is no number
            buffers = [self._buffer(p) for p in alike]
            torch._foreach_mul_(buffers, torch.where(left_out > 0, 1.0, group["momentum"]))
            torch._foreach_add_(buffers, _apart(gradients, shape))
            ahead = gradients.add_(torch.stack([b.flatten(1) for b in buffers]), alpha=group["momentum"])
            updates = orthogonal(ahead, self.compute_dtype).to(alike[0].dtype)
            size = group["lr"] * _ROOT_MEAN_SQUARE * max(updates.shape[1:]) ** 0.5
            torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"] * keep)
            torch._foreach_add_(alike, _apart(updates.mul_(-size * keep), shape))

    def _step_others(self, params: list[Tensor], group: dict[str, Any], left_out: Tensor) -> None:
        if not params:
            return
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), device=p.device)
                self.state[p] |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        names = ("exp_avg", "exp_avg_sq", "step")
        averages, squares, steps = ([self.state[p][name] for p in params] for name in names)
        adamw(
            params, [p.grad for p in params], averages, squares, [], steps,  # type: ignore[misc]
            fused=True, found_inf=left_out, amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1],
            lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip

    def _buffer(self, p: Tensor) -> Tensor:
        if not self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return self.state[p]["momentum_buffer"]


def _apart(stacked: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    """(N, rows, columns) -> N tensors of the parameters' shape."""
    return [matrix.view(shape) for matrix in stacked]


def is_matrix(p: Tensor) -> bool:
    """Whether Muon moves it: (out, ...) with more than one row and column."""
    return p.ndim > 1 and len(p) > 1 and p[0].numel() > 1


def orthogonal(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N, rows, columns) -> the nearest matrices with orthonormal rows or columns, roughly, in `dtype`: singular values
    of about 0.7 to 1.2, by the Newton-Schulz iteration of Jordan et al. (2024).

    Each step multiplies x by a polynomial of x x^T. Some of them are multiplied first, which are square matrices of the
    shorter side, and then x: of a convolution, nine times as wide as high, at a third of the cost.
    """
    a, b, c = _POLYNOMIAL
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).float()
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for count in _ITERATIONS[dtype]:
        gram, product = x @ x.mT, None
        for left in reversed(range(count)):
            step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            step.diagonal(dim1=1, dim2=2).add_(a)
            product = step if product is None else step @ product
            if left:
                gram = step @ gram @ step
        x = product @ x
    return (x if wide else x.mT).contiguous()
