"""The contract of every illumination method, and how near the flat-field comes to the true light."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from conftest import simulate
from in_process import run_stages
from layouts import harmony as harmony_layout
from layouts import yokogawa as yokogawa_layout
from pydantic import ValidationError

from plateloom import repair
from plateloom.errors import PlateLayoutError
from plateloom.illumination import METHODS, lowrank, median, vendor
from plateloom.illumination.correction import correct
from plateloom.illumination.plausibility import doubt_flatfield
from plateloom.registry import load_method
from plateloom.simulation import ScreenDesign, all_fields, render_field
from plateloom.status import read_screen
from plateloom.store.flatfields import read_flatfields, read_shadings, shadings_path
from plateloom.store.provenance import read_json

# Of the contract, what looks at fields, and what looks at none.
MODULES = {name: load_method(METHODS, name, "illumination method") for name in sorted(METHODS)}
ESTIMATING = {name: module for name, module in MODULES.items() if hasattr(module, "estimate")}
LEARNING = [median, lowrank]
CAMERA_OFFSET = 110


@pytest.fixture(params=ESTIMATING)
def method(request):
    return ESTIMATING[request.param]


@cache
def plate():
    """Thumbnails of the 64 fields of a simulated plate, four of them defective, and the true light."""
    defects = {"debris": 2, "saturated": 1, "blurred": 1}
    coarse = {"size_px": 256, "pixel_size_um": 1.3}
    design = ScreenDesign(plates=("P1",), rows=4, columns=8, seed=11, defects=defects, **coarse)
    params = median.Params()
    fields = [render_field(design, *key) for key in all_fields(design)]
    stack = np.array([[median.shrink(plane, params) for plane in one.image] for one in fields])
    return stack.transpose(1, 0, 2, 3), fields[0].flatfield


@cache
def synthetic(count=20, size=32, offset=0.0):
    """Sparse bright blocks over an even background, under a known light; and the light."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    light = 1.2 - 1.1 * (x**2 + (y - 0.1) ** 2)
    light /= light.mean()
    content = 100 * rng.normal(1, 0.02, (count, size, size)) + 500 * (rng.random((count, size, size)) < 0.2)
    return (offset + light * content).astype(np.float32), light


def rms(found, truth):
    return float(np.sqrt(np.mean((found - truth) ** 2)))


def test_a_method_estimates_from_fields_or_evaluates_what_the_source_says():
    for name, module in MODULES.items():
        functions = {"shrink", "estimate"}, {"evaluate", "offset_of"}
        there = [all(hasattr(module, one) for one in these) for these in functions]
        assert sum(there) == 1 and hasattr(module, "Params"), name


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("module", LEARNING)
def test_the_light_of_a_simulated_plate_is_found_to_within_three_and_a_half_percent(module, channel):
    stack, truth = plate()
    found, reason = module.estimate(stack[channel, ::2], truth.shape[1:], module.Params())
    assert reason == ""
    assert rms(found, truth[channel]) < 0.035


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("module", LEARNING)
def test_with_the_camera_offset_given_it_is_found_to_within_two_percent(module, channel):
    stack, truth = plate()
    found, _ = module.estimate(stack[channel], truth.shape[1:], module.Params(camera_offset=CAMERA_OFFSET))
    assert rms(found, truth[channel]) < 0.02


@pytest.mark.parametrize("offset", [0.0, 20.0, 100.0])
@pytest.mark.parametrize("module", LEARNING)
def test_a_known_light_over_a_sharp_background_is_found_to_within_half_a_percent(module, offset):
    stack, truth = synthetic(offset=offset)
    found, reason = module.estimate(stack, truth.shape, module.Params())
    assert reason == ""
    assert rms(found, truth) < 0.005


@pytest.mark.parametrize("offset", [0.0, 20.0, 100.0])
def test_the_offset_of_the_camera_is_found_over_a_sharp_background(offset):
    stack, _ = synthetic(offset=offset)
    assert median.estimate_offset(stack, median.Params()) == pytest.approx(offset, abs=3)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_the_plain_mean_and_median_of_fields_without_cells_is_their_light(statistic):
    _, truth = synthetic()
    rng = np.random.default_rng(5)
    stack = (100 + 50 * truth * rng.normal(1, 0.05, (20, *truth.shape))).astype(np.float32)
    found, reason = median.estimate(stack, truth.shape, median.Params(statistic=statistic, camera_offset=100))
    assert reason == "" and rms(found, truth) < 0.005
    mean = (stack - 100).mean(0) / (stack - 100).mean()
    assert rms(found, mean) < 0.02


def test_the_statistics_differ_where_there_are_cells():
    stack, truth = plate()
    params = [median.Params(statistic=one, camera_offset=CAMERA_OFFSET) for one in ("alignment", "mean", "median")]
    error = [rms(median.estimate(stack[0], truth.shape[1:], one)[0], truth[0]) for one in params]
    assert error[0] < 0.5 * min(error[1:])


