"""Segmentation: every method keeps the contract of label images, and tiles change nothing."""

import heapq
import json
import math
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage
from scipy.spatial import cKDTree

from plateloom.errors import TileOverlapError, UnknownMethodError
from plateloom.registry import load_method
from plateloom.segmentation import METHODS, number, relabel, segment_image, subtract_nuclei
from plateloom.segmentation.declumping import box_sum, fill_holes, squared_distance
from plateloom.segmentation.matching import match_objects
from plateloom.segmentation.propagation import propagate_labels
from plateloom.segmentation.thresholds import (
    BINS,
    bin_values,
    count_intensities,
    find_background,
    minimum_cross_entropy,
    otsu,
)
from plateloom.segmentation.unet import estimate_diameter
from plateloom.segmentation.watershed import Params, Watershed
from plateloom.simulation import ScreenDesign, render_field

DATA = Path(__file__).parents[2] / "shared" / "data"
CHANNELS = ["ER", "DNA"]
WANTED = {"nuclei_channel": "DNA", "cells_channel": "ER", "nucleus_diameter_um": 10.0}


def draw_cells(shape, centers, *, radius=5.0, brightness=0.1, background=0.01, noise=0.001, seed=0):
    """Draw textured nuclei of uneven size and brightness with cell bodies: image (2, Y, X) and true nuclei."""
    rng = np.random.default_rng(seed)
    nuclei, truth, reach = np.zeros(shape), np.zeros(shape, np.uint32), int(2 * radius) + 2
    for label, (cy, cx) in enumerate(centers, start=1):
        size, stretch, angle = radius * rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.0), rng.uniform(0, np.pi)
        box = tuple(slice(max(int(center) - reach, 0), int(center) + reach + 1) for center in (cy, cx))
        y, x = np.mgrid[tuple(slice(one.start, min(one.stop, side)) for one, side in zip(box, shape, strict=True))]
        dy, dx = y - cy, x - cx
        along, across = dy * np.cos(angle) + dx * np.sin(angle), dx * np.cos(angle) - dy * np.sin(angle)
        inside = (along * stretch) ** 2 + (across / stretch) ** 2 <= size**2
        nuclei[box][inside] = np.maximum(nuclei[box][inside], rng.uniform(0.4, 1.0))
        truth[box][inside & (truth[box] == 0)] = label
    away, _ = cKDTree(centers).query(np.indices(shape).reshape(2, -1).T)
    bodies = np.exp(-(away.reshape(shape) ** 2) / (2 * (2.0 * radius) ** 2))
    texture = 1 + 0.15 * ndimage.gaussian_filter(rng.normal(size=shape), 1.5) * 5
    image = np.stack([0.6 * bodies * texture, ndimage.gaussian_filter(nuclei * texture, 0.8)]) * brightness + background
    return (image + noise * rng.normal(size=image.shape)).astype(np.float32), truth


def scatter(shape, count, *, seed=0, spacing=7.0):
    """Centers at random but no nearer than the spacing."""
    rng, centers = np.random.default_rng(seed), []
    for _ in range(200 * count):
        center = rng.uniform(0, shape).tolist()
        if all(math.dist(center, other) >= spacing for other in centers):
            centers.append(center)
        if len(centers) == count:
            break
    return centers


def lattice(shape, spacing):
    """Centers on a square lattice, so that with a narrow spacing all nuclei are one connected component."""
    return [(y, x) for y in np.arange(3, shape[0], spacing) for x in np.arange(3, shape[1], spacing)]


def parameters(method, **more):
    """The settings that a user makes, as far as the method has them."""
    known = load_method(METHODS, method, "segmentation method").Params.model_fields
    return {name: value for name, value in {**WANTED, **more}.items() if name in known}


def segment(image, method="watershed", tile_px=None, **more):
    """Segment with the usual settings at 1 µm/px."""
    return segment_image(
        image, CHANNELS, method=method, params=parameters(method, **more), pixel_size_um=1.0, tile_px=tile_px
    )


def assert_contract(found, shape):
    """What holds for the labels of any method on any image."""
    nuclei, cells, cytoplasm = (found[name] for name in ("Nuclei", "Cells", "Cytoplasm"))
    assert set(found) == {"Nuclei", "Cells", "Cytoplasm"}
    for labels in found.values():
        assert labels.dtype == np.uint32
        assert labels.shape == shape
    count = int(nuclei.max())
    values, first = np.unique(nuclei, return_index=True)
    np.testing.assert_array_equal(values[values > 0], np.arange(1, count + 1))
    assert np.all(np.diff(first[values > 0]) > 0), "labels are not in the raster order of first pixels"
    np.testing.assert_array_equal(np.unique(cells[cells > 0]), np.arange(1, count + 1))
    np.testing.assert_array_equal(cells[nuclei > 0], nuclei[nuclei > 0])
    np.testing.assert_array_equal(cytoplasm, np.where(nuclei > 0, 0, cells))


