"""The losses against an independent float64 version in numpy, and where they must stay silent."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from kits_cascade.training.augment import signed_distance
from kits_cascade.training.losses import (
    AxisMax,
    BoundaryLoss,
    FocalTverskyLoss,
    SurfaceOverlapLoss,
    WithExtraTerm,
    hard_dilate,
    hard_surface,
    ramp,
    soft_dilate,
    soft_surface,
    surface_radius,
)


def maximum(x, radius):
    """Grey dilation by a box, beyond the border nothing."""
    size = [2 * r + 1 for r in radius]
    return ndimage.maximum_filter(x, size=size, mode="constant", cval=-np.inf)


def reference(p, t, radius, valid=None, batch_dice=False):
    """The formula, channel by channel, in float64."""
    ones = (1,) * len(radius)
    sums = np.zeros((3, *p.shape[:2]))
    for b, c in np.ndindex(*p.shape[:2]):
        v = np.ones(p.shape[2:])
        if valid is not None:
            v = 1 - maximum(1.0 - valid[b, 0], [r + 1 for r in radius])
        surfaces = [x + maximum(-x, ones) for x in (p[b, c].astype(np.float64), t[b, c].astype(np.float64))]
        a_map, b_map = (maximum(s, radius) * v for s in surfaces)
        sums[:, b, c] = (a_map * b_map).sum(), a_map.sum(), b_map.sum()
    if batch_dice:
        sums = sums.sum(1, keepdims=True)
    score = (2 * sums[0] + 1) / (sums[1] + sums[2] + 1)
    weight = sums[2] > 0
    return ((1 - score) * weight).sum() / max(1, weight.sum())


def ball(shape, centre, radius):
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2


def logits_of(mask, strength=20.0):
    return (torch.as_tensor(mask).float() * 2 - 1) * strength


def random_case(seed, shape=(2, 3, 12, 14, 10)):
    generator = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(generator.normal(size=shape), [0, 0] + [1.5] * (len(shape) - 2))
    truth = blobs > 0.05
    logits = generator.normal(size=shape) * 2 + 3 * blobs
    return logits.astype(np.float32), truth


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.78, 0.78), (0.5, 0.5, 0.5), (3.0, 0.4, 0.7)])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
def test_the_loss_agrees_with_numpy_in_float64(spacing, batch_dice, ignored):
    radius = surface_radius(spacing)
    for seed in range(3):
        logits, truth = random_case(seed)
        ignore = np.random.default_rng(seed).random((2, 1, 12, 14, 10)) < 0.004
        target = np.concatenate([truth & ~ignore, ignore], 1) if ignored else truth
        loss = SurfaceOverlapLoss(radius, regions=True, ignore_label=9 if ignored else None, batch_dice=batch_dice)
        got = loss(torch.from_numpy(logits), torch.from_numpy(target)).item()
        p = 1 / (1 + np.exp(-logits.astype(np.float64)))
        expected = reference(p, target[:, :3], radius, ~ignore if ignored else None, batch_dice)
        assert got == pytest.approx(expected, abs=1e-5)


def test_the_loss_agrees_in_two_dimensions_and_with_label_heads():
    generator = np.random.default_rng(0)
    labels = ndimage.zoom(generator.integers(0, 4, (2, 1, 5, 6)), (1, 1, 4, 4), order=0)
    logits = generator.normal(size=(2, 4, 20, 24)).astype(np.float32)
    got = SurfaceOverlapLoss((1, 2), regions=False)(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    exponent = np.exp(logits.astype(np.float64))
    p = (exponent / exponent.sum(1, keepdims=True))[:, 1:]
    truth = np.concatenate([labels == c for c in (1, 2, 3)], 1)
    assert got == pytest.approx(reference(p, truth, (1, 2)), abs=1e-5)


def test_radius_of_a_plan():
    assert surface_radius((0.78125, 0.78125, 0.78125)) == (1, 1, 1)
    assert surface_radius((5.0, 0.5, 0.35)) == (1, 2, 3)
    assert surface_radius((0.5, 0.5), tolerance_mm=2.0) == (4, 4)


def test_the_known_values_of_a_ball():
    """A ball of radius 12 in 48^3, shifted by 1 and by 4 voxels; a constant; the inverse."""
    still = ball((48,) * 3, (24, 24, 24), 12)[None, None]
    target = torch.from_numpy(still)

    def loss(p, r):
        return SurfaceOverlapLoss((r,) * 3, regions=True).overlap_loss(torch.as_tensor(p).float(), target).item()

    near, far = np.roll(still, 1, axis=2), np.roll(still, 4, axis=2)
    assert loss(near, 0) == pytest.approx(0.335, abs=2e-3)
    assert loss(near, 1) == pytest.approx(0.114, abs=2e-3)
    assert loss(far, 0) == pytest.approx(0.82, abs=1e-2)
    assert loss(far, 1) == pytest.approx(0.44, abs=1e-2)
    assert loss(np.full(still.shape, 0.5), 1) == pytest.approx(0.9999, abs=2e-4)
    assert loss(1.0 - still, 1) == pytest.approx(0.34, abs=1e-2)  # an inverted mask looks good: never without Dice
    assert loss(still, 1) < 1e-6


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 5])
def test_the_gradient_points_at_the_truth(distance):
    """A soft ball that is off along an axis: moving it towards the truth lowers the loss."""
    grid = torch.arange(48, dtype=torch.float32)
    target = torch.from_numpy(ball((48,) * 3, (24, 24, 24), 10)[None, None])
    shift = torch.tensor(float(distance), requires_grad=True)
    z, y, x = torch.meshgrid(grid, grid, grid, indexing="ij")
    radius = ((z - 24 - shift) ** 2 + (y - 24) ** 2 + (x - 24) ** 2 + 1e-3).sqrt()
    SurfaceOverlapLoss((1, 1, 1), regions=True)(((10 - radius) * 2)[None, None], target).backward()
    assert shift.grad > 0


def test_gradients_by_finite_differences():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 5, 6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.rand(1, 3, 5, 6, 4, generator=generator) > 0.6
    target[:, 2] = False
    target[:, 2, 0, 0, 0] = True
    for radius in ((1, 1, 1), (0, 2, 1)):
        loss = SurfaceOverlapLoss(radius, regions=True, ignore_label=3)
        # A step across a kink of a maximum has no derivative; random values keep away from them.
        assert torch.autograd.gradcheck(lambda z, loss=loss: loss(z, target), logits, eps=1e-7, atol=1e-5)
    plane = torch.randn(2, 3, 6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 1, 6, 5), generator=generator)
    flat = SurfaceOverlapLoss((1, 1), regions=False, batch_dice=True)
    assert torch.autograd.gradcheck(lambda z: flat(z, labels), plane, eps=1e-7, atol=1e-5)


def test_axis_max_is_torch_max_pool():
    x = torch.randn(2, 3, 9, 8, 7, requires_grad=True)
    grad = torch.randn_like(x)
    for radius in (1, 2):
        (soft_dilate(x, (radius,) * 3) * grad).sum().backward()
        ours, x.grad = x.grad, None
        pooled = torch.nn.functional.max_pool3d(x, 2 * radius + 1, 1, radius)
        assert torch.equal(soft_dilate(x, (radius,) * 3), pooled)
        (pooled * grad).sum().backward()
        assert torch.allclose(ours, x.grad, atol=1e-5)
        x.grad = None


def test_axis_max_with_a_radius_beyond_the_array():
    x = torch.tensor([[[3.0, 1.0]]], requires_grad=True)
    out = AxisMax.apply(x, 2, 4)
    assert out.tolist() == [[[3.0, 3.0]]]
    out.sum().backward()
    assert x.grad.tolist() == [[[2.0, 0.0]]]


def test_hard_morphology_is_the_soft_one_on_masks():
    mask = torch.rand(1, 2, 9, 10, 8) > 0.7
    assert torch.equal(hard_dilate(mask, (1, 2, 0)).float(), soft_dilate(mask.float(), (1, 2, 0)))
    assert torch.equal(hard_surface(mask).float(), soft_surface(mask.float()))


EMPTY = np.zeros((1, 1, 16, 16, 16), bool)
SINGLE = EMPTY.copy()
SINGLE[0, 0, 8, 8, 8] = True


@pytest.mark.parametrize("truth", [EMPTY, ~EMPTY], ids=["empty", "full"])
def test_nothing_to_learn_is_zero(truth):
    logits = torch.randn(1, 1, 16, 16, 16, requires_grad=True)
    loss = SurfaceOverlapLoss((1, 1, 1), regions=True)(logits, torch.from_numpy(truth))
    loss.backward()
    assert loss.item() == 0
    assert torch.count_nonzero(logits.grad) == 0


def test_ignore_everywhere_is_zero():
    target = torch.from_numpy(np.concatenate([SINGLE, ~EMPTY], 1))
    logits = torch.randn(1, 1, 16, 16, 16, requires_grad=True)
    loss = SurfaceOverlapLoss((1, 1, 1), regions=True, ignore_label=4)(logits, target)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(logits.grad).all()
    labels = torch.full((1, 1, 16, 16, 16), 2, dtype=torch.int16)
    assert SurfaceOverlapLoss((1, 1, 1), regions=False, ignore_label=2)(torch.randn(1, 2, 16, 16, 16), labels) == 0


def test_a_single_voxel_is_finite_and_learned():
    logits = torch.zeros(1, 1, 16, 16, 16, requires_grad=True)
    loss = SurfaceOverlapLoss((1, 1, 1), regions=True)(logits, torch.from_numpy(SINGLE))
    loss.backward()
    assert 0.5 < loss.item() < 1
    assert torch.isfinite(logits.grad).all()
    assert SurfaceOverlapLoss((1, 1, 1), regions=True)(logits_of(SINGLE), torch.from_numpy(SINGLE)) < 1e-6


def test_a_mask_cut_by_the_patch_has_no_surface_at_the_border():
    half = np.zeros((1, 1, 12, 12, 12), bool)
    half[0, 0, :6] = True
    surface = hard_surface(torch.from_numpy(half))[0, 0]
    assert surface[5].all()
    assert not surface[:5].any()
    assert not surface[6:].any()


def test_what_is_ignored_changes_nothing():
    logits, truth = random_case(0, (1, 1, 16, 16, 16))
    ignore = np.zeros((1, 1, 16, 16, 16), bool)
    ignore[..., 10:] = True
    loss = SurfaceOverlapLoss((1, 1, 1), regions=True, ignore_label=2)
    changed = logits.copy()
    changed[ignore] += np.random.default_rng(1).normal(size=ignore.sum()) * 5
    target = torch.from_numpy(np.concatenate([truth & ~ignore, ignore], 1))
    assert loss(torch.from_numpy(logits), target) == loss(torch.from_numpy(changed), target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_half_precision_at_full_patch_size(dtype, device):
    """Sums over 128^3 do not fit half precision."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    target = torch.from_numpy(ball((128,) * 3, (60, 64, 70), 45)[None, None]).to(device)
    logits = (logits_of(target, 30.0) + 0.1).to(dtype).requires_grad_()
    with torch.autocast(device, dtype=dtype):
        loss = SurfaceOverlapLoss((1, 1, 1), regions=True)(logits, target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert loss < 0.01
    assert torch.isfinite(logits.grad).all()


def test_ramp():
    assert [ramp(epoch, 1000) for epoch in (0, 100, 200, 300, 999)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert [ramp(epoch, 5) for epoch in range(5)] == pytest.approx([0, 0.5, 1, 1, 1])
    assert ramp(0, 1) == 0


def test_signed_distance_by_hand():
    row = np.zeros((1, 1, 7), bool)
    row[..., 3:5] = True
    assert signed_distance(row, (5.0, 5.0, 2.0)).ravel().tolist() == [6, 4, 2, -2, -2, 2, 4]
    assert not signed_distance(np.zeros((4, 4), bool), (1, 1)).any()
    assert not signed_distance(np.ones((4, 4), bool), (1, 1)).any()


def test_signed_distance_knows_which_axis_is_thick():
    mask = np.zeros((5, 5, 5), bool)
    mask[2, 2, 2] = True
    distance = signed_distance(mask, (5.0, 2.0, 1.0))
    assert (distance[3, 2, 2], distance[2, 3, 2], distance[2, 2, 3]) == (5, 2, 1)


def test_boundary_loss_by_hand():
    distance = torch.tensor([[[[-1.0, 1.0, 3.0]]]])
    logits = torch.tensor([[[[50.0, 0.0, -50.0]]]])
    assert BoundaryLoss(regions=True)(logits, distance).item() == pytest.approx((-1 + 0.5) / 3)


def test_the_extra_term_is_left_out_at_weight_zero_and_sees_the_finest_output():
    class Sum(torch.nn.Module):
        def forward(self, output, target):
            return sum(o.sum() for o in output)

    class First(torch.nn.Module):
        def forward(self, output, target):
            assert target == "finest"
            return output.mean()

    loss = WithExtraTerm(Sum(), First())
    outputs = [torch.full((2, 2), 3.0), torch.ones(1)]
    assert loss(outputs, ["finest", "coarse"]).item() == 13
    loss.weight = 0.5
    assert loss(outputs, ["finest", "coarse"]).item() == 14.5


@pytest.mark.parametrize("regions", [True, False])
def test_focal_tversky_is_the_published_formula(regions):
    generator = torch.Generator().manual_seed(0)
    channels = 2 if regions else 3
    logits = torch.randn((2, channels, 4, 5, 6), generator=generator, dtype=torch.float64)
    if regions:
        target = (torch.rand((2, 2, 4, 5, 6), generator=generator) > 0.6).double()
        p, truth = torch.sigmoid(logits).numpy(), target.numpy()
    else:
        target = torch.randint(0, 3, (2, 1, 4, 5, 6), generator=generator).double()
        p = torch.softmax(logits, 1).numpy()[:, 1:]
        truth = np.concatenate([target.numpy() == 1, target.numpy() == 2], axis=1)
    expected = []
    for c in range(2):
        both, ours, theirs = (p[:, c] * truth[:, c]).sum(), p[:, c].sum(), truth[:, c].sum()
        expected.append((1 - (both + 1) / (both + 0.7 * (theirs - both) + 0.3 * (ours - both) + 1)) ** 0.75)
    assert float(FocalTverskyLoss(regions=regions)(logits, target)) == pytest.approx(np.mean(expected))


def test_focal_tversky_has_a_slope_everywhere():
    logits = torch.full((1, 1, 3, 3, 3), 20.0, requires_grad=True)
    FocalTverskyLoss(regions=True)(logits, torch.ones((1, 1, 3, 3, 3))).backward()
    assert torch.isfinite(logits.grad).all()