@pytest.mark.parametrize("module", LEARNING)
def test_a_few_wild_fields_do_not_matter(module):
    stack, truth = synthetic(offset=100.0)
    wild = stack.copy()
    wild[:3] = 60_000
    wild[3] *= np.linspace(1, 30, 32, dtype=np.float32)
    wild[4, :10] = 40_000
    params = module.Params(camera_offset=100)
    assert rms(module.estimate(wild, truth.shape, params)[0], truth) < 0.006


def test_the_order_of_the_fields_changes_no_bit(method):
    stack, _ = synthetic()
    flat, reason = method.estimate(stack, (50, 70), method.Params())
    for order in (np.arange(20)[::-1], np.random.default_rng(1).permutation(20)):
        again, why = method.estimate(stack[order], (50, 70), method.Params())
        np.testing.assert_array_equal(again, flat)
        assert why == reason


@pytest.mark.parametrize("shape", [(64, 64), (50, 123), (9, 7), (1, 5)])
def test_the_flatfield_has_the_shape_asked_for_and_mean_one_and_is_positive(method, shape):
    plane = np.random.default_rng(2).integers(100, 200, shape, dtype=np.uint16)
    stack = np.stack([method.shrink(plane + k, method.Params()) for k in range(8)])
    assert stack.dtype == np.float32
    for fields in (stack, synthetic()[0]):
        flat, _ = method.estimate(fields, shape, method.Params())
        assert flat.shape == shape
        assert flat.dtype == np.float32
        assert flat.min() > 0
        assert flat.mean() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("value", [0, 37, 65535])
def test_constant_images_give_one_everywhere(method, value):
    stack = np.stack([method.shrink(np.full((40, 60), value, np.uint16), method.Params())] * 20)
    flat, reason = method.estimate(stack, (40, 60), method.Params())
    np.testing.assert_array_equal(flat, 1)
    assert reason == ""


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_too_few_fields_give_one_everywhere(method, count):
    flat, reason = method.estimate(synthetic()[0][:count], (20, 30), method.Params())
    np.testing.assert_array_equal(flat, 1)
    if method in LEARNING:
        assert reason == f"only {count} fields, at least {method.Params().min_fields} are needed"


@pytest.mark.parametrize("module, count", [(median, 4), (median, 6), (median, 10), (lowrank, 16), (lowrank, 20)])
def test_a_handful_of_fields_is_no_worse_than_no_correction(module, count):
    stack, truth = plate()
    params = module.Params(camera_offset=None if module is median else CAMERA_OFFSET)
    for channel in range(3):
        found, _ = module.estimate(stack[channel, :count], truth.shape[1:], params)
        assert rms(found, truth[channel]) < rms(1, truth[channel]) + 0.01


def test_fields_that_are_not_known_at_all_are_left_out(method):
    stack, truth = synthetic()
    broken = np.concatenate([stack, np.full((2, 32, 32), np.nan, np.float32)])
    expected, _ = method.estimate(stack, truth.shape, method.Params())
    np.testing.assert_array_equal(method.estimate(broken, truth.shape, method.Params())[0], expected)


@pytest.mark.parametrize("module", LEARNING)
def test_blocks_that_are_not_known_do_not_count_whatever_stood_there(module):
    stack, truth = synthetic(offset=100.0)
    holed = stack.copy()
    holed[::2, :6], holed[1::2, :, -5:], holed[:5, :, :4] = np.nan, np.inf, -np.inf
    for statistic in ("alignment", "mean", "median") if module is median else ("",):
        params = module.Params(**{"statistic": statistic} if statistic else {}, camera_offset=100)
        whole, found = (module.estimate(one, truth.shape, params)[0] for one in (stack, holed))
        assert rms(found, whole) < (0.01 if statistic in ("", "alignment") else 0.06), statistic
    assert np.isfinite(median.estimate_offset(holed, median.Params()))


@pytest.mark.parametrize("module", LEARNING)
def test_a_corner_that_no_field_shows_is_no_trouble(module):
    stack, truth = synthetic(offset=100.0)
    stack = stack.copy()
    stack[:, :3, :3] = np.nan
    found, reason = module.estimate(stack, truth.shape, module.Params(camera_offset=100))
    assert reason == "" and rms(found[3:, 3:], truth[3:, 3:]) < 0.01


@pytest.mark.parametrize("module", LEARNING)
def test_an_implausible_light_is_refused_with_the_reason(module):
    stack, truth = synthetic()
    steep = (stack * np.linspace(0.05, 1, 32, dtype=np.float32)).astype(np.float32)
    flat, reason = module.estimate(steep, truth.shape, module.Params(camera_offset=0))
    np.testing.assert_array_equal(flat, 1)
    assert "implausible" in reason