# Others need a package and weights, or a trained classifier, or find no cells: tests/test_adapters.py, tests/test_pixels.py
# and tests/test_patches.py hold them to the contract.
OURS = sorted(METHODS.keys() - {"cellpose", "instanseg", "stardist", "pixels", "patches", "volume"})
every_method = pytest.mark.parametrize("method", OURS)


@pytest.fixture(scope="module")
def crowd():
    """Many touching cells: image and true nuclei."""
    shape = (300, 280)
    return draw_cells(shape, scatter(shape, 200, spacing=9.5))


# --- the contract of a method ----------------------------------------------------------------------------------------


@every_method
def test_labels_of_a_crowd_keep_the_contract(method, crowd):
    image, _ = crowd
    found = segment(image, method)
    assert_contract(found, image.shape[1:])
    assert found["Nuclei"].max() > 100


@every_method
def test_labels_without_a_cells_channel_keep_the_contract(method, crowd):
    image, _ = crowd
    found = segment(image, method, cells_channel=None)
    assert_contract(found, image.shape[1:])


@every_method
def test_most_nuclei_of_a_crowd_are_found_where_connected_components_fail(method, crowd):
    image, truth = crowd
    tp, fp, fn = match_objects(segment(image, method)["Nuclei"], truth)
    assert 2 * tp / (2 * tp + fp + fn) > 0.9
    smooth = ndimage.gaussian_filter(image[1], 1)
    components, _ = ndimage.label(smooth > otsu(count_intensities(smooth), bin_values()))
    tp, fp, fn = match_objects(components, truth)
    assert 2 * tp / (2 * tp + fp + fn) < 0.8


@every_method
@pytest.mark.parametrize("background", [0.0, 0.002, 0.3])
def test_an_empty_field_has_no_objects(method, background):
    rng = np.random.default_rng(1)
    image = rng.normal(background, 0.05 * background, (2, 400, 400)).astype(np.float32)
    found = segment(image, method)
    assert_contract(found, (400, 400))
    assert found["Cells"].max() == 0


@every_method
def test_an_empty_field_under_uneven_light_has_no_objects(method):
    rng = np.random.default_rng(2)
    y, x = np.mgrid[-1:1:400j, -1:1:400j]
    image = rng.normal(0.01, 0.0005, (2, 400, 400)) * (1 + 0.5 * (y**2 + x**2))
    assert segment(image, method)["Nuclei"].max() == 0
    assert segment(image * (1 - 0.5 * (y**2 + x**2)), method)["Nuclei"].max() == 0


@every_method
@pytest.mark.parametrize("rate", [0.005, 0.1, 1.0])
def test_an_empty_field_of_few_gray_levels_has_no_objects(method, rate):
    counts = np.random.default_rng(3).poisson(rate, (2, 400, 400))
    assert segment(counts / 255, method)["Nuclei"].max() == 0


@every_method
def test_hot_pixels_are_no_nuclei(method):
    rng = np.random.default_rng(4)
    image = rng.normal(0.01, 0.001, (2, 400, 400))
    image[:, rng.integers(0, 400, 60), rng.integers(0, 400, 60)] = 0.8
    assert segment(image, method)["Nuclei"].max() == 0


@every_method
@pytest.mark.parametrize("center", [(60, 70), (0, 0), (119, 40)])
def test_one_cell_is_one_object(method, center):
    image, truth = draw_cells((120, 130), [center], noise=0.0005)
    found = segment(image, method)
    assert_contract(found, (120, 130))
    assert match_objects(found["Nuclei"], truth) == (1, 0, 0)
    assert (found["Cells"] > 0).sum() > 2 * (found["Nuclei"] > 0).sum()


@every_method
def test_the_same_image_gives_the_same_labels(method, crowd):
    image, _ = crowd
    first, second = segment(image, method), segment(image.copy(), method)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@every_method
def test_brightness_does_not_matter(method, crowd):
    image, _ = crowd
    bright, dim = segment(image * 4, method), segment(image / 16, method)
    assert abs(int(bright["Nuclei"].max()) - int(dim["Nuclei"].max())) <= 1
    assert match_objects(bright["Nuclei"], dim["Nuclei"], min_iou=0.8)[0] >= bright["Nuclei"].max() - 1


@every_method
def test_eight_bits_find_what_sixteen_find(method, crowd):
    image, _ = crowd
    fine = segment(image, method)["Nuclei"]
    coarse = segment(np.round(image * 2 * 255) / 255, method)["Nuclei"]
    tp, fp, fn = match_objects(coarse, fine)
    assert 2 * tp / (2 * tp + fp + fn) > 0.97


