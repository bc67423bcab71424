"""Label maps as a lost network might leave them, made by code from a true one and its CT."""

import numpy as np
from scipy import ndimage

from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.volumes.components import components

LEAST_KIDNEY_ML = 30.0


class NotPossibleError(Exception):
    """This wreck cannot be made from this case."""


def shifted(labels, spacing, offset_mm):
    """Moved by whole voxels, without wrapping around."""
    steps = [round(mm / s) for mm, s in zip(offset_mm, spacing, strict=True)]
    result = np.zeros_like(labels)
    source, target = [], []
    for step, n in zip(steps, labels.shape, strict=True):
        source.append(slice(max(0, -step), min(n, n - step)))
        target.append(slice(max(0, step), min(n, n + step)))
    result[tuple(target)] = labels[tuple(source)]
    return result


def kidneys_of(labels, spacing):
    """Masks of the kidneys with their masses, the largest first."""
    found = components(labels > 0)
    ml = found.voxels * np.prod(spacing) / 1000
    order = [n + 1 for n in np.argsort(-ml) if ml[n] >= LEAST_KIDNEY_ML]
    return [found.labels == n for n in order]


def centre_of(mask):
    """Middle of a mask."""
    return np.array(ndimage.center_of_mass(mask))


def scaled(mask, factor):
    """A mask grown or shrunk about its own middle."""
    centre = centre_of(mask)
    return (
        ndimage.affine_transform(mask.astype(np.float32), np.eye(3) / factor, centre - centre / factor, order=1) > 0.5
    )


def ball(shape, centre, radius_mm, spacing):
    """A ball."""
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((a - c) * s) ** 2 for a, c, s in zip(grid, centre, spacing, strict=True)) <= radius_mm**2


def body_of(image):
    """Mask of the body."""
    found = components(image > -300)
    if not found.count:
        raise NotPossibleError
    return found.keep([int(found.voxels.argmax()) + 1])


def shift_up(case):
    """60 mm towards the head or the feet, whichever leaves more of it in the scan."""
    options = [shifted(case.labels, case.spacing, (way, 0, 0)) for way in (60, -60)]
    return max(options, key=np.count_nonzero)


def shift_aside(case):
    """60 mm to the right."""
    return shifted(case.labels, case.spacing, (0, 0, 60))


def shift_forward(case):
    """60 mm to the front."""
    return shifted(case.labels, case.spacing, (0, 60, 0))


