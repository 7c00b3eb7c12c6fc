"""Curvature as linear operators: Hessian, Gauss–Newton, second moment of gradients; a product, not a matrix.

A product takes one vector (parameters,) or several (k, parameters), and gives as many.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.landscapes.landscape import Landscape, ModelLandscape


class Operator:
    """A symmetric linear map of parameter space.

    Args:
        product: V (k, parameters) to (k, parameters).
        like: a vector of its kind: dimension, dtype, device.
        title: what it is, in words.
    """

    def __init__(self, product: Callable[[Tensor], Tensor], like: Tensor, title: str) -> None:
        self._product, self.like, self.title = product, like, title
        self.products = 0
        """Products with one vector made so far."""

    @property
    def dim(self) -> int:
        """Number of parameters."""
        return self.like.shape[-1]

    def __call__(self, vectors: Tensor) -> Tensor:
        """The products with one vector or several."""
        rows = vectors.reshape(-1, self.dim)
        self.products += len(rows)
        return self._product(rows).reshape(vectors.shape)


def hessian(landscape: Landscape, x: Any = None) -> Operator:
    """H = ∇²L at a point (the start when None): by differentiating the gradient, whose graph is kept, once more.

    Raises:
        ValueError: when the loss is not twice differentiable there.
    """
    leaf = landscape.point(x).unsqueeze(0).clone().requires_grad_()
    with torch.enable_grad():
        loss = landscape(leaf)
        gradient = _derivative(loss.sum(), leaf, landscape)
    if not gradient.requires_grad:
        raise _rough(landscape, "its gradient does not depend on the parameters")

    def product(vectors: Tensor) -> Tensor:
        return torch.cat([_again(gradient, leaf, v.unsqueeze(0), landscape) for v in vectors])

    return Operator(product, leaf.detach()[0], f"Hessian of {landscape.title}")


def _derivative(loss: Tensor, leaf: Tensor, landscape: Landscape) -> Tensor:
    try:
        return torch.autograd.grad(loss, leaf, create_graph=True)[0]
    except RuntimeError as error:
        raise _rough(landscape, str(error)) from error


def _again(gradient: Tensor, leaf: Tensor, vector: Tensor, landscape: Landscape) -> Tensor:
    try:
        found = torch.autograd.grad(gradient, leaf, vector, retain_graph=True, materialize_grads=True)[0]
    except RuntimeError as error:
        raise _rough(landscape, str(error)) from error
    return found.detach()


def _rough(landscape: Landscape, why: str) -> ValueError:
    return ValueError(
        f"expected a loss that can be differentiated twice, got {landscape.title}: {why.splitlines()[0]}; "
        "use operations with a second derivative (no custom backward, no in-place or detached part), or gauss_newton"
    )


def gauss_newton(landscape: Landscape, x: Any = None) -> Operator:
    """G = mean over samples of Jᵀ ∇²ℓ J, J the derivative of the outputs, ∇²ℓ that of the sample's loss in them.

    The Hessian without the second derivative of the network: positive semi-definite where ℓ is convex in the outputs.

    Raises:
        ValueError: for a landscape that is not of a model.
    """
    if not isinstance(landscape, ModelLandscape):
        raise ValueError(f"expected the loss of a model, which has outputs, got {landscape.title}; use hessian")
    leaf = landscape.point(x).unsqueeze(0).clone().requires_grad_()
    with torch.enable_grad():
        outputs = landscape.outputs(leaf)
        # Jᵀ u is linear in u: differentiated in u it gives J v, with one graph for all products.
        dual = torch.zeros_like(outputs, requires_grad=True)
        back = torch.autograd.grad(outputs, leaf, dual, create_graph=True)[0]
        ends = outputs.detach().requires_grad_()
        slope = torch.autograd.grad(landscape.loss(ends, landscape.targets).sum(), ends, create_graph=True)[0]

    def product(vectors: Tensor) -> Tensor:
        found = []
        for v in vectors:
            forward = torch.autograd.grad(back, dual, v.unsqueeze(0), retain_graph=True)[0]
            curved = torch.autograd.grad(slope, ends, forward, retain_graph=True, materialize_grads=True)[0]
            found.append(torch.autograd.grad(outputs, leaf, curved, retain_graph=True)[0].detach())
        return torch.cat(found)

    return Operator(product, leaf.detach()[0], f"Gauss–Newton matrix of {landscape.title}")


def second_moment(landscape: Landscape, x: Any = None) -> Operator:
    """M = mean over samples of g gᵀ, g the gradient of a sample's loss: (1/n) Gᵀ G with G never formed."""
    leaf = landscape.point(x).unsqueeze(0).clone().requires_grad_()
    with torch.enable_grad():
        each = landscape.each(leaf)
        dual = torch.zeros_like(each, requires_grad=True)
        back = torch.autograd.grad(each, leaf, dual, create_graph=True)[0]

    def product(vectors: Tensor) -> Tensor:
        found = []
        for v in vectors:
            slopes = torch.autograd.grad(back, dual, v.unsqueeze(0), retain_graph=True)[0]
            found.append(torch.autograd.grad(each, leaf, slopes / each.shape[-1], retain_graph=True)[0].detach())
        return torch.cat(found)

    return Operator(product, leaf.detach()[0], f"second moment of the gradients of {landscape.title}")


def preconditioned(operator: Operator, diagonal: Tensor) -> Operator:
    """D^(-1/2) A D^(-1/2) for a positive diagonal D (parameters,): for Adam D = √v̂ + eps, what its steps see of A.

    It has the eigenvalues of D⁻¹ A. Source: Cohen et al. 2022, arXiv:2207.14484, section 3.
    """
    if bool((diagonal <= 0).any()):
        raise ValueError("expected a positive diagonal, got one with values of 0 or below")
    root = diagonal.to(operator.like).rsqrt()
    return Operator(lambda vectors: root * operator(root * vectors), operator.like, f"preconditioned {operator.title}")


def dense(operator: Operator) -> Tensor:
    """The whole matrix (parameters, parameters): for small ones and as an oracle."""
    return operator(torch.eye(operator.dim, dtype=operator.like.dtype, device=operator.like.device))