@pytest.mark.parametrize("module", LEARNING)
def test_objects_that_fill_the_fields_are_refused_since_two_halves_of_the_fields_disagree(module):
    y, x = np.mgrid[:32, :32] / 32
    rng = np.random.default_rng(0)
    blobs = [np.exp(-((y - a) ** 2 + (x - b) ** 2) / 0.3) for a, b in rng.random((20, 2))]
    stack = (100 + 10_000 * np.array(blobs)).astype(np.float32)
    flat, reason = module.estimate(stack, (32, 32), module.Params(camera_offset=0, max_range=1e9))
    np.testing.assert_array_equal(flat, 1)
    assert "two halves of the fields disagree" in reason
    loose, reason = module.estimate(stack, (32, 32), module.Params(camera_offset=0, max_error=9, max_range=1e9))
    assert reason == "" and loose.max() > 1.001


@pytest.mark.parametrize("module", LEARNING)
def test_an_even_light_stays_even(module):
    stack = synthetic()[0] / synthetic()[1].astype(np.float32)
    found, reason = module.estimate(stack, (32, 32), module.Params())
    assert reason == "" and rms(found, 1) < 0.002


def test_a_given_offset_of_the_camera_is_taken_as_it_is():
    assert median.estimate_offset(synthetic()[0], median.Params(camera_offset=7)) == 7


def test_a_thumbnail_holds_block_means():
    plane = np.arange(12, dtype=np.uint16).reshape(2, 6).repeat(8, 0).repeat(8, 1)
    small = median.shrink(plane, median.Params(thumbnail=8))
    assert small.shape == (8, 8)
    np.testing.assert_array_equal(small[:4, 0], 0)
    np.testing.assert_allclose(small[:, 0][4:], 6)
    assert small.mean() == pytest.approx(plane.mean())


@pytest.mark.parametrize("shape", [(101, 257), (65, 64), (30, 200)])
def test_no_pixel_is_left_out_of_a_thumbnail(shape):
    plane = np.full(shape, 65535, np.uint16)
    np.testing.assert_array_equal(median.shrink(plane, median.Params()), 65535)
    plane[-1, -1] = 0
    assert median.shrink(plane, median.Params())[-1, -1] < 65535


def test_a_thumbnail_of_a_field_with_foreign_pixels_is_that_of_its_own():
    plane = np.random.default_rng(4).integers(100, 200, (64, 48), dtype=np.uint16)
    masked = plane.astype(np.float32)
    masked[:, :11] = np.nan
    for module in LEARNING:
        whole, found = (module.shrink(one, module.Params(thumbnail=8)) for one in (plane, masked))
        np.testing.assert_array_equal(found[:, 2:], whole[:, 2:])
        assert np.isnan(found[:, :2]).all(), "most of the second column is foreign"
        masked[:, 8:11] = plane[:, 8:11]
        again = module.shrink(masked, module.Params(thumbnail=8))
        np.testing.assert_allclose(again[0, 1], plane[:8, 8:12].mean(), rtol=1e-6)
        masked[:, 8:11] = np.nan


def test_what_makes_a_flatfield_implausible_is_said():
    good = np.array([[0.8, 1.2]])
    assert doubt_flatfield(good, max_range=2.0, error=0.01, max_error=0.05) == ""
    assert "at most 1.2" in doubt_flatfield(good, max_range=1.2)
    assert "halves" in doubt_flatfield(good, max_range=2.0, error=0.06, max_error=0.05)
    for bad in (np.nan, -1.0, 0.0):
        assert "not positive" in doubt_flatfield(np.array([[bad, 1.0]]), max_range=1e9)


@pytest.mark.parametrize(
    "channel, statistic, least", [(1, "mean", 0.75), (1, "alignment", 0.6), (2, "mean", 0.85), (2, "alignment", 0.75)]
)
def test_on_bbbc013_the_flatfield_is_like_the_published_illumination_function(data, channel, statistic, least):
    """Which is a smoothed mean of the whole plate, of which half is here: its own polynomial correlates with it by 0.9."""
    from scipy.io import loadmat

    folder = data / "bbbc013_sbs_rows_ABEF"
    published = loadmat(folder / f"Channel{channel}ILLUM.mat")["Image"]
    params = median.Params(statistic=statistic, camera_offset=0, max_error=0.1)
    planes = [tifffile.imread(path) for path in sorted(folder.glob(f"Channel{channel}-*.tif"))]
    assert len(planes) == 48
    found, reason = median.estimate([median.shrink(plane, params) for plane in planes], published.shape, params)
    assert reason == "" and np.corrcoef(found.ravel(), published.ravel())[0, 1] > least


# ------------------------------------------------------------------------------------------- what the vendor says


