"""Labels that are decided plane by plane are those of nnU-Net's way: all logits resampled, rounded, and decided."""

import numpy as np
import pytest
import torch

from kits_cascade.inference.nnunet.decide import Decision, is_plain, resampled_labels
from kits_cascade.inference.nnunet.resample import Method, resample

GRID = (21, 30, 26)
WAYS = {
    "kidney": (Decision(False), 2),
    "classes": (Decision(False), 4),
    "regions": (Decision(True, (1, 2)), 2),
}
METHODS = [Method(1, clip=False), Method(1, 0, 0, clip=False), Method(1, 2, 0), Method(0)]
SHAPES = [(47, 61, 55), (13, 61, 26), (21, 30, 26), (60, 20, 19)]


def logits(heads, where):
    """Blobs around a few places of a grid, and background elsewhere."""
    drawn = torch.Generator().manual_seed(heads)
    noise = torch.randn((heads, *GRID), generator=drawn)
    noise[0] += 6
    noise[1:] -= 6
    for z, y, x in where:
        noise[:, z - 3 : z + 3, y - 4 : y + 4, x - 3 : x + 3] = torch.randn((heads, 6, 8, 6), generator=drawn)
    return noise


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", [[], [(8, 10, 20), (14, 12, 8)]])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_the_same_labels(name, shape, method, where, kind):
    decision, heads = WAYS[name]
    given = logits(heads, where)
    if decision.regions:
        given[0] -= 12
    given = given.numpy().astype(kind)
    whole = np.stack([resample(part, shape, method).astype(kind) for part in given])
    expected = decision.labels(whole)
    np.testing.assert_array_equal(resampled_labels(given, shape, method, decision), expected)
    assert expected.any() == bool(where)


def test_splines_are_not_decided_plane_by_plane():
    assert is_plain(Method(1)) and is_plain(Method(0))
    assert not is_plain(Method(3)) and not is_plain(None)