@every_method
def test_method_and_thresholds_travel_to_workers(method, crowd):
    image, _ = crowd
    module = load_method(METHODS, method, "segmentation method")
    work = module.Method(module.Params(**parameters(method)), CHANNELS, pixel_size_um=1.0, shape=image.shape[1:])
    whole = tuple(slice(0, size) for size in image.shape[1:])
    copy = pickle.loads(pickle.dumps(work))
    thresholds = work.combine([work.measure(image, (0, 0), whole)])
    there = json.loads(json.dumps(thresholds))
    assert there == thresholds
    np.testing.assert_array_equal(copy.seed(image, (0, 0), whole, there), work.seed(image, (0, 0), whole, thresholds))
    assert copy.halo_px.keys() == {"measure", "seed", "grow"}


@every_method
def test_every_parameter_is_described_and_unknown_ones_are_refused(method):
    params = load_method(METHODS, method, "segmentation method").Params
    assert all(field.description for field in params.model_fields.values())
    assert all("µm" in params.model_fields[name].description for name in params.model_fields if name.endswith("_um"))
    with pytest.raises(ValidationError, match="nucleus_size"):
        params(nucleus_size=3)


@every_method
def test_an_absent_channel_is_named(method):
    with pytest.raises(ValueError, match="'DNA'.*'A', 'B'"):
        segment_image(np.zeros((2, 9, 9)), ["A", "B"], method=method, pixel_size_um=1.0)