def harmony_polynomial(shape, dims=None):
    """A flat-field as Harmony writes it, and its values by the definition, pixel by pixel."""
    width, height = dims or shape[::-1]
    profile = {
        "character": "NonFlat",
        "coefficients": [[1.1], [-0.02, 0.03], [-0.8, -0.08, -0.3]],
        "dims": [width, height],
        "origin": [(width - 1) / 2, (height - 1) / 2],
        "scale": [1 / width, 1 / height],
    }
    values = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            x, y = (column - (width - 1) / 2) / width, (row - (height - 1) / 2) / height
            values[row, column] = 1.1 - 0.02 * x + 0.03 * y - 0.8 * x * x - 0.08 * x * y - 0.3 * y * y
    return profile, values / values.mean()


def test_harmonys_polynomial_is_evaluated_at_the_pixels():
    profile, expected = harmony_polynomial((20, 30))
    found, reason = vendor.evaluate({"profiles": profile}, (20, 30), vendor.Params())
    assert reason == "" and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_harmonys_polynomial_of_unbinned_pixels_fits_binned_ones():
    profile, whole = harmony_polynomial(None, dims=(60, 40))
    found, _ = vendor.evaluate({"profiles": profile}, (20, 30), vendor.Params())
    np.testing.assert_allclose(found, whole.reshape(20, 2, 30, 2).mean((1, 3)), rtol=1e-3)


def test_harmonys_foreground_counts_where_it_is_asked_for_and_there():
    background, expected = harmony_polynomial((20, 30))
    foreground = background | {"coefficients": [[2.0], [0.5, 0.0]]}
    params = vendor.Params(profile="foreground")
    both = vendor.evaluate({"profiles": background | {"foreground": foreground}}, (20, 30), params)[0]
    np.testing.assert_allclose(both[3], 1 + 0.25 * (np.arange(30) - 14.5) / 30, rtol=1e-6)
    alone = vendor.evaluate({"profiles": background}, (20, 30), params)[0]
    np.testing.assert_allclose(alone, expected, rtol=1e-6)


def test_a_channel_that_harmony_calls_flat_is_flat_without_a_reason():
    found, reason = vendor.evaluate({"profiles": {"character": "Flat", "mean": 95.5}}, (4, 6), vendor.Params())
    np.testing.assert_array_equal(found, 1)
    assert reason == ""


@pytest.mark.parametrize("binning", [1, 2])
def test_a_shading_image_becomes_a_flatfield_whatever_the_binning_and_its_hot_pixels(binning):
    y, x = np.mgrid[:40, :60] / 60
    light = 1 - 0.5 * x**2 - 0.3 * y
    image = np.rint(9000 * light.repeat(binning, 0).repeat(binning, 1)).astype(np.uint16)
    image[3, 5], image[8, 8] = 0, 65535
    found, reason = vendor.evaluate({"image": image}, (40, 60), vendor.Params())
    assert reason == "" and found.mean() == pytest.approx(1, abs=1e-5)
    assert rms(found, light / light.mean()) < 0.02 and found.max() / found.min() < 4


def test_a_shading_image_of_another_number_of_pixels_is_resampled():
    y, x = np.mgrid[:50, :75]
    image = (1000 + 10 * x + 20 * y).astype(np.uint16)
    found, _ = vendor.evaluate({"image": image}, (20, 30), vendor.Params())
    y, x = ((np.mgrid[:20, :30] + 0.5) * 2.5 - 0.5).astype(float)
    expected = 1000 + 10 * x + 20 * y
    np.testing.assert_allclose(found[1:-1, 1:-1], (expected / expected.mean())[1:-1, 1:-1], rtol=2e-3)


@pytest.mark.parametrize(
    "said, reason",
    [
        (None, "no flat-field of this channel"),
        ({"reason": "SC.tif: truncated"}, "SC.tif: truncated"),
        ({"profiles": {"character": "NonFlat"}}, "no polynomial"),
        ({"profiles": {"coefficients": [[1.0]], "dims": [10, 10]}}, "10 × 10 px, the images are 4 × 6"),
        ({"profiles": {"coefficients": [[1.0], [9.0, 0.0]], "dims": [6, 4]}}, "not positive"),
        ({"image": np.ones((4, 4), np.uint16)}, "4, 4"),
        ({"image": np.zeros((4, 6), np.uint16)}, "not positive"),
        ({"image": np.geomspace(1, 60_000, 24).reshape(4, 6).astype(np.uint16)}, "brightest over darkest"),
    ],
)
def test_what_a_vendor_says_and_cannot_be_used_gives_one_and_the_reason(said, reason):
    flat, why = vendor.evaluate(said, (4, 6), vendor.Params())
    np.testing.assert_array_equal(flat, np.ones((4, 6), np.float32))
    assert reason in why


def test_the_dark_level_is_the_configs_or_the_dark_images_or_nothing():
    assert vendor.offset_of({"dark": 99.0}, vendor.Params()) == 99
    assert vendor.offset_of({"dark": 99.0}, vendor.Params(camera_offset=0)) == 0
    assert vendor.offset_of({}, vendor.Params()) == vendor.offset_of(None, vendor.Params()) == 0


