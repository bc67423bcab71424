"""Networks from trained models, built of allowed parts, in an engine and in nnU-Net's sliding window."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Final

from kits_cascade.errors import ModelError
from kits_cascade.inference.nnunet.engine_networks import Built, build_engine, kept_in_engine
from kits_cascade.inference.nnunet.engines import Computing
from kits_cascade.inference.nnunet.network_source import NetworkSource
from kits_cascade.inference.nnunet.sliding_window import SlidingWindow, tile_weights

log = logging.getLogger(__name__)
_ONE_AT_A_TIME: Final = threading.Lock()  # networks are built: PyTorch's safe loading is set for a whole process


@dataclass(frozen=True)
class TileOptions:
    """How a network walks over an image."""

    step: float = 0.5
    mirror: bool = True
    skip_beyond_mm: float | None = 10.0  # leave out tiles further than this from what can matter


def load_predictor(source: NetworkSource, computing: Computing, tiles: TileOptions) -> SlidingWindow:
    """The networks of a model (its folds) in the sliding window, without running any code from their files."""
    model, labels, patch = source.model, source.plans.get_label_manager(source.dataset), source.shape[2:]
    built = _built(source, computing)
    axes = built.mirror_axes if tiles.mirror else ()
    if any(axis >= len(patch) for axis in axes):
        raise ModelError(f"{model.folder}: to be mirrored along axes {axes}, but a tile has only {len(patch)}")
    tile_weights(patch)  # while other networks are loaded
    return SlidingWindow(
        built.network,
        built.folds,
        patch,
        labels.num_segmentation_heads,
        labels.has_regions,
        tiles.step,
        axes,
        fell_back=built.fell_back,
    )


def _built(source: NetworkSource, computing: Computing) -> Built:
    """The network of the plans with the weights, in the engine; in PyTorch where the engine cannot take it.

    What the engine has kept is taken as it is: then the network is not built, and its weights are not even read.
    """
    kept = kept_in_engine(source.names, computing)
    if kept is not None:
        return kept
    with _ONE_AT_A_TIME:
        built = build_engine(
            source.network,
            source.weights,
            source.shape,
            computing,
            names=source.names,
            mirror_axes=source.mirror_axes,
            foreign=source.is_foreign,
        )
    if built.fell_back:
        log.warning(
            "%s: %s cannot run this network (%s); PyTorch does, more slowly",
            source.model.folder,
            computing.engine,
            built.fell_back,
        )
    return built
