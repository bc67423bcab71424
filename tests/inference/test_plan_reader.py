"""Plans and labels read without nnU-Net's managers: what these say, and what is left to them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from kits_cascade.inference.nnunet.plan_reader import Labels, Plans, input_channels, read_plans
from kits_cascade.stages import COARSE, KIDNEY_STAGE, MASSES_STAGE
from tests.inference.handmade import PATCH
from tests.inference.handmade import plans as handmade_plans

NAMES = ("spacing", "patch_size", "normalization_schemes", "use_mask_for_norm", "configuration")
DATASETS = [
    {"labels": {"background": 0, "kidney": 1}},
    {"labels": {"background": 0, "kidney": 1, "tumor": [2], "cyst": 3}},
    {"labels": {"background": 0, "masses": [1, 2], "tumor": 2}, "regions_class_order": [1, 2]},
    {"labels": {"background": 0, "tumor": [2, 2]}, "regions_class_order": [2]},
]
ODD = [
    {"labels": {"background": 0, "kidney": 1, "ignore": 2}},
    {"labels": {"background": 0, "air": [0, 0], "kidney": [1, 2]}, "regions_class_order": [1]},
]


def plans(stage):
    return handmade_plans(stage, PATCH["coarse"], [2.0, 2.0, 2.0])


@pytest.mark.parametrize("stage", [COARSE, KIDNEY_STAGE, MASSES_STAGE])
def test_plans_say_what_nnunet_s_manager_says(stage):
    content = plans(stage)
    content["configurations"]["child"] = {"inherits_from": stage.configuration, "batch_size": 7}
    theirs = PlansManager(content)
    for name in (stage.configuration, "child"):
        ours = read_plans(content, name)
        assert isinstance(ours, Plans)
        for field in ("transpose_forward", "transpose_backward", "foreground_intensity_properties_per_channel"):
            assert getattr(ours, field) == getattr(theirs, field)
        one, other = ours.get_configuration(name), theirs.get_configuration(name)
        assert all(getattr(one, field) == getattr(other, field) for field in NAMES)
        assert one.resampling_fn_data.keywords == other.resampling_fn_data.keywords
        dataset = {**DATASETS[0], "channel_names": {"0": "CT", "1": "noNorm"}}
        assert input_channels(ours, one, dataset) == determine_num_input_channels(theirs, other, dataset) == 2


@pytest.mark.parametrize("dataset", DATASETS)
def test_labels_say_what_nnunet_s_manager_says(dataset):
    content = plans(COARSE)
    ours = read_plans(content, COARSE.configuration).get_label_manager(dataset)
    theirs = PlansManager(content).get_label_manager(dataset)
    assert isinstance(ours, Labels)
    assert ours.has_regions == theirs.has_regions
    assert ours.num_segmentation_heads == theirs.num_segmentation_heads
    assert list(ours.regions_class_order or ()) == list(theirs.regions_class_order or ())
    logits = torch.randn((ours.num_segmentation_heads, 2, 3, 4), generator=torch.Generator().manual_seed(0)).half()
    expected = theirs.apply_inference_nonlin(logits).numpy()
    np.testing.assert_allclose(ours.apply_inference_nonlin(logits.numpy()), expected, rtol=1e-5)


@pytest.mark.parametrize("dataset", ODD)
def test_odd_labels_are_left_to_nnunet(dataset):
    found = read_plans(plans(COARSE), COARSE.configuration).get_label_manager(dataset)
    assert type(found).__module__.startswith("nnunetv2.")


@pytest.mark.parametrize("change", [{"previous_stage": "3d_lowres"}, {"inherits_from": "nothing"}])
def test_odd_plans_are_left_to_nnunet(change):
    content = plans(COARSE)
    content["configurations"][COARSE.configuration] |= change
    assert isinstance(read_plans(content, COARSE.configuration), PlansManager)


def test_another_label_manager_is_left_to_nnunet():
    content = plans(COARSE) | {"label_manager": "Mine"}
    assert isinstance(read_plans(content, COARSE.configuration), PlansManager)


def test_prediction_loads_no_trainer_and_no_image_reader_of_nnunet():
    code = "import sys, kits_cascade.inference.nnunet.predictors; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"nnunetv2.training", "nnunetv2.imageio", "skimage", "pandas", "matplotlib", "torch"} & set(loaded)
