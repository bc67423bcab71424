"""The surface loss, the boundary loss and their schedule: plain torch, nothing of nnU-Net.

The soft surface of a map ``x`` is what an erosion by one voxel takes away, ``x - E(x)``. The overlap of the predicted
and the true surface, each dilated by about 1.1 mm, is measured as a Dice coefficient. The challenge's winning cascade
names such a loss without giving its formula, weight or schedule: all three are this project's own choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

SURFACE_TOLERANCE_MM: Final = 1.1  # the challenge's surface tolerances are 1.03, 1.13 and 1.15 mm
WARM_UP: Final = 0.1  # part of the epochs without the extra term
RISE: Final = 0.2  # part of the epochs over which its weight rises
EPS: Final = 1.0

Gather = Callable[[Tensor], Tensor]


def surface_radius(spacing: Sequence[float], tolerance_mm: float = SURFACE_TOLERANCE_MM) -> tuple[int, ...]:
    """Radius of the dilation in voxels per axis: the tolerance, but at least one voxel."""
    return tuple(max(1, round(tolerance_mm / size)) for size in spacing)


def ramp(epoch: int, epochs: int) -> float:
    """How much of the extra term's weight applies in an epoch: 0 at first, then rising linearly, then 1."""
    return min(1.0, max(0.0, (epoch - WARM_UP * epochs) / (RISE * epochs)))


class AxisMax(torch.autograd.Function):
    """Sliding maximum along one axis, nothing outside the border, one byte per voxel kept for the backward pass.

    Three of them make a cubic max-pool. torch's own pools keep an 8-byte index and their input, and on CUDA they add up
    gradients in no fixed order, so that a continued training would not repeat the one that ran through.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int, radius: int) -> Tensor:
        """Maximum over 2 * radius + 1 voxels; of equals the centre wins, then the first found."""
        out = x.clone()
        picked = torch.zeros_like(x, dtype=torch.uint8)
        for code, there, here in _shifts(x.shape[axis], radius):
            neighbour, best = x.narrow(axis, *there), out.narrow(axis, *here)
            chosen = picked.narrow(axis, *here)
            # Later codes are larger, so the maximum of the codes is the last one that was better.
            torch.maximum(chosen, (neighbour > best).view(torch.uint8).mul_(code), out=chosen)
            torch.maximum(best, neighbour, out=best)
        ctx.save_for_backward(picked)
        ctx.axis, ctx.radius = axis, radius
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Each gradient goes to the voxel that was the maximum."""
        (picked,) = ctx.saved_tensors
        (grad,) = grads
        out = grad * (picked == 0)
        for code, there, here in _shifts(grad.shape[ctx.axis], ctx.radius):
            share = grad.narrow(ctx.axis, *here) * (picked.narrow(ctx.axis, *here) == code)
            out.narrow(ctx.axis, *there).add_(share)
        return out, None, None


def _shifts(size: int, radius: int) -> list[tuple[int, tuple[int, int], tuple[int, int]]]:
    """Code, (start, length) of the neighbour and (start, length) of the voxel, for each neighbour inside the array."""
    offsets = [o for k in range(1, radius + 1) for o in (-k, k)]
    return [
        (code, (max(0, offset), size - abs(offset)), (max(0, -offset), size - abs(offset)))
        for code, offset in enumerate(offsets, 1)
        if abs(offset) < size
    ]


def soft_dilate(x: Tensor, radius: Sequence[int]) -> Tensor:
    """Maximum over a box of 2 * radius + 1 voxels; ``x`` is batch, channel, then space."""
    for axis, r in enumerate(radius, 2):
        if r:
            x = cast("Tensor", AxisMax.apply(x, axis, r))
    return x


def soft_surface(x: Tensor) -> Tensor:
    """What an erosion by one voxel removes. The border of the patch is no surface: an organ may be cut there."""
    return x + soft_dilate(-x, (1,) * (x.ndim - 2))


@torch.no_grad()
def hard_dilate(mask: Tensor, radius: Sequence[int]) -> Tensor:
    """The same for a bool tensor; one byte per voxel and much faster."""
    out = mask.view(torch.uint8).clone()
    for axis, r in enumerate(radius, 2):
        source = out.clone()
        for _, there, here in _shifts(out.shape[axis], r):
            target = out.narrow(axis, *here)
            torch.maximum(target, source.narrow(axis, *there), out=target)
    return out.view(torch.bool)


@torch.no_grad()
def hard_surface(mask: Tensor) -> Tensor:
    """Surface voxels of a bool tensor."""
    return mask & hard_dilate(~mask, (1,) * (mask.ndim - 2))


