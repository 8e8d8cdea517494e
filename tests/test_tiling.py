"""Tiles: cut without gaps, and of no consequence for what is found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from plateloom.errors import TileOverlapError
from plateloom.segmentation import number, relabel, segment_image
from plateloom.segmentation.matching import match_objects
from plateloom.segmentation.watershed import Method, Params
from plateloom.tiling import cut_tiles

SHAPE = (700, 760)
CHANNELS = ["DNA", "ER"]
# Small nuclei: the halo must be no more than a quarter of the smallest tile.
SMALL = {
    "nuclei_channel": "DNA",
    "cells_channel": "ER",
    "nucleus_diameter_um": 7.0,
    "nucleus_diameter_max_um": 10.0,
    "cells_distance_um": 8.0,
}


def draw_field(shape=SHAPE, *, spacing=12, seed=0):
    """Crowded nuclei of uneven size and brightness in cell bodies that touch: float32 (2, Y, X)."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*(np.arange(4, n - 4, spacing) for n in shape), indexing="ij"), -1).reshape(-1, 2)
    places = (places + rng.integers(-3, 4, places.shape)).clip(0, np.array(shape) - 1)
    places = places[rng.random(len(places)) < 0.85]
    peaks = np.zeros(shape)
    peaks[tuple(places.T)] = rng.uniform(0.5, 1.0, len(places))
    nuclei = ndimage.gaussian_filter(peaks, 2.2) * 25
    bodies = ndimage.gaussian_filter(peaks, 4.5) * 60
    texture = 1 + 0.1 * ndimage.gaussian_filter(rng.normal(size=shape), 1.5) * 5
    image = np.stack([nuclei * texture, bodies * texture]) * 0.1 + 0.01
    return (image + 0.001 * rng.normal(size=image.shape)).astype(np.float32)


def segment(image, tile_px=None, **more):
    return segment_image(image, CHANNELS, params={**SMALL, **more}, pixel_size_um=1.0, tile_px=tile_px)


@pytest.fixture(scope="module")
def whole():
    image = draw_field()
    return image, segment(image)


def count_on_seams(labels, tile_px):
    """Objects with pixels in more than one tile."""
    pieces = [np.unique(labels[tile.core]) for tile in cut_tiles(labels.shape, tile_px)]
    values, counts = np.unique(np.concatenate(pieces), return_counts=True)
    return int(((counts > 1) & (values > 0)).sum())


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_cores_cover_every_pixel_once_and_windows_end_at_the_edge(height, width, tile_px, halo_px):
    covered = np.zeros((height, width), int)
    numbers = np.arange(height * width).reshape(height, width)
    for tile in cut_tiles((height, width), tile_px, halo_px=halo_px):
        covered[tile.core] += 1
        view = numbers[tile.window]
        np.testing.assert_array_equal(view[tile.inner], numbers[tile.core])
        assert view[0, 0] == numbers[tile.origin]
        for core, window, size in zip(tile.core, tile.window, (height, width), strict=True):
            assert window.start == max(core.start - halo_px, 0) and window.stop == min(core.stop + halo_px, size)
    assert (covered == 1).all()


# Compiled kernels take a second of each field, so that a few examples must do: sizes that nobody chose.
@given(tile_px=st.integers(175, 233))
@settings(max_examples=6, deadline=None)
def test_labels_do_not_depend_on_the_tiles(whole, tile_px):
    image, expected = whole
    tiles = cut_tiles(SHAPE, tile_px)
    halo = Method(Params(**SMALL), CHANNELS, pixel_size_um=1.0, shape=SHAPE).halo_px
    assert len(tiles) >= 9 and halo["seed"] <= tile_px / 4 and halo["grow"] <= tile_px / 4
    assert count_on_seams(expected["Nuclei"], tile_px) >= 50 and count_on_seams(expected["Cells"], tile_px) >= 50
    found = segment(image, tile_px)
    for name, labels in expected.items():
        np.testing.assert_array_equal(found[name], labels)


@given(tile_px=st.integers(48, max(SHAPE)))
@settings(max_examples=4, deadline=None)
def test_labels_do_not_depend_on_tiles_of_any_size(whole, tile_px):
    image, expected = whole
    found = segment(image, tile_px)
    for name, labels in expected.items():
        np.testing.assert_array_equal(found[name], labels)


def test_no_object_is_lost_doubled_or_cut(whole):
    image, expected = whole
    found = segment(image, 200)
    for name in ("Nuclei", "Cells"):
        np.testing.assert_array_equal(np.unique(found[name]), np.arange(expected[name].max() + 1))
        for value, window in enumerate(ndimage.find_objects(found[name].astype(int)), start=1):
            assert ndimage.label(found[name][window] == value, np.ones((3, 3)))[1] == 1, f"{name} {value} is in pieces"


