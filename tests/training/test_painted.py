"""The trainers and the network for painted CT."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from kits_cascade.data.presets import load_preset
from kits_cascade.training import painted
from kits_cascade.training.devices import for_processor
from kits_cascade.training.networks.subvoxel import SubvoxelUNet
from tests.training.test_demo_trainers import names_of_transforms
from tests.training.test_trainers import Plain


def network(**changes):
    arguments = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": nn.Conv3d,
        "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[2, 2, 2]] * 3,
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": True,
    }
    return SubvoxelUNet(1, num_classes=2, **(arguments | changes))


def test_output_has_the_resolution_of_the_input():
    answer = network()(torch.rand(2, 1, 16, 24, 32))
    assert answer.shape == (2, 2, 16, 24, 32)


def test_each_voxel_has_a_logit_of_its_own_in_its_own_place():
    """With the last convolution replaced by constants, the eight voxels inside one feature voxel are told apart."""
    net = network()
    last = net.decoder.seg_layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.arange(16.0))
    answer = net(torch.rand(1, 1, 16, 16, 16))[0]
    for channel in range(2):
        for z in range(2):
            for y in range(2):
                for x in range(2):
                    values = answer[channel, z::2, y::2, x::2]
                    assert (values == channel * 8 + z * 4 + y * 2 + x).all()


def make(nnunet, name, channels):
    tiny = Plain(nnunet, channels=channels)
    trainer = getattr(painted, name)
    return trainer(deepcopy(tiny.plans), "3d_fullres", 0, deepcopy(tiny.dataset_json), torch.device("cpu"))


def test_costly_transforms_are_left_out(nnunet):
    names = names_of_transforms(make(nnunet, "PaintedTrainer", ["CT"]))
    assert "SpatialTransform" in names
    assert "GammaTransform" in names
    assert not {name for name in names if "Noise" in name or "Blur" in name or "LowRes" in name}


def test_nothing_stands_on_its_head(nnunet):
    made = make(nnunet, "PaintedTrainer", ["CT"])
    *_, axes = made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert axes == (2,)
    assert made.inference_allowed_mirroring_axes is None


def test_the_masses_see_a_wrong_kidney(nnunet):
    assert "PerturbPrior" in names_of_transforms(make(nnunet, "PaintedMassesTrainer", ["CT", "noNorm"]))


@pytest.mark.parametrize("bfloat16", [False, True])
def test_fast_layout_answers_as_the_plain_one(bfloat16):
    net = network().eval()
    image = torch.rand(1, 1, 16, 16, 16)
    exact = net(image)
    fast = for_processor(net.to(memory_format=torch.channels_last_3d).forward, bfloat16, last=True)(image)
    assert fast.dtype == torch.float32
    tolerance = 0.1 if bfloat16 else 1e-4
    torch.testing.assert_close(fast, exact, atol=tolerance, rtol=tolerance)


def test_the_preset_names_the_network():
    stages = load_preset("shipped").stages
    for configurations in stages.values():
        for values in configurations.values():
            assert values["architecture"]["network_class_name"].endswith("SubvoxelUNet")
