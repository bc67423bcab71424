"""Starting weights from an encoder that others have trained, such as MedicalNet's ResNets.

nnU-Net's own ``-pretrained_weights`` takes whole networks. So the network that the plans name is built with its usual
starting weights, the encoder's published ones are put in, and the whole is written as nnU-Net's checkpoints are.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from kits_cascade.errors import ModelError
from kits_cascade.files import atomic_path, read_json
from kits_cascade.training.architecture import build_network

ENCODER: Final = "encoder."
_PREFIX: Final = "module."  # of networks that were trained on several GPUs
_COUNTER: Final = "num_batches_tracked"  # of batch norms; older files have none
_NAMED: Final = 5  # tensors that an error names


def adapt_weights(file: Path, plans: Path, configuration: str, out: Path, seed: int = 0) -> str:
    """Write starting weights for the planned network; says how many tensors were taken."""
    given = read_encoder(file)
    network = planned_network(plans, configuration, seed)
    said = put_in(network, given, file)
    with atomic_path(out) as temporary:
        torch.save({"network_weights": network.state_dict()}, temporary)
    return said


def planned_network(plans: Path, configuration: str, seed: int) -> torch.nn.Module:
    """The network of a plans file, with starting weights from a seed."""
    manager = PlansManager(str(plans))
    dataset = read_json(plans.with_name("dataset.json"))
    settings = manager.get_configuration(configuration).configuration
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(
            settings["architecture"],
            len(settings["normalization_schemes"]),
            manager.get_label_manager(dataset).num_segmentation_heads,
            deep_supervision=False,
        )


def read_encoder(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file by name; loaded such that nothing in it is run."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; MedicalNet's authors publish theirs as resnet_10_23dataset.pth, ...")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(f"{path}: not a file of weights: {reason}") from error
    weights: Any = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise ModelError(f"{path}: holds no table of tensors by name (a state dict)")
    return {str(name).removeprefix(_PREFIX): tensor for name, tensor in weights.items()}


def put_in(network: torch.nn.Module, given: Mapping[str, torch.Tensor], path: Path) -> str:
    """Take all tensors into the network's encoder; one that does not fit, or is missing, is an error."""
    own = {n.removeprefix(ENCODER): t for n, t in network.state_dict().items() if n.startswith(ENCODER)}
    if not own:
        raise ModelError(f"the network {type(network).__name__} has no encoder that weights could be put into")
    wrong = [_misfit(name, tensor, own.get(name)) for name, tensor in given.items()]
    wrong += [f"{name} is not in the file" for name in own if name not in given and not name.endswith(_COUNTER)]
    wrong = [line for line in wrong if line]
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise ModelError(f"{path}: {len(wrong)} tensors do not fit: {'; '.join(wrong[:_NAMED])}{more}. {_REMEDY}")
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)
    return f"{path.name}: all {len(given)} tensors taken, for {len(given)} of the encoder's {len(own)}"


_REMEDY: Final = "Is it the file of another depth? The system's own is named in docs/systems.md"


def _misfit(name: str, tensor: torch.Tensor, own: torch.Tensor | None) -> str:
    if own is None:
        return f"{name} is not in the network"
    if own.shape != tensor.shape:
        return f"{name} has shape {tuple(tensor.shape)}, the network {tuple(own.shape)}"
    return ""
