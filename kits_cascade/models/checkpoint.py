"""Checkpoints and plans as nnU-Net writes them, read so that nothing in them is run.

nnU-Net itself unpickles checkpoints without limits, and looks classes up by the names in plans.json and calls them:
either would let a downloaded model run any code.
"""

from __future__ import annotations

import pydoc
import re
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import MissingExtraError, ModelError
from kits_cascade.files import atomic_path, read_json

# What prediction needs of a checkpoint, with nnU-Net's predictor too.
_KEPT: Final = ("network_weights", "trainer_name", "inference_allowed_mirroring_axes", "current_epoch")
_KEPT_INIT: Final = ("configuration", "fold")
_SLACK: Final = 1 << 20

# The networks that plans may name: nnU-Net's, our own (whose arguments are called as nnU-Net's), and MONAI's.
_NETWORKS: Final = re.compile(
    r"(dynamic_network_architectures\.architectures|kits_cascade\.training\.networks)\.\w+\.\w+"
    r"|monai\.networks\.nets\.(\w+\.)?\w+"
)
_LAYERS: Final = re.compile(r"torch\.nn\.(modules\.\w+\.)?\w+|dynamic_network_architectures\.building_blocks\.\w+\.\w+")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU: tensors and plain values, or an error; no code in it is run."""
    import torch

    _check_archive(path)
    try:
        with torch.serialization.safe_globals(_allowed()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except MemoryError as error:
        raise ModelError(f"{path}: does not fit into memory") from error
    except Exception as error:  # torch raises what the unpickler happens to meet in a hostile file
        raise ModelError(f"{path}: not a checkpoint that is safe to load ({_brief(error)})") from error
    if not isinstance(content, dict) or not _is_weights(content.get("network_weights")):
        raise ModelError(f"{path}: not a checkpoint of nnU-Net: there are no network_weights in it")
    return content


def check_checkpoint(path: Path) -> None:
    """Raise where a checkpoint is damaged, or holds anything but tensors and plain values."""
    load_checkpoint(path)


def strip_checkpoint(source: Path, target: Path, *, half: bool = False) -> None:
    """A copy of a checkpoint with what prediction needs, and no more; ``half``: weights in half precision."""
    import torch

    content = load_checkpoint(source)
    small: dict[str, Any] = {key: content[key] for key in _KEPT if key in content}
    small["network_weights"] = pack_weights(content["network_weights"], half)
    init = content.get("init_args", {})
    small["init_args"] = {key: init[key] for key in _KEPT_INIT if key in init}
    axes = content.get("inference_allowed_mirroring_axes")
    small["inference_allowed_mirroring_axes"] = None if axes is None else tuple(int(axis) for axis in axes)
    with atomic_path(target) as temporary, temporary.open("wb") as stream:
        torch.save(small, stream)


def widened(weights: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Weights to start a network of the same plan from that sees ``channels``: what it knows less of, it ignores."""
    import torch

    own = min(t.shape[1] for t in weights.values() if t.ndim == 5)  # of the convolutions, the first has the fewest
    made = {}
    for name, tensor in weights.items():
        first = tensor.ndim == 5 and tensor.shape[1] == own and "encoder.stages.0" in name
        missing = channels - own if first else 0
        more = [tensor.new_zeros((tensor.shape[0], missing, *tensor.shape[2:]))] if missing > 0 else []
        made[name] = torch.cat([tensor, *more], 1) if more else tensor
    return made


def pack_weights(weights: dict[str, Any], half: bool) -> dict[str, Any]:
    """Contiguous weights. nnU-Net's networks hold most of theirs under several names: these stay one in the file."""
    import torch

    made: dict[Any, Any] = {}
    for tensor in weights.values():
        key = _place(tensor)
        if key not in made:
            made[key] = (tensor.half() if half and tensor.dtype == torch.float32 else tensor).contiguous()
    return {name: made[_place(tensor)] for name, tensor in weights.items()}


def _place(tensor: Any) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _is_weights(weights: Any) -> bool:
    import torch

    return (
        isinstance(weights, dict)
        and bool(weights)
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in weights.items())
    )


def _brief(error: Exception) -> str:
    """The telling part of torch's long advice, which recommends loading without limits."""
    text = " ".join(str(error).split())
    found = re.search(r"Unsupported global: GLOBAL [\w.]+|Unsupported [^.]{,80}|GLOBAL [\w.]+", text)
    return found.group(0) if found else text[:120] or type(error).__name__


def _allowed() -> list[Any]:
    """What the logs and arguments in an nnU-Net checkpoint consist of besides plain values: numpy's scalars."""
    import numpy as np
    import torch

    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.float16, np.int64, np.int32, np.bool_)]
    scalar: Any = np.float64(0).__reduce__()[0]
    # Files written with numpy 1 give the same function by its old path.
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes, torch.device]


def _check_archive(path: Path) -> None:
    """A checkpoint is a zip of stored entries: what it unpacks to is its own size, or it is a bomb."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a checkpoint as torch writes it ({error})") from error
    if sum(info.file_size for info in infos) > path.stat().st_size + _SLACK:
        raise ModelError(f"{path}: unpacks to far more than its own size; refused")


def check_plans(path: Path, *, names_only: bool = False) -> None:
    """Raise where plans.json names anything but networks and layers: nnU-Net imports and calls what is named there.

    ``names_only``: nothing is imported. Then what is named must be looked at before it is called: by
    :func:`require_modules`, which whoever builds a network does.
    """
    try:
        plans = read_json(path)
        configurations = plans["configurations"]
        for configuration in configurations.values():
            architecture = configuration.get("architecture")
            for name, pattern in [] if architecture is None else _named(architecture):
                if not (isinstance(name, str) and pattern.fullmatch(name)):
                    raise _refused(name, path)
                if not names_only:
                    _require_module(name, path)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: not a valid plans file ({error!r})") from error


def names_known_parts(architecture: dict[str, Any]) -> bool:
    """Whether a network is made of what bundles may hold: of packages with versions, and of our own code."""
    return all(isinstance(name, str) and pattern.fullmatch(name) for name, pattern in _named(architecture))


def require_modules(architecture: dict[str, Any], path: Path) -> None:
    """Raise where a network that is about to be built, or one of its layers, is anything but a class of PyTorch's."""
    for name, _ in _named(architecture):
        _require_module(name, path)


def _named(architecture: dict[str, Any]) -> list[tuple[Any, re.Pattern[str]]]:
    """What a plan names to be imported and called, each with the names that are allowed."""
    arguments = architecture["arch_kwargs"]
    layers = [arguments[key] for key in architecture["_kw_requires_import"] if arguments.get(key) is not None]
    return [(architecture["network_class_name"], _NETWORKS), *((layer, _LAYERS) for layer in layers)]


def locate_class(name: str) -> Any:
    """The class of a network or a layer by its name; one of a package that is not installed names the package."""
    if name.startswith("monai.") and find_spec("monai") is None:
        raise MissingExtraError("monai", "systems")
    return pydoc.locate(name)


def _require_module(name: Any, path: Path) -> None:
    import torch

    # The pattern keeps foreign modules from being imported; the look-up, functions and imports of allowed modules out.
    found = locate_class(name) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        raise _refused(name, path)


def _refused(name: Any, path: Path) -> ModelError:
    return ModelError(f"{path}: names {name!r} where a network or a layer must be; refused")
