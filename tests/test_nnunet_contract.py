"""What we rely on in nnU-Net beyond its commands. A new version that changes any of it fails here first.

Raise the upper bound in pyproject.toml only together with this file.
"""

import inspect

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
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
        (nnUNetPredictor._internal_get_sliding_window_slicers, ["image_size"]),
        (nnUNetPredictor._internal_maybe_mirror_and_predict, ["x"]),
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


class Constant(torch.nn.Module):
    """Answers 1 everywhere, and counts."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.ones((1, 2, *x.shape[2:]))


def predictor(slicers=None, patch=(8, 8, 8)):
    class Chosen(nnUNetPredictor):
        def _internal_get_sliding_window_slicers(self, image_size):
            self.seen = image_size
            return slicers(super()._internal_get_sliding_window_slicers(image_size))

    instance = (Chosen if slicers else nnUNetPredictor)(0.5, device=torch.device("cpu"), allow_tqdm=False)
    plans = PlansManager({"label_manager": "LabelManager", "configurations": {}})
    configuration = ConfigurationManager({"architecture": {}, "patch_size": list(patch)})
    labels = {"labels": {"background": 0, "kidney": 1}}
    instance.manual_initialization(Constant(), plans, configuration, [{}, {}], labels, "nnUNetTrainer", (0,))
    return instance


def test_the_sliding_window_runs_the_tiles_that_the_hook_names():
    chosen = predictor(slicers=lambda all_of_them: all_of_them[:1])
    logits = chosen.predict_logits_from_preprocessed_data(torch.zeros(1, 16, 8, 6))
    assert chosen.seen == (16, 8, 8)  # padded to the patch
    assert logits.shape == (2, 16, 8, 6)
    assert logits.dtype == torch.half
    assert torch.all(logits[:, :8] == 1)
    assert torch.isnan(logits[:, 8:]).all()  # 0 / 0 where no tile was: we fill it
    assert chosen.network.calls == 2 * 2  # two folds, each mirrored along the one axis that is allowed


def test_padding_goes_to_both_sides():
    seen = []
    chosen = predictor()
    chosen.network.forward = lambda x: seen.append(x.clone()) or torch.ones((1, 2, *x.shape[2:]))
    chosen.use_mirroring = False
    chosen.predict_logits_from_preprocessed_data(torch.ones(1, 8, 8, 5))
    assert seen[0][0, 0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 0, 0]


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