def of_another(case):
    """The label map of another case, middle on middle, 20 mm off as cases are."""
    other = case.other.labels
    zoom = [o / s for o, s in zip(case.other.spacing, case.spacing, strict=True)]
    grown = ndimage.zoom(other, zoom, order=0)
    result = np.zeros_like(case.labels)
    source, target = [], []
    for m, n in zip(grown.shape, result.shape, strict=True):
        size, first, second = min(m, n), max(0, (m - n) // 2), max(0, (n - m) // 2)
        source.append(slice(first, first + size))
        target.append(slice(second, second + size))
    result[tuple(target)] = grown[tuple(source)]
    return result


def _organ(case, low, high, side):
    """An even organ: the largest piece of tissue between two values, on a side, without the kidneys."""
    smooth = ndimage.gaussian_filter(case.image.astype(np.float32), [min(3.0, 3.0 / s) for s in case.spacing])
    mask = (smooth > low) & (smooth < high) & (case.labels == 0) & body_of(case.image)
    middle = int(centre_of(case.labels > 0)[2])
    if side:
        mask[:, :, : middle + 1] = False if side > 0 else mask[:, :, : middle + 1]
        mask[:, :, middle:] = mask[:, :, middle:] if side > 0 else False
    mask = ndimage.binary_opening(mask, iterations=max(1, round(6 / case.spacing[1])))
    found = components(mask)
    if not found.count or found.voxels.max() * np.prod(case.spacing) < 40_000:
        raise NotPossibleError
    return found.keep([int(found.voxels.argmax()) + 1])


def liver(case):
    """The largest even organ of the right side as one kidney."""
    return _organ(case, 60, 160, 1).astype(np.uint8)


def spleen(case):
    """The largest even organ of the left side as one kidney, with the true right one."""
    organ = _organ(case, 60, 170, -1)
    middle = int(centre_of(case.labels > 0)[2])
    result = case.labels.copy()
    result[:, :, :middle] = 0
    result[organ] = KIDNEY
    return result


def _bone(case):
    found = components(ndimage.binary_closing(case.image > 180, iterations=2) & (case.labels == 0))
    if not found.count:
        raise NotPossibleError
    mask = found.keep([int(found.voxels.argmax()) + 1])
    heights = np.flatnonzero((case.labels > 0).any(axis=(1, 2)))
    mask[: heights[0]] = mask[heights[-1] + 1 :] = False
    if np.count_nonzero(mask) * np.prod(case.spacing) < 20_000:
        raise NotPossibleError
    return mask


def bone(case):
    """Bones at the height of the kidneys as kidney."""
    return _bone(case).astype(np.uint8)


def vertebra(case):
    """Balls of a kidney's size in the spine."""
    spot = centre_of(_bone(case))
    up = 50 / case.spacing[0]
    return (
        sum(
            ball(case.labels.shape, np.add(spot, (way * up, 0, 0)), 30, case.spacing).astype(np.uint8)
            for way in (-1, 1)
        )
        .clip(0, 1)
        .astype(np.uint8)
    )


def bowel(case):
    """Balls of a kidney's size in the front of the abdomen."""
    result = np.zeros_like(case.labels)
    centre = centre_of(case.labels > 0)
    for way in (-45, 45):
        spot = centre + np.array([0, 75, way]) / case.spacing
        result[ball(result.shape, spot, 36, case.spacing)] = KIDNEY
    return result


def one_side(case):
    """One kidney lost, and a copy of the other below it."""
    kidney = kidneys_of(case.labels, case.spacing)[0]
    one = np.where(kidney, case.labels, 0).astype(np.uint8)
    heights = np.flatnonzero(kidney.any(axis=(1, 2)))
    length = (heights[-1] - heights[0] + 1) * case.spacing[0] + 4
    below, above = (shifted(one, case.spacing, (way * length, 0, 0)) for way in (-1, 1))
    return one + max((below, above), key=np.count_nonzero)


def exchanged(case):
    """Left and right exchanged, the scan not."""
    return case.labels[:, :, ::-1].copy()


def upside_down(case):
    """Feet and head exchanged, the scan not."""
    return case.labels[::-1].copy()


def noise_blobs(case):
    """Blobs of smoothed noise all over the body."""
    rng = np.random.default_rng(1)
    field = ndimage.gaussian_filter(
        rng.standard_normal(case.labels.shape).astype(np.float32), [7 / s for s in case.spacing]
    )
    mask = (field > np.quantile(field, 0.97)) & body_of(case.image)
    result = mask.astype(np.uint8)
    result[mask & (field > np.quantile(field, 0.99))] = TUMOR
    return result


def confetti(case):
    """Sixty small lesions sown over the kidneys."""
    rng = np.random.default_rng(2)
    result = case.labels.copy()
    spots = np.argwhere(result > 0)
    for number, spot in enumerate(spots[rng.integers(len(spots), size=120)]):
        near = tuple(slice(max(0, int(c - 9 / s)), int(c + 9 / s) + 2) for c, s in zip(spot, case.spacing, strict=True))
        part = result[near]
        local = ball(part.shape, spot - [s.start for s in near], rng.uniform(1.5, 3.5), case.spacing)
        part[local & (part > 0)] = (TUMOR, CYST)[number % 2]
    return result


def all_tumor(case):
    """Everything a tumour."""
    return (case.labels > 0).astype(np.uint8) * TUMOR


def all_cyst(case):
    """Everything a cyst."""
    return (case.labels > 0).astype(np.uint8) * CYST


def half(case):
    """The lower half of the largest kidney lost."""
    kidney = kidneys_of(case.labels, case.spacing)[0]
    result = case.labels.copy()
    result[: int(centre_of(kidney)[0])][kidney[: int(centre_of(kidney)[0])]] = 0
    return result


def fifth(case):
    """Kidneys of a fifth of their volume."""
    result = np.zeros_like(case.labels)
    for kidney in kidneys_of(case.labels, case.spacing):
        result[scaled(kidney, 0.2 ** (1 / 3))] = KIDNEY
    return result


def threefold(case):
    """Kidneys of three times their volume."""
    result = np.zeros_like(case.labels)
    for kidney in kidneys_of(case.labels, case.spacing):
        result[scaled(kidney, 3 ** (1 / 3))] = KIDNEY
    return result


def _beside(case, low, high):
    """A piece of some tissue that touches a kidney."""
    near = ndimage.binary_dilation(case.labels > 0, iterations=max(2, round(10 / case.spacing[1])))
    smooth = ndimage.uniform_filter(case.image.astype(np.float32), 3)
    mask = near & (case.labels == 0) & (smooth > low) & (smooth < high)
    if np.count_nonzero(mask) * np.prod(case.spacing) < 3_000:
        raise NotPossibleError
    return mask


def fat_as_cyst(case):
    """The fat around the kidneys as cysts."""
    result = case.labels.copy()
    result[_beside(case, -150, -50)] = CYST
    return result


def kidney_as_cyst(case):
    """A third of each kidney as cyst."""
    result = case.labels.copy()
    for kidney in kidneys_of(case.labels, case.spacing):
        top = np.percentile(np.flatnonzero(kidney.any(axis=(1, 2))), 67)
        result[int(top) :][kidney[int(top) :]] = CYST
    return result


def empty(case):
    """Nothing."""
    return np.zeros_like(case.labels)


WRECKS = {
    make.__name__.replace("_", " "): make
    for make in (
        shift_up, shift_aside, shift_forward, of_another, liver, spleen, vertebra, bone, bowel, one_side, exchanged,
        upside_down, noise_blobs, confetti, all_tumor, all_cyst, half, fifth, threefold, fat_as_cyst, kidney_as_cyst,
        empty,
    )
}  # fmt: skip
