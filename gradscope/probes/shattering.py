"""Probes: what the readings of a training cannot tell, asked of a net on one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradscope.errors import GradscopeError

SHATTERED = 0.1
"""Cosine between the gradients of an input and its neighbour, below which they are shattered."""


@dataclass(frozen=True)
class Shattering:
    """How alike the input gradients of neighbouring inputs are.

    Attributes
    ----------
    cosine : float
        Mean over the samples of the cosine between dL/dx at x and at a neighbour of x: 1 alike,
        0 like noise.
    verdict : str
        `shattered` where `cosine` < 0.1, else `healthy`.
    sentence : str
    cosines : Tensor, shape (n_samples,), float32, on the CPU
        NaN for a sample whose gradient is 0.
    """

    cosine: float
    verdict: str
    sentence: str
    cosines: Tensor

    def __str__(self) -> str:
        """Return the sentence."""
        return self.sentence


def shattering(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    batch: Sequence[Tensor],
    *,
    distance: float = 0.1,
) -> Shattering:
    """Say whether the gradient of a net changes like noise from an input to its neighbour.

    Parameters
    ----------
    model : nn.Module
        In the mode, training or evaluation, in which it is to be asked. Its gradients, buffers
        and random state are left as they are.
    loss_fn : callable
        `loss_fn(model(x), y)` -> loss, as in training.
    batch : (x, y)
        Inputs, floating point, shape (n_samples, ...), and their targets.
    distance : float
        Length of the random step from each input to its neighbour, as a share of the input's.

    Returns
    -------
    Shattering

    Raises
    ------
    GradscopeError
        If `batch` is no pair of tensors, its inputs are not floating point, or the loss does not
        depend on them.

    Notes
    -----
    Source: Balduzzi et al. 2017, The Shattered Gradients Problem: in deep plain nets the gradients
    of neighbouring inputs are as little correlated as white noise. Theirs is the autocorrelation
    along a line of inputs; this is its value at one distance.
    """
    x, y = _checked(batch)
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(
        x
    )
    step *= distance * (_lengths(x) / _lengths(step)).view(-1, *[1] * (x.dim() - 1))
    devices = [x.device] if x.device.type == "cuda" else []
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        gradients = []
        for inputs in (x, x + step):
            with torch.random.fork_rng(devices), torch.enable_grad():  # the same dropout for both
                gradients.append(_input_gradient(model, loss_fn, inputs, y))
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    here, there = (gradient.flatten(1).double() for gradient in gradients)
    lengths = _lengths(here) * _lengths(there)
    cosines = torch.where(lengths > 0, (here * there).sum(1) / lengths, torch.nan).float().cpu()
    cosine = float(cosines.nanmean())
    shattered = cosine < SHATTERED
    sentence = (
        f"The gradients of inputs {distance:.0%} apart have a mean cosine of {cosine:.2f}: "
        + ("like noise, shattered." if shattered else "not shattered.")
    )
    return Shattering(cosine, "shattered" if shattered else "healthy", sentence, cosines)


def _checked(batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, refusing what is none."""
    if isinstance(batch, Tensor) or len(batch) != 2:
        raise GradscopeError("shattering() takes a batch (inputs, targets), a pair of tensors")
    x, y = batch
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise GradscopeError(
            f"shattering() takes floating-point inputs, got {kind}; for tokens pass their"
            " embeddings and the rest of the model"
        )
    return x.detach(), y


def _lengths(x: Tensor) -> Tensor:
    """Return the L2 norm of each sample, shape (n_samples,)."""
    lengths: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return lengths


def _input_gradient(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """Return dL/dx, the shape of x."""
    x = x.clone().requires_grad_()
    loss = loss_fn(model(x), y)
    if not loss.requires_grad:
        raise GradscopeError("shattering(): the loss does not depend on the inputs; see detach()")
    (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    if gradient is None:
        raise GradscopeError("shattering(): the loss does not depend on the inputs; see detach()")
    return gradient
