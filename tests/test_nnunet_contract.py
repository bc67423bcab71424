"""What we rely on in nnU-Net beyond its commands. A new version that changes any of it fails here first.

Raise the upper bound in pyproject.toml only together with this file.
"""

import inspect

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from kits_cascade.inference.certainty import FOLDS, MIRRORS
from kits_cascade.inference.nnunet.engines import as_nnunet
from kits_cascade.inference.nnunet.plan_rules import separate_axis
from kits_cascade.inference.nnunet.sliding_window import SlidingWindow, tile_starts, tile_weights
from kits_cascade.inference.nnunet.torch_network import TorchNetwork

# --- the predictor (kits_cascade/inference/nnunet/)


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (
            nnUNetPredictor.__init__,
            ["tile_step_size", "use_gaussian", "use_mirroring", "perform_everything_on_device", "device"],
        ),
        (
            nnUNetPredictor.manual_initialization,
            ["network", "plans_manager", "configuration_manager", "parameters", "dataset_json", "trainer_name"],
        ),
        (nnUNetPredictor.predict_logits_from_preprocessed_data, ["data"]),
        (get_network_from_plans, ["arch_class_name", "arch_kwargs", "arch_kwargs_req_import", "input_channels"]),
        (determine_num_input_channels, ["plans_manager", "configuration_or_config_manager", "dataset_json"]),
        (determine_do_sep_z_and_axis, ["force_separate_z", "current_spacing", "new_spacing"]),
        (resample_data_or_seg_to_shape, ["data", "new_shape", "current_spacing", "new_spacing", "is_seg", "order"]),
        (resample_torch_fornnunet, ["data", "new_shape", "current_spacing", "new_spacing", "is_seg"]),
        (DefaultPreprocessor.run_case_npy, ["data", "seg", "properties", "plans_manager", "configuration_manager"]),
        (schemes.ImageNormalization.__init__, ["use_mask_for_norm", "intensityproperties"]),
        (schemes.ImageNormalization.run, ["image", "seg"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", None),
)
def test_signatures(function, names):
    assert parameters(function)[: len(names)] == names


def test_resampling_defaults_that_plans_leave_out():
    spline = inspect.signature(resample_data_or_seg_to_shape).parameters
    assert (spline["order"].default, spline["order_z"].default) == (3, 0)
    by_torch = inspect.signature(resample_torch_fornnunet).parameters
    assert (by_torch["mode"].default, by_torch["aniso_axis_mode"].default) == ("linear", "nearest-exact")
    assert by_torch["force_separate_z"].default is None


@pytest.mark.parametrize("manager", [PlansManager, ConfigurationManager, LabelManager])
def test_plans_and_labels_say_what_we_ask(manager):
    asked = {
        PlansManager: "transpose_forward transpose_backward get_configuration get_label_manager "
        "foreground_intensity_properties_per_channel",
        ConfigurationManager: "spacing patch_size normalization_schemes use_mask_for_norm resampling_fn_data "
        "resampling_fn_probabilities network_arch_class_name network_arch_init_kwargs "
        "network_arch_init_kwargs_req_import",
        LabelManager: "has_regions num_segmentation_heads apply_inference_nonlin",
    }
    assert not [name for name in asked[manager].split() if not hasattr(manager, name)]


class Mixed(torch.nn.Module):
    """Answers that depend on the place in the tile, on the direction, and on the fold."""

    def __init__(self, axes):
        super().__init__()
        kind = torch.nn.Conv3d if axes == 3 else torch.nn.Conv2d
        self.convolution = kind(1, 3, 3, padding=1)

    def forward(self, x):
        return self.convolution(x) * torch.linspace(0.5, 2, x.shape[-1])


@pytest.mark.parametrize(
    ("patch", "shape", "mirror"),
    [((8, 8, 8), (20, 9, 8), (0, 1, 2)), ((8, 8, 8), (16, 8, 5), ()), ((8, 8, 8), (5, 6, 3), (2,)),
     ((8, 8), (3, 13, 6), (0, 1))],
    ids=["mirrored", "one axis padded", "smaller than a tile", "slices"],
)  # fmt: skip
@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("regions", [False, True])
def test_the_sliding_window_answers_as_nnunet_s_predictor(patch, shape, mirror, folds, regions):
    """To the last bit, so our own may stand for it."""
    labels = {"labels": {"background": 0, "kidney": 1, "tumor": 2}}
    if regions:
        labels = {"labels": {"background": 0, "a": [1, 2, 3], "b": [2, 3], "c": 3}, "regions_class_order": [1, 2, 3]}
    torch.manual_seed(0)
    network = Mixed(len(patch))
    weights = [Mixed(len(patch)).state_dict() for _ in range(folds)]
    plans = PlansManager({"label_manager": "LabelManager", "configurations": {}})
    configuration = ConfigurationManager({"architecture": {}, "patch_size": list(patch)})
    device = torch.device("cpu")
    theirs = nnUNetPredictor(0.5, use_mirroring=bool(mirror), device=device, allow_tqdm=False)
    theirs.manual_initialization(network, plans, configuration, weights, labels, "nnUNetTrainer", mirror)
    heads = theirs.label_manager.num_segmentation_heads
    ours = SlidingWindow(
        TorchNetwork(network, as_nnunet("cpu"), len(patch) + 2), weights, patch, heads, regions, 0.5, mirror
    )
    data = torch.randn(1, *shape)
    expected = theirs.predict_logits_from_preprocessed_data(data)
    np.testing.assert_array_equal(ours.logits(data.numpy()), expected.numpy())
    told = {among for among, votes in ours.votes.items() if votes.total}
    assert told == ({FOLDS} if folds > 1 else set()) | ({MIRRORS} if mirror else set())


@pytest.mark.parametrize("patch", [(8, 8, 8), (80, 96, 96), (64, 13), (112, 160, 128)])
def test_tiles_lie_and_count_as_nnunet_s(patch):
    np.testing.assert_array_equal(
        tile_weights(patch), compute_gaussian(patch, value_scaling_factor=10, device=torch.device("cpu")).float()
    )
    for step in (0.5, 0.75, 1.0):
        for more in (0, 1, 7, 100, 333):
            shape = tuple(n + more for n in patch)
            assert tile_starts(shape, patch, step) == compute_steps_for_sliding_window(shape, patch, step)


def test_tiles_that_are_not_wanted_leave_a_gap():
    answer = TorchNetwork(torch.nn.Identity(), as_nnunet("cpu"), 5)
    window = SlidingWindow(answer, [{}], (8, 8, 8), 2, False, 0.5, ())
    seen = []
    logits = window.logits(
        np.ones((2, 16, 8, 6), np.float32), wanted=lambda tile: seen.append(tile) or tile.start[0] == 0
    )
    # Boxes of the image itself, which is padded on both sides to no less than a tile.
    assert [tile.start for tile in seen] == [(0, 0, 0), (4, 0, 0), (8, 0, 0)]
    assert {tile.stop[1:] for tile in seen} == {(8, 6)}
    assert (logits[:, :8] == 1).all()
    assert np.isnan(logits[:, 8:]).all()  # 0 / 0: whoever asked for it fills it


@pytest.mark.parametrize("force", [None, True, False])
def test_the_axis_apart_is_nnunet_s(force):
    grids = [(1, 1, 1), (5, 0.7, 0.7), (0.5, 0.8, 0.8), (0.24, 1.25, 1.25), (0.7, 5, 0.7), (3, 1, 1), (3.01, 1, 1)]
    for spacing in grids:
        for target in grids:
            separate, axis = determine_do_sep_z_and_axis(force, spacing, target)
            assert separate_axis(force, spacing, target) == (axis if separate else None)


def test_cropping_away_what_is_empty():
    image = np.zeros((2, 5, 6, 7), np.float32)
    image[0, 1:3, 2:4, 3:5] = 1
    image[1, 2:4, 2:4, 3:5] = 1
    assert crop_to_nonzero(image)[2] == [[1, 4], [2, 4], [3, 5]]


def test_ct_normalisation_looks_at_single_voxels():
    properties = {"mean": 10.0, "std": 5.0, "percentile_00_5": 0.0, "percentile_99_5": 20.0}
    run = schemes.CTNormalization(False, properties).run
    values = np.array([[-9.0, 0.0, 3.0, 99.0]], np.float32)
    np.testing.assert_allclose(run(values.copy()), [[-2, -2, -1.4, 2]], rtol=1e-6)
    np.testing.assert_array_equal(schemes.NoNormalization(False, {}).run(values), values)
