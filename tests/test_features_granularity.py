"""Granularity: what opening by ever larger diamonds takes from the intensity of an object."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from skimage import morphology

from plateloom.features import feature_columns, granularity, measure_image
from plateloom.features.pixels import PixelIndex
from plateloom.stages.features import _fill_holes


def measure_steps(image, labels):
    """Values of one compartment: labels, and an array (N, C, 16)."""
    channels = [f"C{c}" for c in range(len(image))]
    table = measure_image(image, {"Cells": labels}, channels, families=["Granularity"])["Cells"]
    return table.index.to_numpy(), table.to_numpy().reshape(len(table), len(image), 16)


def sample(pixels):
    """Every 4th pixel of an image in 0 … 1 less its background, step by step as CellProfiler does it."""
    size = np.array(pixels.shape)
    samples = ndimage.map_coordinates(pixels, np.mgrid[: size[0] / 4, : size[1] / 4] * 4.0, order=1)
    background = ndimage.map_coordinates(samples, np.mgrid[: size[0] / 16, : size[1] / 16] * 4.0, order=1)
    # Reflected at the border, as CellProfiler has it, is the same, but scipy fails where the disk is far larger.
    disk = morphology.disk(10)
    background = ndimage.minimum_filter(background, footprint=disk, mode="constant", cval=np.inf)
    background = ndimage.maximum_filter(background, footprint=disk, mode="constant", cval=-np.inf)
    return np.maximum(samples - stretch(background, size / 16, size / 4), 0)


def stretch(samples, size, larger):
    """Interpolate samples, of a grid of a fractional size, on a larger grid."""
    rows, columns = np.mgrid[: larger[0], : larger[1]].astype(float)
    rows *= float(size[0] - 1) / float(larger[0] - 1)
    columns *= float(size[1] - 1) / float(larger[1] - 1)
    return ndimage.map_coordinates(samples, (rows, columns), order=1)


def reconstruct(samples):
    """What remains after each of the 16 steps: erosion, then reconstruction."""
    eroded, diamond = samples, morphology.disk(1)
    for _ in range(16):
        eroded = morphology.erosion(eroded, diamond)
        yield morphology.reconstruction(eroded, samples, footprint=diamond)


def expected_steps(pixels, labels):
    """Values (N, 16) of one channel in 0 … 1, the interpolated image made in full."""
    numbers, size = np.unique(labels[labels > 0]), np.array(pixels.shape)
    means = [ndimage.mean(pixels, labels, numbers)]
    for remains in reconstruct(sample(pixels)):
        means.append(ndimage.mean(stretch(remains, size / 4, size), labels, numbers))
    return -100 * np.diff(means, axis=0).T / np.maximum(means[0], np.finfo(float).eps)[:, None]


def texture(shape, seed=0, channels=1, dtype=np.uint16):
    """Structures of several sizes."""
    random = np.random.default_rng(seed)
    image = sum(
        width * ndimage.gaussian_filter(random.normal(size=(channels, *shape)), (0, width, width))
        for width in (0.5, 3, 12)
    )
    image = (image - image.min()) / np.ptp(image)
    return (image * np.iinfo(dtype).max).astype(dtype)


def patches(shape, seed=0):
    """Label image with gaps: irregular objects up to the border, some with holes or in pieces."""
    height = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    territory = np.add.outer(np.arange(shape[0]) // 20 * 50, np.arange(shape[1]) // 25) + 3
    return np.where(height > -0.05, territory, 0)


# The sides include multiples of 16 and of 4, and such as leave less than one sample of the background.
@pytest.mark.parametrize(
    "shape", [(64, 48), (60, 60), (37, 101), (150, 143), (13, 70), (16, 17), (5, 9), (7, 200), (2, 3), (2, 40)]
)
def test_values_are_those_of_ready_made_morphology(shape):
    image, labels = texture(shape, channels=2), patches(shape)
    numbers, steps = measure_steps(image, labels)
    assert_array_equal(numbers, np.unique(labels[labels > 0]))
    for c, channel in enumerate(image):
        assert_allclose(steps[:, c], expected_steps(channel / 65535, labels), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_few_intensities_give_what_many_do(seed):
    image, labels = texture((90, 110), seed, dtype=np.uint8) // 60 * 60, patches((90, 110), seed)
    _, steps = measure_steps(image, labels)
    assert_allclose(steps[:, 0], expected_steps(image[0] / 255, labels), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("shape", [(120, 77), (333, 250)])
def test_samples_and_reconstructions_are_exact(shape):
    image = texture(shape)
    samples = sample(image[0] / 65535)
    levels, endurance, heirs = (
        array[0] for array in granularity._resolve_channels(image, PixelIndex(np.zeros(shape, int), image).levels)
    )
    frame = np.pad(np.ones(samples.shape, bool), 1).ravel()
    assert_array_equal(levels[frame].reshape(samples.shape), samples)
    at = np.arange(len(levels))
    for step, remains in enumerate(reconstruct(samples), start=1):
        while (short := frame & (endurance[at] < step)).any():
            at[short] = heirs[at[short]]
        assert_array_equal(levels[at][frame].reshape(samples.shape), remains)


@pytest.mark.parametrize("size", range(17))
def test_a_structure_goes_in_the_step_whose_diamond_it_does_not_hold(size):
    image = np.zeros((1, 200, 180), np.uint8)
    rows, columns = np.mgrid[:200:4, :180:4] // 4
    # A quarter of a diamond in the corner: as outside pixels do not count, it holds a diamond as if it were whole.
    image[0, ::4, ::4] = 255 * (rows + columns <= size)
    labels = np.zeros((200, 180), int)
    labels[0, 0] = 1
    expected = np.zeros(16)
    expected[size : size + 1] = 100
    assert_array_equal(measure_steps(image, labels)[1][0, 0], expected)


@pytest.mark.parametrize("intensity", [1, 77, 255])
def test_all_of_a_constant_image_is_background(intensity):
    image = np.full((1, 50, 70), intensity, np.uint8)
    _, steps = measure_steps(image, patches((50, 70)))
    assert_allclose(steps[:, 0, 0], 100)
    assert_allclose(steps[:, 0, 1:], 0, atol=1e-9)


def test_an_object_without_intensity_is_measured_against_the_smallest_difference():
    image, labels = texture((64, 80)), np.zeros((64, 80), int)
    labels[:3], labels[21:40, 21:40], labels[60:, 60:] = 1, 2, 3
    image[0, labels == 2] = 0
    _, steps = measure_steps(image, labels)
    assert np.abs(steps[1]).max() > 1e6
    assert_allclose(steps[:, 0], expected_steps(image[0] / 65535, labels), rtol=1e-6, atol=1e-9)
    assert_array_equal(measure_steps(np.zeros_like(image), labels)[1], 0)


def test_hard_objects_are_measured():
    image, labels = texture((100, 120)), np.zeros((100, 120), np.int64)
    labels[0, 0], labels[99, 119], labels[50, 0:2] = 7, 70_000, 9
    labels[10:30, 10:30], labels[15:25, 15:25] = 11, 0
    labels[19:21, 19:21] = 12
    labels[5, 100:], labels[90:95, 3:9] = 13, 13
    labels[40:80, 40:80] = 1 << 40
    image[0, 40:60, 40:80], image[0, 60:80, 40:80] = 65535, 0
    numbers, steps = measure_steps(image, labels)
    assert numbers.tolist() == [7, 9, 11, 12, 13, 70_000, 1 << 40]
    renumbered = np.searchsorted(numbers, labels) + 1
    renumbered[labels == 0] = 0
    assert_allclose(steps[:, 0], expected_steps(image[0] / 65535, renumbered), rtol=1e-9, atol=1e-10)


def test_thousands_of_objects_are_measured():
    image = texture((300, 280))
    labels = np.add.outer(np.arange(300) // 4 * 70, np.arange(280) // 4) + 1
    numbers, steps = measure_steps(image, labels)
    assert len(numbers) == 5250
    assert_allclose(steps[:, 0], expected_steps(image[0] / 65535, labels), rtol=1e-9, atol=1e-10)


def test_objects_do_not_depend_on_those_measured_with_them():
    image, labels = texture((90, 110), channels=2), patches((90, 110))
    numbers, steps = measure_steps(image, labels)
    for chosen in (numbers % 2 == 0, numbers % 2 == 1):
        some, some_steps = measure_steps(image, np.where(np.isin(labels, numbers[chosen]), labels, 0))
        assert_array_equal(some, numbers[chosen])
        assert_array_equal(some_steps, steps[chosen])


def test_compartments_share_an_image_and_give_what_each_gives_alone():
    image, cells = texture((90, 110), channels=2), patches((90, 110))
    nuclei = np.where(ndimage.minimum_filter(cells, 5) == cells, cells, 0)
    tables = measure_image(image, {"Nuclei": nuclei, "Cells": cells}, ["DNA", "ER"], families=["Granularity"])
    assert_array_equal(tables["Nuclei"], measure_steps(image, nuclei)[1].reshape(-1, 32))
    assert_array_equal(tables["Cells"], measure_steps(image, cells)[1].reshape(-1, 32))


def test_transposition_changes_nothing():
    image, labels = texture((90, 110)), patches((90, 110))
    _, steps = measure_steps(image, labels)
    _, transposed = measure_steps(image.transpose(0, 2, 1), labels.T)
    assert_allclose(transposed, steps, rtol=1e-9, atol=1e-10)


def test_a_float_image_gives_the_same_and_stays_as_it_is():
    image, labels = texture((90, 110)), patches((90, 110))
    floats = image / 65535
    before = floats.copy()
    assert_array_equal(measure_steps(floats, labels)[1], measure_steps(image, labels)[1])
    assert_array_equal(floats, before)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (4, 4), (4, 30)])
def test_sides_that_cellprofiler_cannot_divide_are_measured(shape):
    image = np.full((1, *shape), 51, np.uint8)
    _, steps = measure_steps(image, np.ones(shape, int))
    assert_allclose(steps[0, 0], [100] + [0] * 15, atol=1e-9)


def test_columns_are_ordered_by_channel_and_step():
    columns = feature_columns("Cells", ["DNA", "ER"], families=["Granularity"])
    assert columns == [f"Cells_Granularity_{step}_{channel}" for channel in ("DNA", "ER") for step in range(1, 17)]
    assert measure_steps(np.zeros((0, 5, 5), np.uint8), np.ones((5, 5), int))[1].shape == (1, 0, 16)


def test_gaps_between_the_fields_of_a_stitched_well_are_no_background():
    rng, shape = np.random.default_rng(0), (300, 300)
    image = (0.1 + 0.06 * rng.random(shape)).astype(np.float32)
    y, x = (place % 100 - 50 for place in np.indices(shape))
    labels = np.where(y**2 + x**2 < 200, 1 + 3 * (np.indices(shape)[0] // 100) + np.indices(shape)[1] // 100, 0)
    image[labels > 0] += 0.2
    covered = np.minimum(y, x) >= -44
    holed = np.where(covered, image, np.float32(np.nan))[None]
    known, zeros, filled = (
        measure_image(one, {"Nuclei": labels}, ["DNA"], families=["Granularity"])["Nuclei"].iloc[:, 0].mean()
        for one in (image[None], np.nan_to_num(holed), _fill_holes(holed.copy()))
    )
    assert abs(filled - known) < 0.1 * abs(zeros - known)
