"""RadialDistribution: rings and wedges around the pixel farthest from the edge."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from skimage.graph import MCP_Geometric

from plateloom.features import measure_image
from plateloom.features.pixels import PixelIndex

MEASUREMENTS = ("FracAtD", "MeanFrac", "RadialCV")


def measure_rings(image, labels):
    """Values of one compartment: labels, and an array (N, C, 3, 4) of measurements and rings."""
    channels = [f"C{c}" for c in range(len(image))]
    table = measure_image(image, {"Cells": labels}, channels, families=["RadialDistribution"])["Cells"]
    columns = [
        f"Cells_RadialDistribution_{measurement}_{channel}_{ring}of4"
        for channel in channels
        for measurement in MEASUREMENTS
        for ring in range(1, 5)
    ]
    return table.index.to_numpy(), table[columns].to_numpy().reshape(len(table), len(image), 3, 4)


def expected_rings(image, inside):
    """Rings (C, 3, 4) of one object that does not fill the image, by ready-made distances."""
    depth = ndimage.distance_transform_edt(inside)
    center = np.unravel_index(depth.argmax(), depth.shape)
    paths, _ = MCP_Geometric(np.where(inside, 1.0, -1.0)).find_costs([center])
    reached = inside & np.isfinite(paths)
    ring = np.full(inside.shape, -1)
    ring[reached] = 4 * (paths[reached] / (paths[reached] + depth[reached] + 0.001))
    down, right = np.indices(inside.shape) - np.reshape(center, (2, 1, 1))
    wedge = (down > 0) + 2 * (right > 0) + 4 * (np.abs(down) > np.abs(right))
    out = np.zeros((len(image), 3, 4))
    for c, values in enumerate(image):
        for r in range(4):
            in_ring = ring == r
            if in_ring.any():
                out[c, 0, r] = values[in_ring].sum() / values[reached].sum()
                out[c, 1, r] = out[c, 0, r] / (in_ring.sum() / reached.sum())
                means = [values[in_ring & (wedge == w)].mean() for w in np.unique(wedge[in_ring])]
                out[c, 2, r] = np.std(means) / np.mean(means)
    return out


def noise(shape, seed=0, channels=2):
    return np.random.default_rng(seed).integers(1, 65536, (channels, *shape), dtype=np.uint16)


def blobs(seed=0, shape=(60, 48)):
    """Label image of irregular objects up to the border, some touching, some with holes or in pieces."""
    height = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    territory = np.add.outer(np.arange(shape[0]) // 20 * 3, np.arange(shape[1]) // 20) + 1
    return np.where(height > -0.08, territory, 0)


def spiral(size=25):
    """A corridor of one pixel that winds into the middle, with walls of one pixel."""
    distance = np.indices((size, size))
    ring = np.minimum(distance, size - 1 - distance).min(axis=0)
    inside = (ring % 2 == 0).astype(int)
    for k in range(0, size // 2, 2):
        # Cut every second ring below its upper left corner and go on into the next one from there.
        inside[k + 1, k], inside[k + 2, k + 1] = 0, 1
    return inside


@pytest.mark.parametrize("seed", range(4))
def test_rings_are_those_of_ready_made_distances(seed):
    labels = blobs(seed)
    image = noise(labels.shape, seed)
    numbers, rings = measure_rings(image, labels)
    assert len(numbers) == 9
    for number, values in zip(numbers, rings, strict=True):
        assert_allclose(values, expected_rings(image / 65535, labels == number), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("turned", range(4))
@pytest.mark.parametrize("seed", range(3))
def test_paths_through_a_maze_are_the_shortest(seed, turned):
    labels = np.rot90(spiral() if seed == 0 else np.random.default_rng(seed).random((31, 24)) < 0.55, turned)
    labels = labels.astype(int)
    image = noise(labels.shape, seed)
    assert_allclose(
        measure_rings(image, labels)[1][0], expected_rings(image / 65535, labels == 1), rtol=1e-9, atol=1e-12
    )


def test_three_pixels_in_a_row():
    _, rings = measure_rings(np.array([[[9, 2, 4, 6, 9]]], np.uint8), np.array([[0, 1, 1, 1, 0]]))
    assert_allclose(rings[0, 0], [[1 / 3, 2 / 3, 0, 0], [1, 1, 0, 0], [0, 0.5, 0, 0]], atol=1e-15)


def test_of_equally_deep_pixels_the_first_is_the_center():
    image = np.array([[[0, 0, 0, 0], [0, 10, 20, 0], [0, 30, 40, 0], [0, 0, 0, 0]]], np.uint8)
    _, rings = measure_rings(image, (image[0] > 0).astype(int))
    # The upper left pixel, its two neighbors in wedges of their own, the diagonal one.
    assert_allclose(rings[0, 0, 0], [0.1, 0.5, 0.4, 0])
    assert_allclose(rings[0, 0, 1], [0.4, 1, 1.6, 0])
    assert_allclose(rings[0, 0, 2], [0, 0.2, 0, 0], atol=1e-15)


def test_the_border_of_the_image_is_no_edge():
    _, rings = measure_rings(np.array([[[1, 2, 5, 7]]], np.uint8), np.array([[3, 3, 3, 0]]))
    assert_allclose(rings[0, 0, 0], [1 / 8, 2 / 8, 5 / 8, 0])


def test_an_object_that_fills_the_image_is_measured_from_above_its_first_pixel():
    _, rings = measure_rings(np.array([[[10, 20], [30, 40]]], np.uint8), np.ones((2, 2), int))
    # Squared distances 1, 2 and 4, 5: the last pixel is the center, the others lie 2^0.5, 1 and 1 away.
    assert_allclose(rings[0, 0, 0], [0.4, 0.5, 0.1, 0])


def test_another_piece_of_the_object_counts_nowhere():
    labels = np.zeros((12, 12), int)
    labels[2:7, 2:7] = 5
    whole = labels.copy()
    whole[10, 3:9] = 5
    image = noise(labels.shape)
    assert_array_equal(measure_rings(image, whole)[1], measure_rings(image, labels)[1])


def test_a_pixel_touching_diagonally_belongs_to_the_piece():
    labels = np.eye(5, dtype=int)
    _, rings = measure_rings(np.full((1, 5, 5), 9, np.uint8), labels)
    assert rings[0, 0, 0].sum() == pytest.approx(1)
    assert rings[0, 0, 0, 0] == pytest.approx(0.2)


def test_an_object_of_one_pixel_lies_in_the_first_ring():
    _, rings = measure_rings(np.array([[[0, 9, 0]], [[7, 0, 7]]], np.uint8), np.array([[0, 1, 0]]))
    assert_allclose(rings[0, 0], [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], rtol=1e-15)
    # Nothing to share out, nothing to vary.
    assert_array_equal(rings[0, 1], [[np.nan] * 4, [np.nan] * 4, [0] * 4])


def test_a_constant_object_has_the_same_mean_in_every_ring_and_does_not_vary():
    labels = np.pad(np.ones((9, 9), int), 2)
    _, rings = measure_rings(np.full((1, 13, 13), 65535, np.uint16), labels)
    assert_allclose(rings[0, 0, 0].sum(), 1)
    assert_allclose(rings[0, 0, 1], 1)
    assert_allclose(rings[0, 0, 2], 0, atol=1e-12)


def test_brightness_does_not_matter():
    labels = blobs()
    image = noise(labels.shape) / 65535
    assert_allclose(measure_rings(image / 7, labels)[1], measure_rings(image, labels)[1], rtol=1e-9)


def test_objects_do_not_depend_on_each_other():
    labels = blobs()
    image = noise(labels.shape)
    numbers, rings = measure_rings(image, labels)
    for part in (numbers[::2], numbers[1::2]):
        found, values = measure_rings(image, np.where(np.isin(labels, part), labels, 0))
        assert_array_equal(found, part)
        assert_array_equal(values, rings[np.isin(numbers, part)])


def test_rings_of_an_object_with_one_deepest_pixel_turn_with_it():
    rows, columns = np.indices((23, 19))
    labels = (((rows - 11) / 9) ** 2 + ((columns - 9) / 7) ** 2 <= 1).astype(int)
    image = noise(labels.shape)
    shares = measure_rings(image, labels)[1][:, :, :2]
    for turned in range(1, 4):
        _, rings = measure_rings(np.rot90(image, turned, (1, 2)), np.rot90(labels, turned))
        assert_allclose(rings[:, :, :2], shares, rtol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_depths_are_squared_distances_to_the_nearest_pixel_outside(seed):
    labels = blobs(seed, (31, 57))
    index = PixelIndex(labels, np.zeros((0, 31, 57), np.uint8))
    for i, number in enumerate(index.labels):
        inside = labels == number
        pixels = slice(index.offsets[i], index.offsets[i + 1])
        assert_allclose(index.depths[pixels], ndimage.distance_transform_edt(inside)[inside] ** 2)


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (7, 8)])
def test_depths_of_an_object_across_the_whole_image(shape):
    labels = np.ones(shape, int)
    image = np.zeros((0, *shape), np.uint8)
    assert set(PixelIndex(labels, image).depths) == {2**30}
    labels[0, 0] = 0
    index = PixelIndex(labels, image)
    assert_array_equal(index.depths, index.rows**2 + index.columns**2)


def test_runs_end_with_row_object_or_gap():
    labels = np.array([[1, 1, 2, 1], [1, 0, 2, 2], [0, 0, 2, 2]])
    index = PixelIndex(labels, np.zeros((0, 3, 4), np.uint8))
    assert index.runs.tolist() == [0, 2, 3, 4, 5, 7, 9]