@every_method
def test_pixels_that_are_no_numbers_are_refused(method):
    image = np.zeros((2, 50, 50), np.float32)
    image[1, 3, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        segment(image, method)


# --- tiles -----------------------------------------------------------------------------------------------------------

TILED = (460, 420)


@cache
def _scene(name):
    """Images that are hard to cut: image, parameters."""
    if name == "crowd":
        return draw_cells(TILED, scatter(TILED, 500, spacing=8.0))[0], {}
    if name == "one connected component":
        return draw_cells(TILED, lattice(TILED, 11.0), seed=1)[0], {"local_threshold": 0.0}
    if name == "noise taken for nuclei":
        image = np.random.default_rng(5).normal(0.01, 0.002, (2, *TILED)).astype(np.float32)
        easy = {"threshold": "background", "min_contrast": 0.0, "nucleus_diameter_min_um": 2.0, "prominence": 0.0}
        easy |= {"probability": 0.01}
        return image, easy
    if name == "blobs wider than any nucleus":
        image, _ = draw_cells(TILED, [(100, 120), (260, 250), (330, 90)], radius=45.0)
        return image + draw_cells(TILED, scatter(TILED, 80, seed=3))[0], {"local_threshold": 0.5}
    if name == "border nuclei dropped":
        return draw_cells(TILED, scatter(TILED, 300, seed=4))[0], {"border": "drop"}
    if name == "no cells channel":
        grow = {"cells_channel": None, "cells_distance_um": 9.0}
        return draw_cells(TILED, scatter(TILED, 300, seed=6))[0], grow
    raise ValueError(name)


SCENES = (
    "crowd",
    "one connected component",
    "noise taken for nuclei",
    "blobs wider than any nucleus",
    "border nuclei dropped",
    "no cells channel",
)


@every_method
@pytest.mark.parametrize("scene", SCENES)
def test_tiles_give_the_labels_of_the_whole_image(method, scene):
    image, more = _scene(scene)
    whole = segment(image, method, **more)
    assert_contract(whole, TILED)
    assert whole["Nuclei"].max() > 30
    for tile_px in (61, 128, 150) if method == "watershed" else (128,):
        seams = np.arange(tile_px, TILED[0], tile_px)
        crossing = np.intersect1d(whole["Nuclei"][seams - 1], whole["Nuclei"][seams])
        assert len(crossing) > 3, "no nucleus lies on a seam"
        tiled = segment(image, method, tile_px=tile_px, **more)
        for name, labels in whole.items():
            np.testing.assert_array_equal(tiled[name], labels, err_msg=f"{name}, tiles of {tile_px} px")


@pytest.mark.parametrize("declump", ["shape", "intensity", "none"])
def test_tiles_give_the_labels_of_the_whole_image_however_nuclei_are_parted(declump):
    image, _ = draw_cells(TILED, scatter(TILED, 400, spacing=8.0, seed=7))
    whole = segment(image, declump=declump)
    tiled = segment(image, declump=declump, tile_px=140)
    assert whole["Nuclei"].max() > 30
    for name, labels in whole.items():
        np.testing.assert_array_equal(tiled[name], labels)


@pytest.mark.parametrize("phase", ["measure", "seed", "grow"])
def test_a_halo_narrower_than_the_widest_object_is_refused(phase):
    work = Watershed(Params(**WANTED), CHANNELS, pixel_size_um=1.0, shape=(1000, 1000))
    need = work.halo_px[phase]
    view = np.zeros((2, 300, 300), np.float32)
    known = {"background": 0.0, "spread": 0.1, "threshold": 0.5, "foreground": 1.0}
    more = {"measure": (), "seed": ({"nuclei": known},), "grow": ({"nuclei": known, "cells": known},)}[phase]
    more_before = (np.zeros((300, 300), np.uint32),) if phase == "grow" else ()
    narrow = (slice(0, 300 - need), slice(need - 1, 300 - need))
    with pytest.raises(TileOverlapError, match=rf"halo of {need - 1} px along x.*widen the halo to {need} px"):
        getattr(work, phase)(view, *more_before, (0, 400), narrow, *more)
    # At the edge of the image no halo is asked for, and one that is just wide enough is enough.
    enough = (slice(0, 300 - need), slice(need, 300 - need))
    getattr(work, phase)(view, *more_before, (0, 400), enough, *more)


def test_a_wider_nucleus_asks_for_a_wider_halo():
    narrow, wide = (
        Watershed(Params(**{**WANTED, "nucleus_diameter_um": size}), CHANNELS, pixel_size_um=0.5, shape=(9, 9)).halo_px
        for size in (10.0, 20.0)
    )
    assert wide["seed"] > 1.8 * narrow["seed"]
    assert wide["grow"] > 1.8 * narrow["grow"]


def test_ids_of_tiles_become_labels_in_order():
    ids = np.array([[0, 50, 3], [50, 3, 0]])
    numbers = number([ids[:, :2], ids[:, 2:]])
    np.testing.assert_array_equal(relabel(ids, numbers), [[0, 2, 1], [2, 1, 0]])
    assert number([]).shape == (0,)


# --- what the parameters do ------------------------------------------------------------------------------------------


def test_nuclei_at_the_border_can_be_dropped(crowd):
    image, _ = crowd
    kept, dropped = segment(image)["Nuclei"], segment(image, border="drop")["Nuclei"]
    edge = np.concatenate([dropped[0], dropped[-1], dropped[:, 0], dropped[:, -1]])
    assert edge.max() == 0
    inner = np.setdiff1d(kept, np.concatenate([kept[0], kept[-1], kept[:, 0], kept[:, -1]]))
    assert dropped.max() == len(inner[inner > 0])


def test_undivided_nuclei_are_fewer():
    image, _ = draw_cells((80, 80), [(40, 35), (40, 44)], noise=0.0002)
    assert segment(image)["Nuclei"].max() == 2
    assert segment(image, declump="none")["Nuclei"].max() == 1


def test_too_small_and_too_large_objects_are_dropped():
    small, _ = draw_cells((120, 120), [(30, 30)], radius=1.4)
    large, _ = draw_cells((120, 120), [(80, 80)], radius=9.0)
    right, _ = draw_cells((120, 120), [(30, 90)])
    limits = {"nucleus_diameter_min_um": 6.0, "nucleus_diameter_max_um": 14.0, "declump": "none"}
    found = segment(small + large + right, **limits)["Nuclei"]
    assert found.max() == 1
    assert found[30, 90] == 1
    assert segment(large, declump="none")["Nuclei"].max() == 1


def test_a_hole_in_a_nucleus_is_filled():
    y, x = np.mgrid[:90, :90]
    distance = np.hypot(y - 45, x - 45)
    image = np.where((distance < 10) & (distance > 4), 0.2, 0.01) + 0.0005 * np.random.default_rng(0).normal(
        size=(90, 90)
    )
    image = np.stack([image, image])
    found = segment(image, nucleus_diameter_um=20.0)["Nuclei"]
    assert found.max() == 1
    assert found[45, 45] == 1


def test_cells_reach_no_farther_than_they_may():
    image, _ = draw_cells((120, 120), [(60, 60)], noise=0.0002)
    found = segment(image, cells_distance_um=6.0)
    distance = ndimage.distance_transform_edt(found["Nuclei"] == 0)
    assert distance[found["Cells"] > 0].max() <= 6.0
    assert distance[found["Cells"] > 0].max() > 5.0


def test_without_a_cells_channel_cells_are_discs_around_nuclei():
    image, _ = draw_cells((120, 120), [(60, 60)], noise=0.0002)
    found = segment(image, cells_channel=None, cells_distance_um=8.0)
    expected = ndimage.distance_transform_edt(found["Nuclei"] == 0) <= 8.0
    np.testing.assert_array_equal(found["Cells"] > 0, expected)
    assert segment(image, cells_channel=None)["Cytoplasm"].max() == 0


def test_contradictory_diameters_are_refused():
    with pytest.raises(ValidationError, match="nucleus_diameter_max_um"):
        Params(nucleus_diameter_um=12, nucleus_diameter_max_um=10)


def test_an_unknown_method_is_refused():
    with pytest.raises(UnknownMethodError, match="watershed"):
        segment_image(np.zeros((1, 4, 4)), ["DNA"], method="watersheed", pixel_size_um=1.0)


def test_one_name_per_channel_is_expected():
    with pytest.raises(ValueError, match="channel"):
        segment_image(np.zeros((2, 4, 4)), ["DNA"], pixel_size_um=1.0)


def test_listing_the_methods_imports_nothing_heavy():
    code = (
        "import sys, plateloom.segmentation as s; assert s.METHODS; "
        "print([name for name in ('numpy', 'scipy', 'numba', 'pydantic', 'skimage') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the pieces, against plain oracles -------------------------------------------------------------------------------


def test_histograms_of_tiles_add_up_and_keep_the_intensity():
    values = np.random.default_rng(0).uniform(0, 1, 5000).astype(np.float32)
    np.testing.assert_array_equal(
        count_intensities(values[:2000]) + count_intensities(values[2000:]), count_intensities(values)
    )
    for value in (1e-4, 0.013, 0.9999, 1.5):
        at = np.flatnonzero(count_intensities(np.array([value])))
        assert bin_values()[at] == pytest.approx(value, rel=1 / 2048)
    assert count_intensities(np.array([-1.0, 0.0]))[0] == 2
    assert count_intensities(np.array([2.0, 7.0]))[BINS - 1] == 2


def test_otsu_and_cross_entropy_agree_with_scikit_image():
    from skimage.filters import threshold_li, threshold_otsu

    rng = np.random.default_rng(0)
    pixels = np.concatenate([rng.normal(40, 5, 9000), rng.normal(120, 30, 1000)]).round().clip(0, 255).astype(int)
    histogram, values = np.bincount(pixels, minlength=256), np.arange(256.0)
    assert otsu(histogram, values) == pytest.approx(threshold_otsu(pixels), abs=1)
    assert minimum_cross_entropy(histogram, values) == pytest.approx(
        threshold_li(pixels.astype(float), tolerance=0.01), abs=4
    )


def test_the_background_is_found_among_objects():
    rng = np.random.default_rng(0)
    pixels = np.concatenate([rng.normal(0.1, 0.004, 60_000), rng.uniform(0.1, 0.9, 40_000)])
    level, spread = find_background(count_intensities(pixels), bin_values())
    assert level == pytest.approx(0.1, abs=0.002)
    assert spread == pytest.approx(0.004, rel=0.3)


def test_distances_agree_with_scipy_up_to_the_cap():
    mask = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(80, 90)), 4) > -0.05
    oracle = np.minimum(ndimage.distance_transform_edt(mask), 9)
    np.testing.assert_allclose(np.sqrt(squared_distance(mask, 9)), oracle, rtol=1e-12)


