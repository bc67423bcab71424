"""Scans that are no CT of an abdomen in HU, made by code, with the check that should name each."""

import numpy as np
from scipy import ndimage

from kits_cascade.volumes.volume import volume_from_array


def mr_like(image, rng):
    """Bright fat, middling tissue, dark bone and air, an uneven coil, noise."""
    points = ([-1024, -700, -200, -100, -40, 60, 150, 300, 1500], [5, 40, 500, 820, 500, 380, 500, 120, 10])
    values = np.interp(image, *points)
    rows = np.linspace(0.7, 1.3, image.shape[1])[None, :, None]
    noise = [rng.normal(0, 18, image.shape) for _ in range(2)]
    return np.sqrt((values * rows + noise[0]) ** 2 + noise[1] ** 2).astype(np.int16)


def _grid(shape, spacing):
    return [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]


def _ellipse(shape, spacing, centre, radii):
    _, y, x = _grid(shape, spacing)
    plane = ((y - centre[0]) / radii[0])[:, None] ** 2 + ((x - centre[1]) / radii[1])[None, :] ** 2 <= 1
    return np.broadcast_to(plane, shape)


def head(image, spacing, rng):
    """A skull with a brain."""
    made = np.full(image.shape, -1000.0)
    for radius, value in ((0, 20), (5, 900), (11, 36)):
        made[_ellipse(image.shape, spacing, (0, 0), (98 - radius, 78 - radius))] = value
    return _scanned(made, rng)


def legs(image, spacing, rng):
    """Two thighs with their bones."""
    made = np.full(image.shape, -1000.0)
    for side in (-88, 88):
        for radius, value in ((80, -100), (66, 55), (15, 1000), (8, 20)):
            made[_ellipse(image.shape, spacing, (0, side), (radius, radius))] = value
    return _scanned(made, rng)


def _scanned(made, rng):
    return (ndimage.gaussian_filter(made, (0, 1, 1)) + rng.normal(0, 12, made.shape)).astype(np.int16)


def without_slices(image, spacing):
    """30 mm of slices lost in the middle."""
    middle, lost = len(image) // 2, max(1, round(30 / spacing[0]))
    return np.concatenate([image[:middle], image[middle + lost :]])


