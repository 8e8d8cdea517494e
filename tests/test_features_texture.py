"""Texture: how the levels of pixels at a given distance occur together."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from plateloom.features import feature_columns, measure_image, texture
from plateloom.features.pixels import PixelIndex

MEASURES = (
    *("AngularSecondMoment", "Contrast", "Correlation", "Variance", "InverseDifferenceMoment", "SumAverage"),
    *("SumVariance", "SumEntropy", "Entropy", "DifferenceVariance", "DifferenceEntropy", "InfoMeas1", "InfoMeas2"),
)
DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1))


def measure_textures(image, labels, scales=(3,)):
    """Values of one compartment: labels, and an array (N, 13, C, S, 4)."""
    channels = [f"C{c}" for c in range(len(image))]
    options = {"families": ["Texture"], "texture_scales": scales}
    table = measure_image(image, {"Cells": labels}, channels, **options)["Cells"]
    return table.index.to_numpy(), table.to_numpy().reshape(len(table), 13, len(image), len(scales), 4)


def measure_levels(rows, scale=1):
    """Measures by name and direction of an object that fills an image of given levels; level 0 is inside as well."""
    image = np.array([rows], np.uint8)
    values = measure_textures(image, np.ones(image.shape[1:], int), (scale,))[1]
    return dict(zip(MEASURES, values[0, :, 0, 0], strict=True))


def entropy(probabilities):
    present = probabilities[probabilities > 0]
    return -(present * np.log2(present)).sum()


def expected_textures(levels, scale):
    """Measures (13, 4) of levels that are 0 outside of the object, each from the whole matrix by its definition."""
    out = []
    for down, right in DIRECTIONS:
        matrix = np.zeros((int(levels.max()) + 1,) * 2)
        padded = np.pad(levels, scale)
        for y, x in np.argwhere(padded):
            one, other = padded[y, x], padded[y + scale * down, x + scale * right]
            if other:
                matrix[one, other] += 1
                matrix[other, one] += 1
        if not matrix.any():
            return np.zeros((13, 4))
        p = matrix / matrix.sum()
        i, j = np.indices(p.shape)
        marginal, sums = p.sum(axis=0), np.bincount((i + j).ravel(), p.ravel())
        differences = np.bincount(abs(i - j).ravel(), p.ravel())
        mean = (i * p).sum()
        variance = ((i - mean) ** 2 * p).sum()
        independent = np.outer(marginal, marginal)
        cross = -(p * np.log2(independent, where=p > 0, out=np.zeros_like(p))).sum()
        out.append(
            [
                (p**2).sum(),
                ((i - j) ** 2 * p).sum(),
                ((i - mean) * (j - mean) * p).sum() / variance if variance > 0 else 1,
                variance,
                (p / (1 + (i - j) ** 2)).sum(),
                ((i + j) * p).sum(),
                ((i + j - 2 * mean) ** 2 * p).sum(),
                entropy(sums),
                entropy(p),
                differences.var(),
                entropy(differences),
                (entropy(p) - cross) / (entropy(marginal) or 1),
                np.sqrt(max(0, 1 - np.exp(-2 * (entropy(independent) - entropy(p))))),
            ]
        )
    return np.transpose(out)


def patches(seed=0, size=48):
    """Label image with gaps: irregular objects up to the border, some with holes or in pieces."""
    height = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 2)
    territory = np.add.outer(np.arange(size) // 16 * 10, np.arange(size) // 16) + 1
    return np.where(height > -0.05, 3 * territory, 0)


def levels_of(kind, seed=0, size=48):
    """Image of levels: uint8, shape (2, size, size)."""
    random = np.random.default_rng(seed)
    structure = ndimage.gaussian_filter(random.normal(size=(2, size, size)), (0, 2, 2))
    structure = (structure - structure.min()) / np.ptp(structure)
    images = {
        "noise": random.integers(0, 256, (2, size, size)),
        "smooth": 255 * structure,
        "few": 90 + 10 * structure,
        "dark": np.maximum(25 * structure - 12, 0),
        "bright": np.minimum(100 + 400 * structure, 255),
        "two": 1 + 254 * (structure > 0.5),
    }
    return images[kind].astype(np.uint8)


@pytest.mark.parametrize("kind", ["noise", "smooth", "few", "dark", "bright", "two"])
def test_textures_are_those_of_the_whole_matrix(kind):
    image, labels = levels_of(kind), patches()
    scales = (1, 3, 7)
    numbers, values = measure_textures(image, labels, scales)
    assert len(numbers) > 5
    for number, ours in zip(numbers, values, strict=True):
        for c, s in ((0, 0), (1, 1), (0, 2)):
            expected = expected_textures(np.where(labels == number, image[c], 0), scales[s])
            assert_allclose(ours[:, c, s], expected, rtol=1e-9, atol=1e-7, err_msg=f"{number}, {c}, {s}")
            assert_allclose(ours[:12, c, s], expected[:12], rtol=1e-9, atol=1e-11, err_msg=f"{number}, {c}, {s}")


def test_two_columns_have_the_textures_that_one_computes_by_hand():
    textures = measure_levels([[10, 20], [10, 20]])
    info = np.sqrt(1 - np.exp(-2))
    expected = {
        "AngularSecondMoment": (0.5, 0.5),
        "Contrast": (100, 0),
        "Correlation": (-1, 1),
        "Variance": (25, 25),
        "InverseDifferenceMoment": (1 / 101, 1),
        "SumAverage": (30, 30),
        "SumVariance": (0, 100),
        "SumEntropy": (0, 1),
        "Entropy": (1, 1),
        # Of the 21 differences 0 … 20 one has probability 1.
        "DifferenceVariance": (20 / 441, 20 / 441),
        "DifferenceEntropy": (0, 0),
        "InfoMeas1": (-1, -1),
        "InfoMeas2": (info, info),
    }
    for measure, (across, along) in expected.items():
        assert_allclose(textures[measure], [across, across, along, across], rtol=1e-14, err_msg=measure)


@pytest.mark.parametrize("level", [1, 2, 77, 255])
@pytest.mark.parametrize("size", [4, 47, 300])
def test_a_constant_has_no_texture_at_all(level, size):
    textures = measure_levels(np.full((size, size), level), 3)
    expected = {"AngularSecondMoment": 1, "Correlation": 1, "InverseDifferenceMoment": 1, "SumAverage": 2 * level}
    for measure in MEASURES:
        if measure == "DifferenceVariance":
            assert_allclose(textures[measure], level / (level + 1) ** 2, rtol=1e-14)
        else:
            assert_array_equal(textures[measure], expected.get(measure, 0), err_msg=measure)


@pytest.mark.parametrize(
    "rows",
    [
        [[5]],
        [[5, 6, 7]],
        [[5], [6], [7]],
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [5, 6, 7], [0, 0, 0]],
        [[5, 0, 0], [0, 6, 0], [0, 0, 7]],
        [[5, 0, 6], [0, 0, 0], [7, 0, 8]],
    ],
)
def test_an_object_without_pairs_in_one_direction_is_0_in_all(rows):
    textures = measure_levels(rows)
    assert_array_equal([textures[measure] for measure in MEASURES], 0)


@pytest.mark.parametrize(("scale", "found"), [(3, True), (4, False), (5, False), (1000, False)])
def test_an_object_smaller_than_the_scale_is_0(scale, found):
    assert measure_levels(np.arange(1, 21).reshape(4, 5), scale)["SumAverage"].any() == found


def test_large_scales_do_not_reach_around_the_other_side():
    random = np.random.default_rng(0)
    labels = np.where(random.random((33, 40)) < 0.7, 4, 0)
    image = random.integers(1, 50, (1, 33, 40), dtype=np.uint8)
    scales = (30, 12, 26)
    values = measure_textures(image, labels, scales)[1][0, :, 0]
    for s, scale in enumerate(scales):
        expected = expected_textures(np.where(labels > 0, image[0], 0), scale)
        assert_allclose(values[:12, s], expected[:12], rtol=1e-9, atol=1e-11)
    assert (values[5] > 0).all()


def test_pixels_of_level_0_and_outside_are_in_no_pair():
    image, labels = levels_of("dark"), patches()
    assert ((image == 0) & (labels > 0)).any()
    numbers, before = measure_textures(image, labels)
    cut = np.where(image[0] > 0, labels, 0)
    image[0][labels == 0] = 255
    again, after = measure_textures(image[:1], cut)
    assert_array_equal(again, numbers)
    assert_array_equal(after, before[:, :, :1])


def test_levels_are_the_nearest_of_256():
    intensities = np.arange(65536, dtype=np.uint16).reshape(1, 256, 256)
    nearest = np.rint(intensities / 65535 * 255)
    assert_array_equal(texture._quantize(intensities), nearest)
    assert_array_equal(texture._quantize(intensities / 65535), nearest)
    assert_array_equal(texture._quantize(levels_of("noise")), levels_of("noise"))
    # Ties go to the even level.
    assert_array_equal(texture._quantize(np.array([[[0.5 / 255, 1.5 / 255, 0.5, -0.1, 1.1]]])), [[[0, 2, 128, 0, 255]]])


def test_stretching_the_levels_scales_contrast_and_keeps_entropies():
    labels = patches()
    few = levels_of("few") - 89
    _, before = measure_textures(few, labels)
    _, after = measure_textures(few * 20, labels)
    for measure, factor in {
        **dict.fromkeys(("Contrast", "Variance", "SumVariance"), 400),
        "SumAverage": 20,
        **dict.fromkeys(("AngularSecondMoment", "Correlation", "Entropy", "InfoMeas1", "InfoMeas2"), 1),
        **dict.fromkeys(("SumEntropy", "DifferenceEntropy"), 1),
    }.items():
        m = MEASURES.index(measure)
        assert_allclose(after[:, m], factor * before[:, m], rtol=1e-11, atol=1e-12, err_msg=measure)


@pytest.mark.parametrize("kind", ["smooth", "few"])
def test_turning_the_image_turns_the_directions(kind):
    image, labels = levels_of(kind), patches()
    numbers, before = measure_textures(image, labels)
    for turned, order in {
        lambda array: array.swapaxes(-1, -2): [2, 1, 0, 3],
        lambda array: array[..., ::-1]: [0, 3, 2, 1],
        lambda array: array[..., ::-1, ::-1]: [0, 1, 2, 3],
    }.items():
        again, after = measure_textures(turned(image), turned(labels))
        assert_array_equal(again, numbers)
        assert_allclose(after[..., order], before, rtol=1e-11, atol=1e-12)


def test_objects_do_not_depend_on_each_other():
    image, labels = levels_of("smooth"), patches()
    numbers, together = measure_textures(image, labels, (3, 5))
    for share in (numbers[::2], numbers[1::2], numbers[:1]):
        again, alone = measure_textures(image, np.where(np.isin(labels, share), labels, 0), (3, 5))
        assert_array_equal(again, share)
        assert_array_equal(alone, together[np.isin(numbers, share)])


def test_scales_do_not_depend_on_each_other():
    image, labels = levels_of("smooth"), patches()
    _, together = measure_textures(image, labels, (10, 1, 3))
    for s, scale in enumerate((10, 1, 3)):
        assert_array_equal(measure_textures(image, labels, (scale,))[1][:, :, :, 0], together[:, :, :, s])


def test_thousands_of_objects_are_measured():
    labels = np.kron(np.arange(1, 5001).reshape(50, 100), np.ones((5, 4), int))
    image = np.random.default_rng(0).integers(0, 65536, (1, *labels.shape), dtype=np.uint16)
    numbers, values = measure_textures(image, labels)
    assert_array_equal(numbers, np.arange(1, 5001))
    for number in (1, 2, 1234, 5000):
        levels = np.where(labels == number, texture._quantize(image)[0], 0)
        assert_allclose(values[number - 1, :12, 0, 0], expected_textures(levels, 3)[:12], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 70)])
def test_narrow_images_are_measured(shape):
    image = np.full((1, *shape), 0.5)
    values = measure_textures(image, np.ones(shape, int), (1,))[1]
    assert values[0, 5].tolist() == [[[256.0] * 4 if min(shape) > 1 else [0.0] * 4]]


def test_the_levels_are_made_once_per_image():
    image, made = levels_of("few"), []
    index = PixelIndex(patches(), image)
    texture.measure(index, image, ["C0", "C1"])
    index.shared.once(("Texture", "levels"), lambda: made.append(1))
    assert not made


def test_columns_are_in_the_order_of_cellprofiler():
    columns = feature_columns("Cells", ["DNA", "ER"], families=["Texture"], texture_scales=(3, 10))
    assert len(columns) == 13 * 2 * 2 * 4
    assert columns[:5] == [
        *(f"Cells_Texture_AngularSecondMoment_DNA_3_{direction}_256" for direction in ("00", "01", "02", "03")),
        "Cells_Texture_AngularSecondMoment_DNA_10_00_256",
    ]
    assert columns[8] == "Cells_Texture_AngularSecondMoment_ER_3_00_256"
    assert columns[16] == "Cells_Texture_Contrast_DNA_3_00_256"


@pytest.mark.parametrize("scales", [(0,), (3, -1), (2.5,), (3, 3)])
def test_scales_that_are_no_distances_are_refused(scales):
    with pytest.raises(ValueError, match="texture_scales"):
        measure_textures(levels_of("few"), patches(), scales)


def test_without_scales_or_channels_there_are_no_columns():
    assert measure_textures(levels_of("few"), patches(), ())[1].size == 0
    assert measure_textures(levels_of("few")[:0], patches())[1].size == 0