def full_precision(x: Tensor) -> Tensor:
    """At least float32: sums over a patch overflow in half precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def probabilities(logits: Tensor, regions: bool) -> Tensor:
    """Region heads: a sigmoid each. Label heads: softmax, background dropped."""
    logits = full_precision(logits)
    return torch.sigmoid(logits) if regions else torch.softmax(logits, 1)[:, 1:]


@torch.no_grad()
def truth_and_valid(
    target: Tensor, channels: int, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor | None]:
    """The target as one bool channel per foreground class, and where it may be used (None: everywhere)."""
    if regions:
        target = target.bool()
        return (target[:, :-1], ~target[:, -1:]) if ignore_label is not None else (target, None)
    labels = torch.arange(1, channels + 1, device=target.device, dtype=target.dtype)
    truth = target == labels.view(1, -1, *([1] * (target.ndim - 2)))
    return truth, None if ignore_label is None else target != ignore_label


class SurfaceOverlapLoss(nn.Module):
    """One minus the soft Dice of predicted and true surface, averaged over the channels that have a surface."""

    def __init__(
        self,
        radius: Sequence[int],
        *,
        regions: bool,
        ignore_label: int | None = None,
        batch_dice: bool = False,
        gather: Gather | None = None,
    ) -> None:
        super().__init__()
        self.radius = tuple(radius)
        self.regions = regions
        self.ignore_label = ignore_label
        self.batch_dice = batch_dice
        self.gather = gather  # sums over all processes, with gradient; only used with batch_dice

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """``logits`` as they come from the network's finest output, ``target`` as nnU-Net's loader gives it."""
        with torch.autocast(logits.device.type, enabled=False):
            p = probabilities(logits, self.regions)
            truth, valid = truth_and_valid(target, p.shape[1], self.regions, self.ignore_label)
            loss: Tensor = self.overlap_loss(p, truth, valid)
            return loss

    def overlap_loss(self, p: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss of probabilities ``p`` against bool channels ``truth``, both batch, channel, then space."""
        predicted = soft_dilate(soft_surface(p), self.radius)
        real = hard_dilate(hard_surface(truth), self.radius)
        if valid is not None:
            # Near an ignored voxel neither surface is known: the structuring elements would reach into it.
            usable = ~hard_dilate(~valid, [r + 1 for r in self.radius])
            predicted, real = predicted * usable, real & usable
        space = tuple(range(2, p.ndim))
        sums = torch.stack([(predicted * real).sum(space), predicted.sum(space), real.sum(space).to(p.dtype)])
        if self.batch_dice:
            sums = (sums if self.gather is None else self.gather(sums)).sum(1)
        both, ours, theirs = sums
        score = (2 * both + EPS) / (ours + theirs + EPS)
        weight = (theirs > 0).to(p.dtype)
        loss: Tensor = (weight * (1 - score)).sum() / weight.sum().clamp_min(1)
        return loss


class BoundaryLoss(nn.Module):
    """Mean of probability times signed distance to the true surface; the distances come with the batch."""

    def __init__(self, *, regions: bool) -> None:
        super().__init__()
        self.regions = regions

    def forward(self, logits: Tensor, distance: Tensor) -> Tensor:
        """``distance`` has one channel per foreground class: mm, negative inside, 0 where nothing is to be learned."""
        with torch.autocast(logits.device.type, enabled=False):
            p = probabilities(logits, self.regions)
            loss: Tensor = (p * distance.to(p.dtype)).mean()
            return loss


class FocalTverskyLoss(nn.Module):
    """(1 - Tversky index) to a power, averaged over classes: false negatives weigh more than false positives.

    Abraham and Khan (2019); alpha weighs false negatives, beta false positives.
    """

    def __init__(
        self,
        *,
        regions: bool,
        ignore_label: int | None = None,
        alpha: float = 0.7,
        beta: float = 0.3,
        power: float = 0.75,
    ) -> None:
        super().__init__()
        self.regions, self.ignore_label = regions, ignore_label
        self.alpha, self.beta, self.power = alpha, beta, power

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """``logits`` as they come from the network, ``target`` as nnU-Net's loader gives it."""
        with torch.autocast(logits.device.type, enabled=False):
            p = probabilities(logits, self.regions)
            truth, valid = truth_and_valid(target, p.shape[1], self.regions, self.ignore_label)
            if valid is not None:
                p, truth = p * valid, truth & valid
            space = (0, *range(2, p.ndim))
            both = (p * truth).sum(space)
            missed, wrong = truth.sum(space) - both, p.sum(space) - both
            index = (both + EPS) / (both + self.alpha * missed + self.beta * wrong + EPS)
            # Its slope has no bound where the index is 1.
            loss: Tensor = ((1 - index).clamp_min(1e-6) ** self.power).mean()
            return loss


class WithExtraTerm(nn.Module):
    """nnU-Net's own loss plus ``weight`` times an extra term on the finest output.

    The trainer sets ``weight`` at the start of each epoch. The extra term reads ``reference`` where it is set (the
    distances of the batch), the finest target otherwise.
    """

    def __init__(self, base: nn.Module, extra: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.extra = extra
        self.weight = 0.0
        self.reference: Tensor | None = None

    def forward(self, output: Any, target: Any) -> Tensor:
        """With deep supervision both are lists, finest first."""
        loss = cast("Tensor", self.base(output, target))
        if self.weight == 0:
            return loss
        finest = output[0] if isinstance(output, (list, tuple)) else output
        truth = target[0] if isinstance(target, (list, tuple)) else target
        extra = cast("Tensor", self.extra(finest, truth if self.reference is None else self.reference))
        return loss + self.weight * extra
