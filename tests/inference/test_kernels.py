"""Kernels in bfloat16: PyTorch's own rounding, and what neighbouring taps make up for together."""

import numpy as np
import pytest
import torch

from kits_cascade.inference.nnunet.kernels import rounded_kernels, to_bfloat16


def drawn(*shape):
    return np.random.default_rng(0).normal(0, 0.05, shape).astype(np.float32)


def nearest(values):
    return torch.from_numpy(values).bfloat16().float().numpy()


def test_rounding_is_that_of_pytorch():
    values = np.concatenate([drawn(10_000), np.float32([0, -0.0, 1, 1 + 2**-8, 1 + 3 * 2**-8, 1e-30, -3e38])])
    np.testing.assert_array_equal(to_bfloat16(values), nearest(values))


@pytest.mark.parametrize("taps", [(3, 3, 3), (1, 3, 3), (3, 3), (5,)])
def test_a_kernel_as_a_whole_is_off_by_far_less_than_its_taps_are(taps):
    kernels = drawn(16, 8, *taps)
    made, axes = rounded_kernels(kernels), tuple(range(2, 2 + len(taps)))
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, nearest(made))
    off, off_by_nearest = (np.abs((one - kernels).sum(axis=axes)).mean() for one in (made, nearest(kernels)))
    assert off < off_by_nearest / 4
    np.testing.assert_array_equal(rounded_kernels(kernels[3:4]), made[3:4])
    apart, apart_by_nearest = (np.sqrt(((one - kernels) ** 2).mean()) for one in (made, nearest(kernels)))
    assert apart < 1.5 * apart_by_nearest


def test_a_smooth_picture_is_filtered_more_exactly():
    grid = np.meshgrid(*[np.linspace(0, 2 * np.pi, 24)] * 3, indexing="ij")
    picture = torch.from_numpy(sum(map(np.sin, grid)).astype(np.float32))[None, None]
    kernels = drawn(32, 1, 3, 3, 3)

    def off(other):
        answers = (torch.nn.functional.conv3d(picture, torch.from_numpy(one)) for one in (kernels, other))
        return float((next(answers) - next(answers)).abs().mean())

    assert off(rounded_kernels(kernels)) < off(nearest(kernels)) / 4


def test_what_has_a_value_already_keeps_it():
    exact = nearest(drawn(4, 4, 3, 3, 3))
    np.testing.assert_array_equal(rounded_kernels(exact), exact)
    np.testing.assert_array_equal(rounded_kernels(np.zeros((2, 2, 3, 3), np.float32)), 0)
    single = drawn(6, 5, 1, 1, 1)
    np.testing.assert_array_equal(rounded_kernels(single), nearest(single))