def missing(places):
    """Which pixels are covered if fields at such places of a grid of 5 × 5 are missing."""
    covered, (height, width) = np.ones(SHAPE, bool), (size // 5 for size in SHAPE)
    for row, column in places:
        covered[row * height : (row + 1) * height, column * width : (column + 1) * width] = False
    return covered


@pytest.mark.parametrize(
    "places", [[], [(2, 2)], [(2, 2), (0, 4)], [(0, 0), (0, 4), (4, 0), (4, 4)]], ids=("0", "1", "2", "4 corners")
)
def test_missing_fields_change_nothing_away_from_them(whole, places):
    image, expected = whole
    covered = missing(places)
    found = segment(np.where(covered, image, np.float32(np.nan)))
    away = ndimage.binary_erosion(covered, iterations=30, border_value=1)
    for name, labels in expected.items():
        if not places:
            np.testing.assert_array_equal(found[name], labels)
        assert not found[name][~covered].any()
        assert ((found[name] > 0) != (labels > 0))[away].mean() < 0.01
    right, wrong, lost = match_objects(np.where(away, found["Nuclei"], 0), np.where(away, expected["Nuclei"], 0))
    assert wrong + lost <= 0.01 * right


def test_tiles_with_holes_have_the_labels_of_the_whole_image(whole):
    covered = missing([(2, 2), (0, 4)])
    covered[:, 396:399] = covered[561] = False  # gaps between fields, narrower than a kernel
    image = np.where(covered, whole[0], np.float32(np.nan))
    for border in ("keep", "drop"):
        expected = segment(image, border=border)
        for tile_px in (181, 230):
            for name, labels in segment(image, tile_px, border=border).items():
                np.testing.assert_array_equal(labels, expected[name])
    beside = ndimage.binary_dilation(~covered)
    assert not expected["Nuclei"][beside].any() and expected["Nuclei"].max() > 1000


def test_the_rim_of_a_hole_is_as_the_edge_of_the_image(whole):
    image = whole[0][:, :300, :300].copy()
    alone, beside = segment(image[:, :, :200].copy()), image.copy()
    beside[:, :, 200:] = np.nan
    beside = segment(beside)
    right, wrong, lost = match_objects(beside["Nuclei"][:, :200], alone["Nuclei"])
    assert wrong + lost <= 0.01 * right and not beside["Cells"][:, 200:].any()


def test_numbers_follow_the_raster_whatever_tile_was_ready_first(whole):
    image, expected = whole
    params = Params(**SMALL)
    work = Method(params, CHANNELS, pixel_size_um=1.0, shape=SHAPE)
    halo = work.halo_px
    views = lambda phase: cut_tiles(SHAPE, 190, halo_px=halo[phase])  # noqa: E731
    order = np.random.default_rng(3).permutation(len(views("seed")))
    measured = [work.measure(image[:, *t.window], t.origin, t.inner) for t in views("measure")]
    known = work.combine([measured[i] for i in order])
    assert known == work.combine(measured)
    ids = np.zeros(SHAPE, np.int64)
    for i in order:
        tile = views("seed")[i]
        ids[tile.core] = work.seed(image[:, *tile.window], tile.origin, tile.inner, known)
    nuclei = relabel(ids, number([ids[views("seed")[i].core] for i in order]))
    np.testing.assert_array_equal(nuclei, expected["Nuclei"])
    first = [np.flatnonzero(nuclei.ravel() == value)[0] for value in range(1, 40)]
    assert first == sorted(first)


@pytest.mark.parametrize("phase", ["seed", "grow"])
def test_too_narrow_a_halo_is_an_error_that_names_the_one_needed(whole, phase):
    image, expected = whole
    work = Method(Params(**SMALL), CHANNELS, pixel_size_um=1.0, shape=SHAPE)
    tile = cut_tiles(SHAPE, 200, halo_px=work.halo_px[phase] - 1)[4]
    known = work.combine([work.measure(image, (0, 0), (slice(0, SHAPE[0]), slice(0, SHAPE[1])))])
    nuclei = (expected["Nuclei"][tile.window],) if phase == "grow" else ()
    with pytest.raises(TileOverlapError, match=f"widen the halo to {work.halo_px[phase]} px"):
        getattr(work, phase)(image[:, *tile.window], *nuclei, tile.origin, tile.inner, known)
