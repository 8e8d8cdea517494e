"""Zernike moments against scipy's Jacobi polynomials, hand-made objects and centrosome's enclosing circles."""

from itertools import chain, combinations, product

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage, spatial, special

from plateloom.features import measure_image
from plateloom.features.pixels import PixelIndex
from plateloom.features.zernike import _find_circles

INDICES = [(n, m) for n in range(10) for m in range(n + 1) if (n - m) % 2 == 0]
MASK = [f"AreaShape_Zernike_{n}_{m}" for n, m in INDICES]
MAGNITUDE = [f"RadialDistribution_ZernikeMagnitude_DNA_{n}_{m}" for n, m in INDICES]
PHASE = [f"RadialDistribution_ZernikePhase_DNA_{n}_{m}" for n, m in INDICES]


def zernikes(image, labels):
    """Table of one compartment and of the channels DNA and ER (those there are), without its prefix."""
    channels = ["DNA", "ER"][: len(image)]
    table = measure_image(image, {"Cells": np.asarray(labels)}, channels, families=["Zernike"])["Cells"]
    return table.rename(columns=lambda column: column.removeprefix("Cells_"))


def noise(shape, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 65536, (channels, *shape), dtype=np.uint16)


def blobs(seed=0, size=120, sigma=3):
    height = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), sigma)
    return ndimage.label(height > height.std() / 2)[0]


def enclosing_circle(points):
    """Center and radius of the smallest circle, by trial: of those through two or three corners, one holds them all."""
    try:
        corners = points[spatial.ConvexHull(points).vertices].astype(float)
    except spatial.QhullError:
        corners = points[[0, -1]].astype(float)
    best = None, np.inf
    for subset in chain(combinations(corners, 2), combinations(corners, 3)):
        first, *others = subset
        if len(others) == 1:
            center = (first + others[0]) / 2
        else:
            chords = np.array(others) - first
            center = first + np.linalg.solve(chords, (chords**2).sum(axis=1) / 2)
        radius = np.hypot(*(first - center))
        if radius < best[1] and np.hypot(*(corners - center).T).max() <= radius * (1 + 1e-9):
            best = center, radius
    return best


