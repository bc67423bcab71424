"""The demo's short trainers."""

from copy import deepcopy

import pytest
import torch

from kits_cascade.training import demo_trainers, devices
from tests.training.test_trainers import Plain


def make(folders, name, channels):
    tiny = Plain(folders, channels=channels)
    trainer = getattr(demo_trainers, name)
    return trainer(deepcopy(tiny.plans), "3d_fullres", 0, deepcopy(tiny.dataset_json), torch.device("cpu"))


def names_of_transforms(made):
    arguments = (16, 16, 16), (-0.1, 0.1), [[1, 1, 1]], (0, 1, 2), False
    whole = made.get_training_transforms(*arguments, use_mask_for_norm=[False] * 2).transforms
    return [type(innermost(transform)).__name__ for transform in whole]


def innermost(transform):
    return innermost(transform.transform) if hasattr(transform, "transform") else transform


@pytest.mark.parametrize("name", ["DemoTrainer", "DemoSurfaceLossTrainer"])
def test_geometry_alone_is_augmented(nnunet, name):
    names = names_of_transforms(make(nnunet, name, ["CT"]))
    assert "SpatialTransform" in names
    assert "MirrorTransform" in names
    assert not {n for n in names if "Noise" in n or "Gamma" in n or "Contrast" in n or "Brightness" in n or "Blur" in n}


def test_the_masses_see_all_of_it_and_a_wrong_kidney(nnunet):
    names = names_of_transforms(make(nnunet, "DemoMassesTrainer", ["CT", "noNorm"]))
    assert "PerturbPrior" in names
    assert any("Noise" in name for name in names)


def test_the_network_computes_in_bfloat16_and_answers_in_single_precision():
    network = torch.nn.Conv3d(1, 2, 3)
    image = torch.rand(1, 1, 8, 8, 8)
    exact = network(image)
    network.forward = devices.for_processor(network.forward, bfloat16=True)
    answer = network(image)
    assert answer.dtype == torch.float32
    assert not torch.equal(answer, exact)
    torch.testing.assert_close(answer, exact, atol=0.02, rtol=0.02)
    answer.sum().backward()
    assert network.weight.grad.dtype == torch.float32
    assert devices.for_processor(lambda x: [x, x], bfloat16=True)(image)[1].dtype == torch.float32


def test_other_devices_are_left_alone():
    assert not devices.fast_bfloat16(torch.device("cuda"))
