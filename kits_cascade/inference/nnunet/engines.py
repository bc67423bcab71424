"""What the networks compute with: an engine is a row of a table, times a precision; here they are chosen for a machine.

nnU-Net runs processors in single precision and GPUs in half. The engines answer as it does, but for rounding.
Nothing here loads torch where there is no GPU, so that a choice does not hold up the reading of the first case.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import util
from typing import Final

from kits_cascade.errors import EnvironmentNotReadyError, KitsCascadeError, MissingExtraError, UsageError
from kits_cascade.processor import processor_flags, processor_name, surely_no_gpu
from kits_cascade.stages import COARSE

AUTO: Final = "auto"
CPU: Final = "cpu"
TORCH, OPENVINO = "torch", "openvino"
# In bf16 the coarse stage and the encoders of U-Nets stay in single precision: a box that begins a voxel further, and
# what is rounded near the image, move masses.
FP32, BF16, FP16 = "fp32", "bf16", "fp16"


@dataclass(frozen=True)
class Engine:
    """A row: what can run a network, and where."""

    name: str
    package: str
    devices: tuple[str, ...]
    extra: str | None = None  # of ours, that brings it

    @property
    def installed(self) -> bool:
        """Whether its package is there; it is not loaded for that."""
        return util.find_spec(self.package) is not None

    def reason_against(self, device: str) -> KitsCascadeError | None:
        """Why it cannot be used here; None where it can."""
        kind = kind_of(device)
        if kind not in self.devices:
            has = ", ".join(self.devices)
            return UsageError(
                f"the engine {self.name} has the device {has}, not {kind}: take --engine torch, or --device cpu"
            )
        return None if self.installed else MissingExtraError(self.package, self.extra or self.name)


# The best first: ``auto`` takes the first that can be used.
ENGINES: Final = (
    Engine(OPENVINO, "openvino", (CPU,), extra="fast"),
    Engine(TORCH, "torch", (CPU, "cuda", "mps")),
)
ENGINE_BY_NAME: Final = {engine.name: engine for engine in ENGINES}


@dataclass(frozen=True)
class Computing:
    """An engine, its precision and its device: settled, no ``auto`` left."""

    engine: str
    precision: str
    device: str
    # Of the processor; None: as many as the process has. OpenVINO adds up in another order with another number.
    threads: int | None = field(default=None, compare=False)

    def of_stage(self, key: str) -> Computing:
        """For one stage of the cascade."""
        return replace(self, precision=FP32) if key == COARSE.key and self.precision == BF16 else self

    @property
    def kind(self) -> str:
        """The device without its number."""
        return kind_of(self.device)


def kind_of(device: str) -> str:
    """``cuda`` of ``cuda:1``."""
    return device.partition(":")[0]


def as_nnunet(device: str) -> Computing:
    """What nnU-Net itself computes with."""
    return Computing(TORCH, FP16 if kind_of(device) == "cuda" else FP32, device)


def choose_computing(engine: str, precision: str, device: str) -> Computing:
    """Engine, precision and device by name; ``auto`` takes the fastest that differs by rounding alone."""
    device = _choose_device(device)
    if engine != AUTO and engine not in ENGINE_BY_NAME:
        raise UsageError(f"there is no engine {engine!r}; there are {AUTO}, {', '.join(sorted(ENGINE_BY_NAME))}")
    rows = ENGINES if engine == AUTO else (ENGINE_BY_NAME[engine],)
    reasons = [row.reason_against(device) for row in rows]
    usable = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    if not usable:
        raise next(reason for reason in reasons if reason is not None)
    return Computing(usable[0].name, _choose_precision(precision, device), device)


def _choose_device(name: str) -> str:
    if name == CPU or (name == AUTO and surely_no_gpu()):
        return CPU
    from kits_cascade.training.devices import choose_device

    return str(choose_device(name))


def precisions(device: str) -> tuple[str, ...]:
    """Those that a device is fast in, the best first."""
    if kind_of(device) == "cuda":
        import torch

        return (FP16, BF16, FP32) if torch.cuda.is_bf16_supported() else (FP16, FP32)
    return (BF16, FP32) if kind_of(device) == CPU and multiplies_bfloat16() else (FP32,)


def multiplies_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16, as :func:`kits_cascade.training.devices.fast_bfloat16` has it."""
    flags = processor_flags()
    if flags is not None:
        return not flags.isdisjoint({"avx512_bf16", "amx_bf16"})
    import torch

    from kits_cascade.training.devices import fast_bfloat16

    return fast_bfloat16(torch.device(CPU))


def _choose_precision(name: str, device: str) -> str:
    has = precisions(device)
    if name == AUTO:
        return has[0]
    if name in has:
        return name
    if name not in (FP32, BF16, FP16):
        raise UsageError(f"there is no precision {name!r}; there are {AUTO}, {', '.join(has)} here")
    raise EnvironmentNotReadyError(
        f"{hardware(device)} is not fast in {name}; it has {', '.join(has)}: take --precision {has[0]}, or {AUTO}"
    )


def hardware(device: str) -> str:
    """The processor or GPU, as its maker calls it."""
    if kind_of(device) == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return processor_name() if kind_of(device) == CPU else device