def polynomials_of(points, center, radius):
    """Complex values of every polynomial at every pixel."""
    y, x = ((points - center) / radius).T
    r, angle = np.hypot(y, x), np.arctan2(x, y)
    radial = {(n, m): special.eval_jacobi((n - m) // 2, m, 0, 1 - 2 * r**2) * r**m for n, m in INDICES}
    return np.array([(-1) ** ((n - m) // 2) * radial[n, m] * np.exp(1j * m * angle) for n, m in INDICES])


def admissible_pixels(points, center, radius):
    """Flags of the pixels that count: rounding decides about each of those that lie on the circle."""
    on_circle = np.flatnonzero(np.abs(np.hypot(*(points - center).T) - radius) < 1e-9 * radius)
    for lost in product((False, True), repeat=len(on_circle)):
        counted = np.ones(len(points), bool)
        counted[on_circle[list(lost)]] = False
        yield counted


def assert_zernikes_are_those_of_scipy(image, labels):
    table = zernikes(image, labels)
    for label in table.index:
        points, weights = np.argwhere(labels == label), image[0][labels == label] / 65535
        if len(points) == 1:
            assert table.loc[label].isna().all()
            continue
        center, radius = enclosing_circle(points)
        polynomials = polynomials_of(points, center, radius)
        mask, magnitude, phase = (table.loc[label, names].to_numpy() for names in (MASK, MAGNITUDE, PHASE))
        agreed = False
        for counted in admissible_pixels(points, center, radius):
            shape = np.abs(polynomials @ counted) / (np.pi * radius**2)
            # atan2(real, imaginary) is the angle of i times the conjugate.
            moments = 1j * (polynomials @ (counted * weights)).conj() / len(points)
            measured = magnitude * np.exp(1j * phase)
            agreed |= np.allclose(mask, shape, 1e-9, 1e-12) and np.allclose(measured, moments, 1e-9, 1e-12)
        assert agreed, label


@pytest.mark.parametrize("seed", range(3))
def test_zernikes_are_those_of_scipy(seed):
    assert_zernikes_are_those_of_scipy(noise((70, 90)), blobs(seed, 90)[:70])


def test_objects_with_holes_in_pieces_and_at_the_border_are_those_of_scipy():
    labels = np.zeros((40, 50), int)
    labels[:9, :7] = 1
    labels[2:5, 2:5] = 0
    labels[36:, 45:] = 1
    labels[20:39, 10:12] = labels[37:39, 10:30] = 4
    labels[8:10, 30:33] = labels[30, 41] = 5
    assert_zernikes_are_those_of_scipy(noise((40, 50)), labels)


def test_objects_wider_than_a_block_of_columns_are_those_of_scipy():
    y, x = np.mgrid[:60, :420]
    labels = np.where(((y - 30.2) / 24) ** 2 + ((x - 205.7) / 200) ** 2 < 1, 1, 0)
    labels[:, 133:136] = labels[20:30, 250:270] = 0
    assert_zernikes_are_those_of_scipy(noise((60, 420)), labels)


def test_lines_have_a_circle():
    labels = np.zeros((20, 20), int)
    labels[1, 2:9] = 1
    labels[4:17, 1] = 2
    labels[np.arange(3, 12), np.arange(5, 14)] = 3
    labels[np.arange(18, 10, -1), np.arange(4, 12)] = 4
    assert_zernikes_are_those_of_scipy(noise((20, 20)), labels)


def test_two_pixels_have_the_moments_that_one_computes_by_hand():
    # The circle's center lies between them: x = -1 and 1, y = 0.
    table = zernikes(np.array([[[0, 51, 204, 0]], [[0, 204, 51, 0]]], np.uint8), [[0, 3, 3, 0]])
    area = np.pi / 4
    for n, m, expected in ((0, 0, 2 / area), (1, 1, 0), (2, 0, 2 / area), (2, 2, 2 / area), (9, 1, 0)):
        assert table.loc[3, f"AreaShape_Zernike_{n}_{m}"] == pytest.approx(expected, abs=1e-12)
    # Per channel the sums are real for even m, where (ix)^2 = -1, and imaginary for odd m: i (0.8 - 0.2), i (0.2 - 0.8).
    for channel, sign in (("DNA", 1), ("ER", -1)):
        for n, m, magnitude, phase in (
            (0, 0, 0.5, np.pi / 2),
            (2, 2, 0.5, -np.pi / 2),
            (4, 4, 0.5, np.pi / 2),
            (1, 1, 0.3, 0 if sign > 0 else np.pi),
            (3, 3, 0.3, np.pi if sign > 0 else 0),
        ):
            name = f"{channel}_{n}_{m}"
            assert table.loc[3, f"RadialDistribution_ZernikeMagnitude_{name}"] == pytest.approx(magnitude)
            assert table.loc[3, f"RadialDistribution_ZernikePhase_{name}"] == pytest.approx(phase)


def test_a_disk_has_moments_without_angle_only():
    y, x = np.mgrid[-30:31, -30:31]
    table = zernikes(np.full((1, 61, 61), 65535, np.uint16), (y**2 + x**2 <= 900).astype(int)).loc
    for n, m in INDICES:
        if m % 4:
            assert table[1, f"AreaShape_Zernike_{n}_{m}"] < 1e-12
    assert table[1, "AreaShape_Zernike_0_0"] == pytest.approx(1, abs=5e-3)
    assert table[1, "RadialDistribution_ZernikeMagnitude_DNA_0_0"] == pytest.approx(1, abs=5e-3)
    assert table[1, "AreaShape_Zernike_2_0"] == pytest.approx(0, abs=5e-3)


def test_an_object_of_one_pixel_has_no_moments():
    table = zernikes(noise((3, 3), 2), [[0, 0, 0], [0, 2, 0], [0, 0, 5]])
    assert table.isna().all(axis=None)


def test_a_channel_of_zeros_has_magnitude_and_phase_zero():
    table = zernikes(np.zeros((1, 120, 120), np.uint16), blobs())
    areas = np.bincount(blobs().ravel())[table.index]
    assert (table.loc[areas > 1, MAGNITUDE + PHASE] == 0).all(axis=None)
    assert (table.loc[areas > 1, "AreaShape_Zernike_0_0"] > 0).all()


def test_a_constant_channel_has_the_moments_of_the_mask():
    labels = blobs(1)
    table = zernikes(np.full((1, 120, 120), 51, np.uint8), labels)
    table = table[table["AreaShape_Zernike_0_0"].notna()]
    circles = circles_of(labels)
    areas = np.bincount(labels.ravel())
    for label in table.index:
        factor = 0.2 * np.pi * circles[label][2] ** 2 / areas[label]
        assert_allclose(table.loc[label, MAGNITUDE], table.loc[label, MASK] * factor, rtol=1e-9, atol=1e-14)


def test_without_channels_the_mask_is_measured():
    labels = blobs()
    assert_array_equal(
        zernikes(np.zeros((0, 120, 120), np.uint8), labels)[MASK], zernikes(noise((120, 120)), labels)[MASK]
    )
    assert zernikes(np.zeros((0, 120, 120), np.uint8), labels).columns.tolist() == MASK


def test_columns_are_in_the_order_of_cellprofiler():
    assert zernikes(noise((4, 4)), np.eye(4, dtype=int)).columns.tolist() == MASK + MAGNITUDE + PHASE


def test_what_lies_around_an_object_changes_nothing():
    image, labels = noise((120, 120)), blobs(2)
    whole = zernikes(image, labels)
    assert_array_equal(zernikes(np.pad(image, ((0, 0), (0, 9), (0, 4))), np.pad(labels, ((0, 9), (0, 4)))), whole)
    for chosen in (whole.index[::2], whole.index[1::2]):
        assert_array_equal(zernikes(image, np.where(np.isin(labels, chosen), labels, 0)), whole.loc[chosen])


def test_moving_an_object_changes_pixels_on_the_circle_at_most():
    image, labels = noise((120, 120)), blobs(3)
    before = zernikes(image, labels)
    after = zernikes(np.pad(image, ((0, 0), (1003, 0), (517, 0))), np.pad(labels, ((1003, 0), (517, 0))))
    areas = np.bincount(labels.ravel())[before.index]
    # No polynomial exceeds 1.
    assert (np.abs(after - before)[MAGNITUDE].max(axis=1) * areas < 4).all()
    assert (np.abs(after - before)[MASK].max(axis=1) * areas < 8).all()


def test_moving_turning_and_mirroring_a_rectangle_keeps_its_magnitudes():
    labels = np.zeros((40, 40), int)
    labels[5:14, 3:9] = 1
    labels[20:30, 11:37] = 2
    image = noise((40, 40))
    before = zernikes(image, labels)
    shift = np.roll(image, (7, 2), (1, 2)), np.roll(labels, (7, 2), (0, 1))
    assert_array_equal(zernikes(*shift), before)
    for turned in (lambda a: a.swapaxes(-1, -2), lambda a: a[..., ::-1], lambda a: np.rot90(a, axes=(-2, -1))):
        after = zernikes(turned(image), turned(labels))
        assert_allclose(after[MASK + MAGNITUDE], before[MASK + MAGNITUDE], rtol=1e-10, atol=1e-13)


def test_turning_by_a_quarter_turns_the_phase_by_m_quarters():
    labels = np.zeros((30, 30), int)
    labels[5:14, 3:19] = 1
    before = zernikes(noise((30, 30)), labels)
    after = zernikes(np.rot90(noise((30, 30)), axes=(1, 2)), np.rot90(labels))
    for (_, m), column in zip(INDICES, PHASE, strict=True):
        turned = before.loc[1, column] - m * np.pi / 2
        assert np.exp(1j * after.loc[1, column]) == pytest.approx(np.exp(1j * turned), abs=1e-9)


def test_thousands_of_scattered_objects_are_measured():
    labels = np.random.default_rng(0).integers(0, 3000, (150, 200))
    table = zernikes(noise((150, 200)), labels)
    assert len(table) == len(np.unique(labels)) - 1
    assert np.isfinite(table.loc[np.bincount(labels.ravel())[table.index] > 1]).all(axis=None)


def circles_of(labels):
    index = PixelIndex(labels, np.zeros((0, *labels.shape), np.uint8))
    circles = _find_circles(index.offsets, index.rows, index.columns, index.bounds)
    return dict(zip(index.labels, circles, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_circles_are_those_of_centrosome_to_the_last_bit(seed):
    cpmorphology = pytest.importorskip("centrosome.cpmorphology")
    labels = blobs(seed, 400, 4)
    circles = circles_of(labels)
    centers, radii = cpmorphology.minimum_enclosing_circle(labels, list(circles))
    assert_array_equal(np.array(list(circles.values())), np.column_stack([centers, radii]))


@pytest.mark.parametrize("seed", range(4))
def test_circles_of_small_objects_are_those_of_centrosome_up_to_the_last_bit_of_the_radius(seed):
    cpmorphology = pytest.importorskip("centrosome.cpmorphology")
    # 2500 objects of up to 25 pixels with many corners on one circle; some are empty.
    labels = np.kron(np.arange(1, 2501).reshape(50, 50), np.ones((6, 6), int))
    labels[::6] = labels[:, ::6] = 0
    labels[np.random.default_rng(seed).random(labels.shape) < (0.2, 0.4, 0.6, 0.9)[seed]] = 0
    circles = circles_of(labels)
    centers, radii = cpmorphology.minimum_enclosing_circle(labels, list(circles))
    measured = np.array(list(circles.values()))
    assert_array_equal(measured[:, :2], centers)
    assert_allclose(measured[:, 2], radii, rtol=1e-13)
    assert (measured[:, 2] == radii).mean() > 0.99