def test_box_sums_agree_with_plain_sums():
    values = np.random.default_rng(0).integers(-9, 9, (12, 15))
    for half in (0, 1, 4, 40):
        oracle = [
            [values[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1].sum() for x in range(15)]
            for y in range(12)
        ]
        np.testing.assert_array_equal(box_sum(values, half), oracle)


def test_only_small_holes_are_filled():
    mask = np.ones((12, 20), bool)
    mask[2:4, 2:5] = False
    mask[2:10, 8:10] = False
    mask[5, 0] = False
    fill_holes(mask, 3)
    assert mask[2:4, 2:5].all()
    assert not mask[2:10, 8:10].any()
    assert not mask[5, 0]


def test_labels_meet_halfway_on_a_flat_image():
    seeds = np.zeros((1, 8), np.uint32)
    seeds[0, 0], seeds[0, 7] = 2, 1
    free, flat = np.ones((1, 8), bool), np.zeros((1, 8), np.float32)
    labels, costs = propagate_labels(seeds, free, flat, 0.5, 1000)
    np.testing.assert_array_equal(labels, [[2, 2, 2, 2, 1, 1, 1, 1]])
    np.testing.assert_array_equal(costs, [[0, 0.5, 1, 1.5, 1.5, 1, 0.5, 0]])
    np.testing.assert_array_equal(propagate_labels(seeds, free, flat, 0.5, 1.0)[0], [[2, 2, 2, 0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(propagate_labels(seeds, free, flat, 0.5, 0.0)[0], seeds)
    # The smaller label wins a tie.
    odd = np.array([[2, 0, 1]], np.uint32)
    np.testing.assert_array_equal(propagate_labels(odd, free[:, :3], flat[:, :3], 0.5, 1000)[0], [[2, 1, 1]])


def test_labels_avoid_steps_of_intensity():
    seeds = np.zeros((1, 9), np.uint32)
    seeds[0, 0], seeds[0, 8] = 1, 2
    image = np.array([[0, 0, 1, 1, 1, 1, 1, 1, 1]], np.float32)
    labels, _ = propagate_labels(seeds, np.ones((1, 9), bool), image, 0.3, 1000)
    np.testing.assert_array_equal(labels, [[1, 1, 2, 2, 2, 2, 2, 2, 2]])


def test_growth_agrees_with_a_plain_shortest_path_search():
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1, (24, 27)).astype(np.float32)
    allowed = rng.uniform(size=image.shape) < 0.85
    seeds = np.zeros(image.shape, np.uint32)
    places = rng.choice(image.size, 6, replace=False)
    seeds.ravel()[places] = np.arange(1, 7)
    edged = np.pad(image.astype(np.float64), 1, mode="edge")
    rows, columns, weights = [], [], []
    for y, x in np.ndindex(image.shape):
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            if 0 <= y + dy < 24 and 0 <= x + dx < 27:
                there = edged[y + dy : y + dy + 3, x + dx : x + dx + 3]
                rise = np.abs(edged[y : y + 3, x : x + 3] - there).sum()
                for (ay, ax), (by, bx) in (((y, x), (y + dy, x + dx)), ((y + dy, x + dx), (y, x))):
                    if allowed[by, bx]:
                        rows.append(ay * 27 + ax)
                        columns.append(by * 27 + bx)
                        weights.append(np.sqrt(rise**2 + 0.7**2 * (dy * dy + dx * dx)))
    graph = coo_array((weights, (rows, columns)), shape=(image.size, image.size)).tocsr()
    # A path runs over allowed pixels only: other seeds are no way through, since each is nearest to itself.
    reached = dijkstra(graph, indices=places)
    reached[reached > 14] = np.inf
    expected = np.where(np.isinf(reached).all(axis=0), 0, reached.argmin(axis=0) + 1).reshape(image.shape)
    labels, costs = propagate_labels(seeds, allowed, image, 0.7, 14)
    assert 0.1 < (expected == 0).mean() < 0.9
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(costs.ravel(), reached.min(axis=0), rtol=1e-12)


def _growth(name, shape=(90, 110)):
    """Something to grow cells on: seeds, where they may grow, image, weight."""
    rng = np.random.default_rng(8)
    if name == "cells":
        image, truth = draw_cells(shape, scatter(shape, 40, spacing=9.5))
        return truth, image[0] > 0.02, image[0], 0.05
    image = {
        "flat": np.zeros(shape),
        "few gray levels": rng.integers(0, 3, shape) / 255,
        "noise": rng.normal(size=shape),
    }
    seeds = np.zeros(shape, np.uint32)
    places = np.sort(rng.choice(seeds.size, 250, replace=False))
    seeds.ravel()[places] = np.arange(1, 251)
    return seeds, rng.uniform(size=shape) < 0.85, image[name].astype(np.float32), {"noise": 2.0}.get(name, 0.01)


GROWTHS = ("cells", "flat", "few gray levels", "noise")


@pytest.mark.parametrize("name", GROWTHS)
def test_cells_grow_exactly_as_centrosome_grows_them(name):
    propagate = pytest.importorskip("centrosome.propagate").propagate
    seeds, allowed, image, weight = _growth(name)
    expected, reached = propagate(image, seeds.astype(np.int32), allowed | (seeds > 0), weight)
    found, costs = propagate_labels(seeds, allowed, image, weight, reached.max())
    assert (expected > 0).sum() > 2 * (seeds > 0).sum()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(costs, np.where(reached < 0, np.inf, reached))
    # With a bound, what costs more stays free and all else is as it was.
    bound = np.quantile(reached[reached > 0], 0.7)
    found, _ = propagate_labels(seeds, allowed, image, weight, bound)
    np.testing.assert_array_equal(found, np.where(reached <= bound, expected, 0))


@pytest.mark.parametrize("name", ["flat", "few gray levels"])
def test_ties_fall_as_from_a_sorted_queue_of_cost_label_and_pixel(name):
    seeds, allowed, image, weight = _growth(name, shape=(40, 50))
    # Labels in any order; centrosome's own queue begins unsorted then, so that its ties depend on seeds far away.
    seeds[seeds > 0] = np.random.default_rng(9).permutation(250) + 1
    expected = _grow_by_heap(seeds, allowed, image.astype(np.float64), weight)
    first_come = np.where(seeds > 0, 251 - seeds.astype(int), 0)
    assert (
        _grow_by_heap(first_come, allowed, image.astype(np.float64), weight) != (251 - expected) * (expected > 0)
    ).any()
    np.testing.assert_array_equal(propagate_labels(seeds, allowed, image, weight, 1.0)[0], expected)


def _grow_by_heap(seeds, allowed, image, weight):
    """Propagation pixel by pixel from a heap; costs are compared without their last bit."""
    edged, costs = np.pad(image, 1, mode="edge"), np.where(seeds > 0, 0.0, np.inf)
    labels = np.zeros(seeds.shape, int)
    queue = [(0, int(seeds[y, x]), y, x) for y, x in np.argwhere(seeds > 0).tolist()]
    heapq.heapify(queue)
    while queue:
        _, label, y, x = heapq.heappop(queue)
        if labels[y, x]:
            continue
        labels[y, x] = label
        for ny in range(max(y - 1, 0), min(y + 2, seeds.shape[0])):
            for nx in range(max(x - 1, 0), min(x + 2, seeds.shape[1])):
                if labels[ny, nx] or not allowed[ny, nx]:
                    continue
                rise = 0.0
                for one, other in zip(
                    edged[y : y + 3, x : x + 3].flat, edged[ny : ny + 3, nx : nx + 3].flat, strict=True
                ):
                    rise += abs(one - other)
                cost = costs[y, x] + np.sqrt(rise * rise + (abs(ny - y) + abs(nx - x)) * weight * weight)
                if cost < costs[ny, nx]:
                    costs[ny, nx] = cost
                    heapq.heappush(queue, (int(cost.view(np.int64)) >> 1, label, ny, nx))
    return labels


@pytest.mark.parametrize("name", GROWTHS)
def test_growth_depends_on_nothing_farther_than_its_bound(name):
    seeds, allowed, image, weight = _growth(name)
    reach = 9
    whole, _ = propagate_labels(seeds, allowed, image, weight, reach * weight)
    free, _ = propagate_labels(seeds, allowed, image, weight, 1e4 * weight)
    assert (whole != free).any(), "the bound bounds nothing"
    for y, x in ((0, 0), (17, 31), (60, 80)):
        rows, columns = (
            slice(max(first - reach - 1, 0), first + 30 + reach + 1) for first in (y, x)
        )  # of a piece of 30 × 30 px with its halo
        piece, _ = propagate_labels(
            seeds[rows, columns], allowed[rows, columns], image[rows, columns], weight, reach * weight
        )
        inner = (slice(y - rows.start, y - rows.start + 30), slice(x - columns.start, x - columns.start + 30))
        np.testing.assert_array_equal(piece[inner], whole[y : y + 30, x : x + 30])


def test_cytoplasm_is_cells_without_nuclei():
    cells, nuclei = np.array([[1, 1, 2, 0]], np.uint32), np.array([[0, 1, 2, 0]], np.uint32)
    np.testing.assert_array_equal(subtract_nuclei(cells, nuclei), [[1, 0, 0, 0]])


def test_objects_match_from_the_least_overlap_on():
    truth = np.array([[1, 1, 1, 1, 0, 2, 2, 3]])
    labels = np.array([[5, 5, 5, 0, 0, 9, 0, 0]])
    assert match_objects(labels, truth) == (2, 0, 1)
    assert match_objects(labels, truth, min_iou=0.7) == (1, 1, 2)
    assert match_objects(labels * 0, truth) == (0, 0, 3)
    # Two halves of one object: only one of them can be it.
    assert match_objects(np.array([[1, 1, 2, 2]]), np.array([[4, 4, 4, 4]])) == (1, 1, 0)
    with pytest.raises(ValueError, match="shapes"):
        match_objects(labels, truth[:, 1:])


# --- simulated and real images ---------------------------------------------------------------------------------------


def test_simulated_nuclei_and_cells_are_found():
    from plateloom.simulation import ScreenDesign, render_field

    design = ScreenDesign()
    total = np.zeros(3, int)
    empty = 0
    for well in design.wells[4:13]:
        field = render_field(design, design.plates[0], well, 1)
        image = field.image / field.flatfield / 65535
        params = {"nuclei_channel": "DNA", "cells_channel": "ER", "nucleus_diameter_um": 15.0}
        found = segment_image(image, design.channel_names, params=params, pixel_size_um=design.pixel_size_um)
        assert_contract(found, field.nuclei.shape)
        if field.nuclei.max() == 0:
            empty += 1
            assert found["Nuclei"].max() == 0
        total += match_objects(found["Nuclei"], field.nuclei)
    tp, fp, fn = total
    assert 2 * tp / (2 * tp + fp + fn) > 0.95


def _read_dsb2018():
    """Pairs of image and true nuclei, 8 bit."""
    import imageio.v3 as imageio
    import tifffile

    for path in sorted((DATA / "dsb2018_fluo" / "labels").glob("*.tif")):
        image = imageio.imread(DATA / "dsb2018_fluo" / "images" / f"{path.stem}.png")
        yield image if image.ndim == 2 else image[..., 0], tifffile.imread(path)


@pytest.mark.skipif(not (DATA / "dsb2018_fluo").exists(), reason="shared/data/dsb2018_fluo is not there")
@pytest.mark.parametrize(
    ("method", "given", "f1", "ap"),
    [
        ("watershed", True, 0.87, 0.77),
        ("unet", True, 0.93, 0.87),
        pytest.param("unet", False, 0.93, 0.87, marks=pytest.mark.slow),
    ],
)
def test_real_nuclei_are_found(method, given, f1, ap):
    """Plain Otsu and watershed reach an F1 of 0.785; each image has a diameter of its own, since magnifications are mixed."""
    tp, fp, fn = 0, 0, 0
    for image, truth in _read_dsb2018():
        areas, image = np.bincount(truth.ravel())[1:], image.astype(np.float32) / 255
        diameter = float(np.sqrt(np.median(areas[areas > 0]) * 4 / np.pi)) if given else estimate_diameter(image)
        params = {"nucleus_diameter_um": diameter}
        found = segment_image(image[None], ["DNA"], method=method, params=params, pixel_size_um=1.0)["Nuclei"]
        tp, fp, fn = (a + b for a, b in zip((tp, fp, fn), match_objects(found, truth), strict=True))
    assert 2 * tp / (2 * tp + fp + fn) > f1 and tp / (tp + fp + fn) > ap, (tp, fp, fn)


@pytest.mark.skipif(
    not (DATA / "examplehuman_cellprofiler").exists(), reason="shared/data/examplehuman_cellprofiler is not there"
)
def test_nuclei_agree_with_those_of_cellprofiler():
    import tifffile

    folder = DATA / "examplehuman_cellprofiler"
    image = tifffile.imread(folder / "AS_09125_050116030001_D03f00d0.tif")
    reference = tifffile.imread(folder / "derived_labels" / "AS_09125_050116030001_D03f00_nuclei_labels.tif")
    found = segment_image(image[None] / 255, ["DNA"], params={"nucleus_diameter_um": 18.0}, pixel_size_um=1.0)["Nuclei"]
    # CellProfiler's pipeline drops nuclei at the border.
    edge = np.unique(np.concatenate([found[0], found[-1], found[:, 0], found[:, -1]]))
    tp, fp, fn = match_objects(np.where(np.isin(found, edge), 0, found), reference)
    assert 2 * tp / (2 * tp + fp + fn) > 0.85


def _well_of_four_fields():
    """A stitched well of 12-bit counts in 16 bits, and its nuclei: float32 (1, 512, 512), uint16 (512, 512)."""
    design = ScreenDesign(plates=("P1",), fields=4, size_px=256, cells_per_field=12.0, seed=1)
    fields = [render_field(design, "P1", "A02", field) for field in (1, 2, 3, 4)]
    image, nuclei, count = np.zeros((1, 512, 512), np.float32), np.zeros((512, 512), np.uint16), 0
    for i, field in enumerate(fields):
        place = slice(256 * (i // 2), 256 * (i // 2 + 1)), slice(256 * (i % 2), 256 * (i % 2 + 1))
        image[0][place] = field.image[0] / 65535
        nuclei[place] = np.where(field.nuclei, field.nuclei + count, 0)
        count += int(field.nuclei.max())
    return image, nuclei


@pytest.mark.parametrize("side", [60, 120])
def test_one_saturated_patch_hides_none_of_the_nuclei_of_its_well(side):
    image, nuclei = _well_of_four_fields()
    y, x = slice(30, 30 + side), slice(300, 300 + side)
    near = np.unique(nuclei[20 : 40 + side, 290 : 310 + side])
    nuclei[np.isin(nuclei, near)] = 0
    image[0, y, x] = 1
    found = segment_image(image, ["DNA"], pixel_size_um=0.65)["Nuclei"]
    found[np.isin(found, np.unique(found[20 : 40 + side, 290 : 310 + side]))] = 0
    tp, fp, fn = match_objects(found, nuclei)
    assert nuclei.any() and 2 * tp / (2 * tp + fp + fn) > 0.9
    tiled = segment_image(image, ["DNA"], pixel_size_um=0.65, tile_px=200)["Nuclei"]
    np.testing.assert_array_equal(tiled, segment_image(image, ["DNA"], pixel_size_um=0.65)["Nuclei"])


def test_bright_nuclei_are_no_glare_however_much_brighter_than_the_haze():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:300, :300]
    image = 0.001 + 0.004 * ((y // 60 + x // 60) % 2) + rng.normal(0, 0.0001, (300, 300))  # cytoplasm on half of it
    centers = [(cy, cx) for cy in range(30, 300, 60) for cx in range(30, 300, 60)]
    for cy, cx in centers:
        image += 0.9 * ((y - cy) ** 2 + (x - cx) ** 2 < 9**2)
    found = segment_image(image[None].astype(np.float32), ["DNA"], pixel_size_um=0.65)["Nuclei"]
    assert found.max() == len(centers)
    assert np.median(np.bincount(found.ravel())[1:]) == pytest.approx(np.pi * 9**2, rel=0.15)
