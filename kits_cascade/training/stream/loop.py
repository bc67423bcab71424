"""Training of one network on a pool, for a set time: Dice and cross-entropy, AdamW, an average of its weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from kits_cascade.files import atomic_path
from kits_cascade.training.devices import half_precision
from kits_cascade.training.stream.crops import Cropper
from kits_cascade.training.stream.pool import PooledCase
from kits_cascade.training.stream.spoilt_prior import Prior

Say = Callable[[str], None]
_KEEP: Final = 0.997  # of the average, at each step
_SAVE_S: Final = 60.0
_SAY_S: Final = 15.0
_CLIP: Final = 12.0


@dataclass(frozen=True)
class Course:
    """How long, how fast, and on how much at once."""

    seconds: float
    batch: int = 8
    rate: float = 2e-3
    decay: float = 1e-2
    most_steps: int | None = None


def truth_of(labels: Tensor, regions: tuple[tuple[int, ...], ...]) -> Tensor:
    """One plane for each region (batch, regions, z, y, x)."""
    return torch.stack([torch.isin(labels, torch.tensor(r, device=labels.device)) for r in regions], 1).float()


def soft_dice(share: Tensor, truth: Tensor) -> Tensor:
    """Over the whole batch, so that crops without a lesion count as well."""
    axes = (0, 2, 3, 4)
    overlap, total = (share * truth).sum(axes), share.sum(axes) + truth.sum(axes)
    return ((2 * overlap + 1) / (total + 1)).mean()


def loss_of(logits: Tensor, truth: Tensor) -> Tensor:
    """``truth`` has one plane less than ``logits`` where classes exclude each other, and as many where they do not."""
    if logits.shape[1] == truth.shape[1]:
        entropy = binary_cross_entropy_with_logits(logits, truth)
        return 2 * entropy + 1 - soft_dice(torch.sigmoid(logits), truth)
    target = truth[:, 0].long()
    return cross_entropy(logits, target) + 1 - soft_dice(torch.softmax(logits, 1)[:, 1:], truth)


def _each_once(network: nn.Module) -> dict[str, Tensor]:
    """A network's tensors under one name each: nnU-Net's hold most of theirs under several."""
    found: dict[int, str] = {}
    state: dict[str, Tensor] = network.state_dict()
    for name, tensor in state.items():
        found.setdefault(tensor.data_ptr(), name)
    return {name: state[name] for name in found.values()}


class Training:
    """One network in training; its state goes to a file, and on from there."""

    def __init__(
        self,
        network: nn.Module,
        regions: tuple[tuple[int, ...], ...],
        cropper: Cropper,
        course: Course,
        state_file: Path,
        prior: Prior | None = None,
    ) -> None:
        self.network, self.regions, self.course = network, regions, course
        self._cropper, self._file, self._prior = cropper, state_file, prior
        self._average = {name: tensor.clone() for name, tensor in _each_once(network).items()}
        self._optimizer = torch.optim.AdamW(network.parameters(), lr=course.rate, weight_decay=course.decay)
        self._spent, self._step = 0.0, 0
        if state_file.is_file():
            self._resume()

    def averaged(self) -> nn.Module:
        """A network with the averaged weights."""
        network = deepcopy(self.network)
        network.load_state_dict(self._average, strict=False)
        return network

    def run(self, cases: list[PooledCase], say: Say) -> None:
        """Train until the time is over."""
        began, saved, told = time.monotonic() - self._spent, time.monotonic(), -math.inf
        while not self._is_over():
            loss, dice = self._one_step(cases)
            self._spent = time.monotonic() - began
            if self._spent - told > _SAY_S or self._is_over():
                told = self._spent
                say(self._line(len(cases), loss, dice))
            if time.monotonic() - saved > _SAVE_S:
                saved = time.monotonic()
                self.save()
        self.save()

    def _line(self, cases: int, loss: Tensor, dice: Tensor) -> str:
        shown = " ".join(f"{float(value):.3f}" for value in dice)
        return f"{self._spent:5.0f} s  step {self._step:6d}  cases {cases:4d}  loss {float(loss):.3f}  dice {shown}"

    def _is_over(self) -> bool:
        most = self.course.most_steps
        return self._spent >= self.course.seconds or (most is not None and self._step >= most)

    def _one_step(self, cases: list[PooledCase]) -> tuple[Tensor, Tensor]:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        image, labels = self._cropper.batch(cases, self.course.batch)
        truth = truth_of(labels, self.regions)
        if self._prior is not None:
            image = torch.cat([image, self._prior.planes(image, labels)], 1)
        image = image.to(memory_format=torch.channels_last_3d)
        with half_precision(image.device):
            logits = self.network(image).float()
        loss = loss_of(logits, truth)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        self._optimizer.step()
        self._step += 1
        self._follow()
        return loss.detach(), self._hard_dice(logits.detach(), truth)

    def _rate(self) -> float:
        done = self._spent / self.course.seconds
        if self.course.most_steps:
            done = max(done, self._step / self.course.most_steps)
        warm = min(1.0, (self._step + 1) / 100)
        return self.course.rate * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, done))) / 2)

    def _follow(self) -> None:
        keep = min(_KEEP, (1 + self._step) / (10 + self._step))
        now = _each_once(self.network)
        floats = [name for name, tensor in now.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self._average[n] for n in floats], [now[n] for n in floats], 1 - keep)

    @staticmethod
    def _hard_dice(logits: Tensor, truth: Tensor) -> Tensor:
        found = (logits > 0).float() if logits.shape[1] == truth.shape[1] else logits.argmax(1, keepdim=True).float()
        axes = (0, 2, 3, 4)
        return 2 * (found * truth).sum(axes) / (found.sum(axes) + truth.sum(axes)).clamp(min=1)

    # --- its file

    def save(self) -> None:
        """Everything that going on needs."""
        state = {
            "network": self.network.state_dict(),
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
            "spent": self._spent,
            "step": self._step,
        }
        with atomic_path(self._file) as temporary, temporary.open("wb") as stream:
            torch.save(state, stream)

    def _resume(self) -> None:
        device = next(self.network.parameters()).device
        state: dict[str, Any] = torch.load(self._file, map_location=device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._average = state["average"]
        self._spent, self._step = state["spent"], state["step"]