def test_a_real_shading_image_and_a_real_polynomial_are_taken(data):
    from imagecodecs import imread

    from plateloom.readers import harmony

    image = imread(data / "yokogawa_cv7000_metadata/illumination/flatfield_corr_matrix.png")
    found, reason = vendor.evaluate({"image": image}, (1080, 1280), vendor.Params())
    assert reason == "" and 2 < found.max() / found.min() < 20
    (channel,) = harmony.scan(data / "operetta_harmony_ball", harmony.Params()).channels.values()
    found, reason = vendor.evaluate({"profiles": channel["flatfield"]}, (1080, 1080), vendor.Params())
    assert reason == "" and 1.5 < found.max() / found.min() < 3


def test_an_image_is_scaled_by_its_type_and_divided_by_the_light():
    light = np.array([[0.5, 1.0, 1.5]], dtype=np.float32)
    image = np.array([[6553.5 * 2, 65535, 6553]]).astype(np.uint16)
    found = correct(image, light)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.4, 1.0, 6553 / 65535 / 1.5]], rtol=1e-6)
    np.testing.assert_allclose(correct(np.array([[0.2, 0.9, -1.0]]), light), [[0.4, 0.9, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(
        correct(np.array([[100, 50, 103]], np.uint8), light, offset=100)[0, 2], 2 / 255, rtol=1e-5
    )


def test_every_channel_has_its_own_dark_level():
    image = np.full((2, 1, 3), 110, np.uint8)
    found = correct(image, np.ones((2, 1, 3), np.float32), offset=np.array([10.0, 60.0]).reshape(2, 1, 1))
    np.testing.assert_allclose(found[:, 0, 0] * 255, [100, 50], rtol=1e-6)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("offset", [0.0, np.array([90.0, 0.0]).reshape(2, 1, 1)], ids=["no offset", "offset"])
def test_correction_is_what_numpy_computes(kind, offset):
    random = np.random.default_rng(3)
    most = np.iinfo(kind).max if kind.startswith("u") else 1
    image = (random.random((2, 20, 30)) * most * (1 if kind.startswith("u") else 1.5)).astype(kind)
    if kind.startswith("f"):
        image[0, :3, 5] = np.nan, -0.5, np.inf
    flatfield = random.uniform(0.5, 1.5, (2, 20, 30)).astype(np.float32)
    expected = (image.astype(np.float32) - np.float32(offset)) / (flatfield * np.float32(most))
    np.testing.assert_array_equal(correct(image, flatfield, offset=offset), np.clip(expected, 0, 1))
    window = (slice(None), slice(3, 11), slice(4, 25))
    np.testing.assert_array_equal(
        correct(image[window], flatfield[window], offset=offset), np.clip(expected, 0, 1)[window]
    )


def test_all_channels_are_corrected_at_once():
    stack, truth = plate()
    image = np.random.default_rng(0).integers(0, 4096, truth.shape, dtype=np.uint16)
    each = [correct(plane, light) for plane, light in zip(image, truth, strict=True)]
    np.testing.assert_array_equal(correct(image, truth), each)


def test_a_flatfield_of_another_size_is_refused():
    with pytest.raises(ValueError, match="do not match"):
        correct(np.zeros((2, 3), np.uint8), np.ones((3, 2), np.float32))


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_unknown_parameters_are_refused(module):
    with pytest.raises(ValidationError):
        module.Params(wrong=1)


def test_listing_the_methods_imports_nothing_heavy():
    code = (
        "import sys, plateloom.illumination; "
        "heavy = {'scipy', 'pydantic', 'skimage', 'pandas', 'dask', 'zarr', 'torch'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------------ the stage

TO_LIGHT = ("conversion", "assembly", "illumination")
TO_FEATURES = (*TO_LIGHT, "segmentation", "features")
SIZE, OVERLAP = 256, 64
STEP_UM = (SIZE - OVERLAP) * 0.65
POSITIONS = {1: (0.0, 0.0), 2: (0.0, STEP_UM), 3: (STEP_UM, 0.0), 4: (STEP_UM, STEP_UM)}
CORNERS = {1: (0, 0), 2: (0, 1), 3: (1, 0), 4: (1, 1)}


def edit(folder, change):
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    change(settings)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def shade(plane, light):
    """Put a plane that was taken in even light under another light; the camera's dark level stays."""
    return np.clip(np.rint((plane.astype(float) - CAMERA_OFFSET) * light + CAMERA_OFFSET), 0, 65535).astype(np.uint16)


def cut_scenes(folder, light, **design):
    """Simulate even scenes, and cut each into four overlapping fields under a light: planes as a vendor's layout takes."""
    simulate(folder, size_px=2 * SIZE - OVERLAP, illumination_strength=0, cells_per_field=45.0, **design)
    planes = {}
    for path in sorted((folder / "raw/P1").glob("*.tif")):
        well, _, channel = path.stem.split("_")
        scene = tifffile.imread(path)
        for field, corner in CORNERS.items():
            window = tuple(slice(i * (SIZE - OVERLAP), i * (SIZE - OVERLAP) + SIZE) for i in corner)
            planes[well, field, int(channel[1:]), 1, 1] = shade(scene[window], light)
    shutil.rmtree(folder / "raw/P1")
    return planes


def use_reader(folder, reader, sources, **illumination):
    """Let a simulated screen be read by a vendor's reader."""
    sheet = folder / "plates.tsv"
    sheet.write_text(sheet.read_text().replace("pattern", reader))

    def change(settings):
        settings.pop("readers", None)
        for channel, source in zip(settings["channels"].values(), sources, strict=True):
            channel["source"] = source
        settings["illumination"] = illumination

    edit(folder, change)


def flatfields_of(folder, channels=("DNA", "ER", "GFP")):
    found = read_json(folder / "results/plates/P1/records/illumination/part-0.json")
    assert found["status"] == "done", found["reason"]
    path = folder / "results/plates/P1/illumination.zarr"
    flat, offset = read_flatfields(path, channels, found["artefacts"]["illumination"])
    return flat, offset.ravel().tolist(), found["facts"]


def test_harmonys_flatfield_is_kept_at_conversion_and_used_when_the_source_is_gone(tmp_path):
    folder = tmp_path / "screen"
    _, light = harmony_polynomial((SIZE, SIZE))
    planes = cut_scenes(folder, light, rows=1, columns=2)
    options = {"positions": POSITIONS, "channels": ("DNA", "ER", "GFP")}
    # The third channel has none that can be read.
    without = lambda text: text.replace("ChannelName: GFP", "ChannelName").replace("Channel: 3", "}")  # noqa: E731
    harmony_layout.write(folder / "raw/P1", planes, edit=without, **options)
    use_reader(folder, "harmony", ("DNA", "ER", "GFP"), method="vendor")
    run_stages(folder, TO_LIGHT[:2])
    shutil.rmtree(folder / "raw/P1")
    run_stages(folder, TO_LIGHT[2:])
    flat, offset, facts = flatfields_of(folder)
    assert max(rms(flat[i], light) for i in (0, 1)) < 1e-5 and offset == [0, 0, 0]
    np.testing.assert_array_equal(flat[2], 1)
    reason = "the source has no flat-field of this channel"
    assert facts["refused"] == {"GFP": reason} and facts["GFP"] == reason
    assert facts["DNA"] == "the vendor's flat-field"
    # A damaged copy is no result.
    (path,) = (folder / "results/plates/P1/.sources").glob("shadings.zarr/zarr.json")
    path.write_text(path.read_text().replace("1.1", "1.2"))
    shutil.rmtree(folder / "results/plates/P1/illumination.zarr")
    run_stages(folder, TO_LIGHT[2:])
    record = read_json(folder / "results/plates/P1/records/illumination/part-0.json")
    assert record["status"] == "failed" and "run again" in record["reason"]


def test_the_cellvoyagers_shading_and_dark_images_are_kept_and_used(tmp_path):
    folder = tmp_path / "screen"
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    light = 1.2 - 1.5 * (x**2 + (y - 0.1) ** 2)
    light /= light.mean()
    planes = cut_scenes(folder, light, rows=1, columns=2)
    raw = folder / "raw/P1"
    yokogawa_layout.write(raw, planes, channels=("DNA", "ER", "GFP"), corrections=True)
    noise = np.random.default_rng(0).normal(1, 0.005, light.shape)
    for path in raw.glob("SC_*.tif"):
        tifffile.imwrite(path, np.rint(9000 * light * noise).astype(np.uint16))
    (dark,) = raw.glob("DC_*.tif")
    tifffile.imwrite(dark, np.full(light.shape, CAMERA_OFFSET, np.uint16))
    use_reader(folder, "yokogawa", ("1", "2", "3"), method="vendor")
    run_stages(folder, TO_LIGHT)
    flat, offset, facts = flatfields_of(folder)
    assert max(rms(flat[i], light) for i in (0, 1)) < 0.02
    assert offset == [CAMERA_OFFSET, CAMERA_OFFSET, 0] and set(facts["refused"]) == {"GFP"}
    # Nothing is read again where nothing has changed; another shading image is noticed.
    run_stages(folder, TO_LIGHT)
    assert read_json(folder / "results/plates/P1/records/illumination/part-0.json")["kept"] == ["illumination"]
    for path in raw.glob("SC_*.tif"):
        tifffile.imwrite(path, np.full(light.shape, 9000, np.uint16))
    run_stages(folder, TO_LIGHT)
    np.testing.assert_array_equal(flatfields_of(folder)[0], 1)
    # Conversion mends a copy that is damaged.
    copy = folder / shadings_path("P1")
    made = read_json(folder / "results/plates/P1/records/conversion/part-0.json")["facts"]["shadings"]
    (copy / "DNA/c/0/0").write_bytes(b"")
    with pytest.raises(PlateLayoutError, match="run again"):
        read_shadings(copy, made)
    run_stages(folder, TO_LIGHT[:1])
    np.testing.assert_array_equal(read_shadings(copy, made)["DNA"]["image"], 9000)
    # So it does where `verify` has removed one; what somebody else put there is not removed.
    (copy / "notes.txt").touch()
    (stray,) = repair.find_damage(folder, "P1", deep=False)
    assert stray.stray and not stray.repairable
    (copy / "notes.txt").unlink()
    (copy / "DNA/c/0/0").write_bytes(b"")
    (damage,) = repair.find_damage(folder, "P1", deep=False)
    assert (damage.stage, damage.file) == ("conversion", ".sources/shadings.zarr/DNA/c/0/0")
    repair.remove_damaged(folder, [damage])
    (lost,) = repair.find_damage(folder, "P1", deep=False)
    assert lost.file == "records/conversion/part-0.json" and not copy.exists()
    run_stages(folder, TO_LIGHT[:1])
    assert repair.find_damage(folder, "P1", deep=True) == []
    np.testing.assert_array_equal(read_shadings(copy, made)["DNA"]["image"], 9000)


def test_a_shading_image_that_cannot_be_read_is_the_reason(tmp_path):
    folder = tmp_path / "screen"
    planes = cut_scenes(folder, np.ones((SIZE, SIZE)), rows=1, columns=1)
    yokogawa_layout.write(folder / "raw/P1", planes, channels=("DNA", "ER", "GFP"), corrections=True)
    for path in (folder / "raw/P1").glob("SC_*.tif"):
        path.write_bytes(path.read_bytes()[:5000])
    use_reader(folder, "yokogawa", ("1", "2", "3"), method="vendor")
    run_stages(folder, TO_LIGHT)
    flat, _, facts = flatfields_of(folder)
    np.testing.assert_array_equal(flat, 1)
    assert "truncated" in facts["refused"]["DNA"]


def test_a_flatfield_that_is_refused_is_a_notice_on_the_plates_page(tmp_path):
    folder = simulate(tmp_path / "screen", rows=1, columns=2)
    edit(folder, lambda settings: settings.update(illumination={"method": "vendor"}))
    edit(folder, lambda settings: settings["latent"]["autoencoder"].update(enabled=False))
    run_stages(folder, (*TO_FEATURES, "quality", "flagging", "profiling", "profiles", "report"))
    flat, _, facts = flatfields_of(folder)
    np.testing.assert_array_equal(flat, 1)
    assert set(facts["refused"]) == {"DNA", "ER", "GFP"}
    assert not (folder / shadings_path("P1")).exists()
    sentence = "Uneven light is not corrected in DNA, ER, GFP: the source has no flat-field of this channel."
    assert sentence in (folder / "results/plates/P1/report.html").read_text()
    notices = record_of(folder, "report")["facts"]["notices"]
    assert {"kind": "illumination", "text": sentence, "section": "parameters"} in notices


# With the neighbors' pixels in the overlaps, it is off by up to 1.8 and 2.1 %.
@pytest.mark.slow
@pytest.mark.parametrize("method, tolerance", [("median", 0.013), ("lowrank", 0.01)])
def test_a_stitched_plate_has_the_flatfield_of_the_same_fields_kept_apart(tmp_path, method, tolerance):
    _, light = harmony_polynomial((SIZE, SIZE))
    found = {}
    for layout in ("fields", "stitched"):
        folder = tmp_path / layout
        planes = cut_scenes(folder, light, rows=3, columns=4)
        harmony_layout.write(folder / "raw/P1", planes, positions=POSITIONS, channels=("DNA", "ER", "GFP"))
        parameters = {"camera_offset": CAMERA_OFFSET}
        use_reader(folder, "harmony", ("DNA", "ER", "GFP"), method=method, parameters=parameters)
        edit(folder, lambda settings, layout=layout: settings.update(conversion={"layout": layout}))
        run_stages(folder, TO_LIGHT)
        found[layout], _, facts = flatfields_of(folder)
        assert "refused" not in facts and facts["DNA"] == "from 32 fields"
    for i in range(3):
        assert rms(found["stitched"][i], found["fields"][i]) < tolerance
        assert rms(found["stitched"][i], light) < 0.02 < rms(1, light) / 3


# ------------------------------------------------------------------------------------------------- late images

WELLS = [f"{row}{column:02d}" for row in "ABC" for column in range(1, 5)]
QUICK = {"camera_offset": CAMERA_OFFSET, "thumbnail": 16}


def hold_back(folder, wells):
    """Move the images of some wells aside, as if they had not been taken yet."""
    (folder / "late").mkdir(exist_ok=True)
    for well in wells:
        for path in (folder / "raw/P1").glob(f"{well}_*"):
            shutil.move(path, folder / "late" / path.name)


def bring(folder):
    """Bring what was held back."""
    for path in (folder / "late").iterdir():
        shutil.move(path, folder / "raw/P1" / path.name)


def record_of(folder, stage):
    return read_json(folder / f"results/plates/P1/records/{stage}/part-0.json")


def results_of(folder):
    """Bytes of the flat-fields, labels and tables of a screen."""
    base = folder / "results/plates/P1"
    patterns = (
        "illumination.zarr/**/*",
        "plate.zarr/*/*/*/labels/**/*",
        "features/*.parquet",
        "segmentation/*.parquet",
    )
    files = [path for pattern in patterns for path in base.glob(pattern) if path.is_file()]
    return {str(path.relative_to(base)): path.read_bytes() for path in files}


def screen_with_late_wells(folder, late, wells=("B03",), stages=TO_LIGHT):
    """A screen of fewer fields than a flat-field may be made from, run without some wells, whose images then come."""
    simulate(folder)
    edit(folder, lambda settings: settings.update(illumination={"late": late, "parameters": QUICK}))
    hold_back(folder, wells)
    run_stages(folder, stages)
    bring(folder)
    return folder


def test_a_late_well_computes_only_itself_where_the_flatfield_is_kept(tmp_path):
    folder = screen_with_late_wells(tmp_path / "screen", "keep", stages=TO_FEATURES)
    before = results_of(folder)
    run_stages(folder, TO_FEATURES)
    for stage in ("conversion", "segmentation", "features"):
        assert record_of(folder, stage)["computed"] == ["B03"], stage
    light = record_of(folder, "illumination")
    assert light["kept"] == ["illumination"] and light["computed"] == []
    assert light["facts"]["late"] == "kept; 11 of 12 fields of the present choice"
    assert light["facts"]["DNA"] == "from 11 fields"
    after = results_of(folder)
    assert before.items() <= after.items() and "features/B03.parquet" in after
    # Nothing takes it for stale or for damaged.
    assert repair.find_damage(folder, "P1", deep=True) == []
    states = read_screen(folder)["plates"]["P1"]
    assert {states[stage].state for stage in TO_FEATURES} == {"done"}
    run_stages(folder, TO_FEATURES)
    assert all(record_of(folder, stage)["computed"] == [] for stage in TO_FEATURES)


@pytest.mark.slow
def test_a_late_well_ends_as_a_clean_run_where_the_flatfield_follows(tmp_path):
    folder = screen_with_late_wells(tmp_path / "screen", "follow", stages=TO_FEATURES)
    before = results_of(folder)
    run_stages(folder, TO_FEATURES)
    assert record_of(folder, "conversion")["computed"] == ["B03"]
    assert record_of(folder, "features")["computed"] == WELLS
    assert "late" not in record_of(folder, "illumination")["facts"]
    clean = screen_with_late_wells(tmp_path / "clean", "keep", wells=(), stages=TO_FEATURES)
    found = results_of(folder)
    assert found == results_of(clean) and len(found) > 50
    assert found["illumination.zarr/zarr.json"] != before["illumination.zarr/zarr.json"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A screen with the flat-field of its wells without one, whose images have come; copy it."""
    return screen_with_late_wells(tmp_path_factory.mktemp("kept") / "screen", "keep")


def test_a_kept_flatfield_is_given_up_when_it_is_asked_to_follow(kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "screen")
    run_stages(folder, TO_LIGHT)
    edit(folder, lambda settings: settings["illumination"].update(late="follow"))
    run_stages(folder, TO_LIGHT)
    assert record_of(folder, "illumination")["computed"] == ["illumination"]
    assert record_of(folder, "illumination")["facts"]["DNA"] == "from 12 fields"


def late_parameter(folder):
    edit(folder, lambda settings: settings["illumination"].update(parameters={**QUICK, "degree": 3}))


def another_image(folder):
    path = folder / "raw/P1/A01_s1_w1.tif"
    tifffile.imwrite(path, tifffile.imread(path)[::-1])


def no_more_image(folder):
    for path in Path(folder, "raw/P1").glob("A01_*"):
        path.unlink()


@pytest.mark.parametrize("change", [late_parameter, another_image, no_more_image])
def test_a_flatfield_is_not_kept_that_is_out_of_date(kept, tmp_path, change):
    folder = shutil.copytree(kept, tmp_path / "screen")
    change(folder)
    run_stages(folder, TO_LIGHT)
    light = record_of(folder, "illumination")
    assert light["computed"] == ["illumination"] and "late" not in light["facts"]


@pytest.mark.parametrize("first, kept", [(6, True), (5, False)])
def test_a_flatfield_is_kept_only_if_it_was_made_from_half_of_the_present_choice(tmp_path, first, kept):
    folder = screen_with_late_wells(tmp_path / "screen", "keep", wells=WELLS[first:])
    run_stages(folder, TO_LIGHT)
    assert record_of(folder, "illumination")["kept"] == (["illumination"] if kept else [])
