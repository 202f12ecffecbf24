"""Adam in the eigenbasis of Shampoo's preconditioner (SOAP; Vyas et al., arXiv 2409.11321), for small networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

BETAS = (0.95, 0.97)
SHAMPOO_BETA = 0.97
EPSILON = 1e-8
LARGEST_WORK = 1 << 28  # multiplications; a side that costs more to turn is left as it is: first layers of 9 elements
REFRESH = 10  # steps between two updates of the eigenbases


class Soap:
    """Optimise a fixed list of tensors; all that a restart needs is in `state`, by group of tensors of one shape.

    Parameters
    ----------
    parameters
        Leaf tensors; of more than two dimensions, the leading ones number matrices, which are independent but for those
        of four dimensions: the second then numbers matrices with the same inputs.
    weight_decay
        Decoupled decay per unit of learning rate, for matrices that ask for it.
    decayed
        Whether each parameter decays.
    rotate
        False: plain AdamW.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        weight_decay: float,
        decayed: Sequence[bool],
        *,
        rotate: bool = True,
    ) -> None:
        self.parameters = list(parameters)
        self.weight_decay = weight_decay
        self.decayed = list(decayed)
        self.rotate = rotate
        self.steps = 0
        alike: dict[torch.Size, list[int]] = {}
        for number, parameter in enumerate(self.parameters):
            alike.setdefault(parameter.shape, []).append(number)
        self._groups = list(alike.values())  # tensors of one shape move together: small ones cost calls, not arithmetic
        self.state: list[dict[str, torch.Tensor]] = [{} for _ in self._groups]

    def reset(self) -> None:
        """Forget all that was gathered from gradients."""
        self.steps = 0
        self.state = [{} for _ in self._groups]

    def step(self, gradients: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Move the parameters once.

        Parameters
        ----------
        gradients
            Of the loss, in the order of the parameters.
        learning_rate
            Size of the step.
        """
        self.steps += 1
        with torch.no_grad():
            for group, state in zip(self._groups, self.state, strict=True):
                rotate = self.rotate and gradients[group[0]].dim() >= 2
                moves = self._direction(torch.stack([gradients[number] for number in group]), state, rotate=rotate)
                for number, move in zip(group, moves, strict=True):
                    parameter = self.parameters[number]
                    if self.decayed[number] and self.weight_decay:
                        parameter.mul_(1.0 - learning_rate * self.weight_decay)
                    parameter.add_(move, alpha=-learning_rate)

    def _direction(self, gradient: torch.Tensor, state: dict[str, torch.Tensor], *, rotate: bool) -> torch.Tensor:
        """Compute the preconditioned, bias-corrected direction."""
        if not state:
            # contiguous, as they are after a restart: other strides may give other bits
            state["mean"] = torch.zeros_like(gradient, memory_format=torch.contiguous_format)
            state["square"] = torch.zeros_like(gradient, memory_format=torch.contiguous_format)
        if rotate:
            self._update_bases(gradient, state)
            gradient = _rotate(gradient, state, back=False)
        state["mean"].lerp_(gradient, 1.0 - BETAS[0])  # both moments in the eigenbasis, where there is one
        state["square"].lerp_(gradient.square(), 1.0 - BETAS[1])
        mean = state["mean"] / (1.0 - BETAS[0] ** self.steps)
        move = mean / ((state["square"] / (1.0 - BETAS[1] ** self.steps)).sqrt() + EPSILON)
        return _rotate(move, state, back=True) if rotate else move

    def _update_bases(self, gradient: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        """Follow the covariance of the gradient's rows and columns, and now and then its eigenvectors."""
        for side, dim in (("left", -2), ("right", -1)):
            if gradient.shape[dim] == 1 or gradient.numel() * gradient.shape[dim] > LARGEST_WORK:
                continue
            product = gradient @ gradient.mT if side == "left" else gradient.mT @ gradient
            if side == "left" and gradient.dim() == 5:
                product = product.sum(-3, keepdim=True)  # of the same inputs: one basis serves all
            if side not in state:
                state[side] = product.clone()
                state[side + "_axes"] = torch.linalg.eigh(_steadied(product))[1].flip(-1).contiguous()
                continue
            state[side].lerp_(product, 1.0 - SHAMPOO_BETA)
            if self.steps % REFRESH == 0 or self.steps in (2, 4):
                _refresh(state, side, dim)


def _refresh(state: dict[str, torch.Tensor], side: str, dim: int) -> None:
    """Take one step of orthogonal iteration towards the eigenvectors, keeping them sorted."""
    axes, product = state[side + "_axes"], state[side]
    turned = product @ axes
    order = (axes * turned).sum(-2).argsort(dim=-1, descending=True)
    expanded = order[..., None, :].expand_as(turned)
    state[side + "_axes"] = torch.linalg.qr(turned.gather(-1, expanded))[0].contiguous()
    change = state[side + "_axes"].mT @ axes
    mean = state["mean"]
    state["mean"] = (change @ mean if dim == -2 else mean @ change.mT).contiguous()
    square = state["square"]
    index = order[..., :, None].expand_as(square) if dim == -2 else order[..., None, :].expand_as(square)
    state["square"] = square.gather(dim, index)


def _steadied(product: torch.Tensor) -> torch.Tensor:
    """Add a little to the diagonal, so that an eigensolver meets no zero matrix."""
    size = product.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp(min=1e-20)
    return product + 1e-6 * size * torch.eye(product.shape[-1], dtype=product.dtype, device=product.device)


def _rotate(x: torch.Tensor, state: dict[str, torch.Tensor], *, back: bool) -> torch.Tensor:
    """Turn a matrix into the eigenbasis, or back."""
    left, right = state.get("left_axes"), state.get("right_axes")
    if left is not None:
        x = (left if back else left.mT) @ x
    if right is not None:
        x = x @ (right.mT if back else right)
    return x