def with_doubles(image):
    """Three slices twice."""
    places = [len(image) * part // 4 for part in (1, 2, 3)]
    return np.repeat(image, [2 if k in places else 1 for k in range(len(image))], axis=0)


def cylinder(image, spacing, rng, inserts=()):
    """Water in a round tank, with rods of other materials: centre y and x, radius in mm, value."""
    made = np.full(image.shape, -1000.0)
    made[_ellipse(image.shape, spacing, (0, 0), (110, 110))] = 0
    for y, x, radius, value in inserts:
        made[_ellipse(image.shape, spacing, (y, x), (radius, radius))] = value
    return _scanned(made, rng)


QA_RODS = ((60, 60, 12.5, 955), (60, -60, 12.5, -1000), (-60, 60, 12.5, 120), (-60, -60, 12.5, -95), (0, 0, 6, 35))


def drifted(image):
    """Tissue 150 HU too dense, and more so in the middle, as a cone beam has it without a calibration."""
    y, x = (np.linspace(-1, 1, n) for n in image.shape[1:])
    cup = 60 * np.exp(-2 * (y[:, None] ** 2 + x[None, :] ** 2))
    return np.where(image > -300, image + 150 + cup, image).clip(-1024, 3071).astype(np.int16)


def chest(image, spacing, rng):
    """The body's middle section with lungs in it, from the lowest slice to the highest."""
    section = image[len(image) // 2]
    body = ndimage.binary_opening(section > -300, iterations=3)
    ends = [np.flatnonzero(body.any(axis=axis))[[0, -1]] for axis in (1, 0)]
    y, x = ((low + high + 1 - n) / 2 * s for (low, high), n, s in zip(ends, body.shape, spacing[1:], strict=True))
    depth, width = ((high - low) * s for (low, high), s in zip(ends, spacing[1:], strict=True))
    sides = [_ellipse(image.shape, spacing, (y, x + way * width), (0.34 * depth, 0.17 * width)) for way in (-0.2, 0.2)]
    lungs = sides[0] | sides[1]
    return np.where(lungs, -850, section + rng.normal(0, 12, image.shape)).astype(np.int16)


def sheared(affine, degrees):
    """Slices that are shifted against each other, as after a tilt of the gantry."""
    made = affine.copy()
    made[:3, 2] += (
        affine[:3, 1] / np.linalg.norm(affine[:3, 1]) * np.tan(np.radians(degrees)) * np.linalg.norm(affine[:3, 2])
    )
    return made


def thicker(volume, thickness_mm):
    """Fewer, thicker slices."""
    step = max(2, round(thickness_mm / volume.spacing[0]))
    count = len(volume.array) // step * step
    array = volume.array[:count].reshape(-1, step, *volume.shape[1:]).mean(axis=1)
    return volume_from_array(array.astype(np.int16), volume.affine @ np.diag([1, 1, step, 1]))


def odd_inputs(volume, seed=0):
    """Name, scan, and the check that should name it."""
    image, spacing = volume.array, volume.spacing
    for kind, made, check in odd_images(image, spacing, np.random.default_rng(seed)):
        yield kind, volume_from_array(np.ascontiguousarray(made), volume.affine), check
    yield "gantry tilt", volume_from_array(image, sheared(volume.affine, 12)), "view: tilted"
    yield "slices of 10 mm", thicker(volume, 10), "view: thick slices"


def odd_images(image, spacing, rng):
    """Those whose grid is as it was."""
    hu = image.astype(np.int32)
    yield "offset missing", (hu + 1024).clip(0, 4095).astype(np.int16), "values: offset missing"
    yield "x 100000", image.astype(np.float32) * 100_000, "values: scaled"
    yield "8-bit window", ((hu.clip(-160, 240) + 160) * 255 // 400).astype(np.uint8), "values: 8 bit"
    yield "inverted", (-hu).astype(np.int16), "values: inverted"
    yield "MR-like", mr_like(image, rng), "values: no CT"
    yield "head", head(image, spacing, rng), "view: head"
    yield "legs", legs(image, spacing, rng), "view: legs"
    yield "constant", np.full_like(image, 40), "values: nothing"
    yield "noise", rng.normal(0, 300, image.shape).astype(np.int16), "values: noise"
    yield "slices missing", without_slices(image, spacing), "view: slices missing"
    yield "duplicate slices", with_doubles(image), "view: slices doubled"
    yield "mirrored", image[:, :, ::-1], "view: mirrored"
    yield "water phantom", cylinder(image, spacing, rng), "view: phantom"
    yield "phantom with rods", cylinder(image, spacing, rng, QA_RODS), "view: phantom"
    yield "chest alone", chest(image, spacing, rng), "view: thorax only"
    yield "upside down", image[::-1], "view: upside down"
    yield "drift of a cone beam", drifted(image), "values: drift"


def with_metal(image, rng):
    """A hip joint of metal, with streaks."""
    made = image.astype(np.int32)
    z, y, x = (n // 2 for n in image.shape)
    made[z : z + 8, y - 6 : y + 6, x - 30 : x - 20] = 3071
    made[z : z + 8, y - 2 : y + 2] += rng.integers(-900, 900, made[z : z + 8, y - 2 : y + 2].shape)
    return made.clip(-1024, 3071).astype(np.int16)


def with_padding(image, value=-3024):
    """A round field of view of 300 mm or less, and nothing measured around it."""
    y, x = (np.linspace(-1, 1, n) for n in image.shape[1:])
    made = image.copy()
    made[:, (y[:, None] ** 2 + x[None, :] ** 2) > 0.98] = value
    return made


def true_inputs(image, spacing, seed=0):
    """Name and image of what must never be refused."""
    rng = np.random.default_rng(seed)
    yield "as it is", image
    yield "with metal", with_metal(image, rng)
    yield "padding -3024", with_padding(image)
    yield "padding -2000", with_padding(image, -2000)
    yield "noise of 35 HU", (image + rng.normal(0, 35, image.shape)).clip(-1024, 3071).astype(np.int16)
    # Contrast medium taken away: what is brighter than muscle comes down to it, bone stays.
    yield "plain", np.where((image > 55) & (image < 260), 40 + (image - 55) // 8, image).astype(np.int16)
    yield "late", np.where((image > 140) & (image < 260), image + 250, image).astype(np.int16)
