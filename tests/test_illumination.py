"""The contract of every illumination method, and how near the estimate comes to the true light."""

import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from pydantic import ValidationError

from plateloom.illumination import METHODS, correct, median
from plateloom.registry import load_method
from plateloom.simulation import ScreenDesign, all_fields, render_field

METHOD_NAMES = sorted(METHODS)


@pytest.fixture(params=METHOD_NAMES)
def method(request):
    return load_method(METHODS, request.param, "illumination method")


@cache
def plate():
    """Thumbnails of the 48 fields of a simulated plate, four of them defective, and the true light."""
    design = ScreenDesign(plates=("P1",), seed=11, defects={"debris": 2, "saturated": 1, "blurred": 1})
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


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_the_light_of_a_simulated_plate_is_found_to_within_three_and_a_half_percent(channel):
    stack, truth = plate()
    found, reason = median.estimate(stack[channel], truth.shape[1:], median.Params())
    assert reason == ""
    assert rms(found, truth[channel]) < 0.035


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_with_the_camera_offset_given_it_is_found_to_within_two_percent(channel):
    stack, truth = plate()
    found, _ = median.estimate(stack[channel], truth.shape[1:], median.Params(camera_offset=110))
    assert rms(found, truth[channel]) < 0.02


@pytest.mark.parametrize("offset", [0.0, 20.0, 100.0])
def test_a_known_light_over_a_sharp_background_is_found_to_within_half_a_percent(offset):
    stack, truth = synthetic(offset=offset)
    found, reason = median.estimate(stack, truth.shape, median.Params())
    assert reason == ""
    assert rms(found, truth) < 0.005
    assert median.estimate_offset(stack, median.Params()) == pytest.approx(offset, abs=3)


def test_a_few_wild_fields_do_not_matter():
    stack, truth = synthetic(offset=100.0)
    wild = stack.copy()
    wild[:3] = 60_000
    wild[3] *= np.linspace(1, 30, 32, dtype=np.float32)
    wild[4, :10] = 40_000
    params = median.Params(camera_offset=100)
    assert rms(median.estimate(wild, truth.shape, params)[0], truth) < 0.005


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
    stack = np.stack([method.shrink(np.full((40, 60), value, np.uint16), method.Params())] * 12)
    flat, reason = method.estimate(stack, (40, 60), method.Params())
    np.testing.assert_array_equal(flat, 1)
    assert reason == ""


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_too_few_fields_give_one_everywhere(method, count):
    flat, reason = method.estimate(synthetic()[0][:count], (20, 30), method.Params())
    np.testing.assert_array_equal(flat, 1)
    if method is median:
        assert reason == f"only {count} fields, at least 4 are needed"


@pytest.mark.parametrize("count", [4, 6, 10])
def test_a_handful_of_fields_is_no_worse_than_no_correction(count):
    stack, truth = plate()
    for channel in range(3):
        found, _ = median.estimate(stack[channel, :count], truth.shape[1:], median.Params())
        assert rms(found, truth[channel]) < rms(1, truth[channel]) + 0.01


def test_fields_that_are_not_finite_are_left_out():
    stack, truth = synthetic()
    broken = np.concatenate([stack, np.full((2, 32, 32), np.nan, np.float32)])
    expected, _ = median.estimate(stack, truth.shape, median.Params())
    np.testing.assert_array_equal(median.estimate(broken, truth.shape, median.Params())[0], expected)


def test_an_implausible_light_is_refused_with_the_reason():
    stack, truth = synthetic()
    steep = (stack * np.linspace(0.05, 1, 32, dtype=np.float32)).astype(np.float32)
    flat, reason = median.estimate(steep, truth.shape, median.Params(camera_offset=0))
    np.testing.assert_array_equal(flat, 1)
    assert "implausible" in reason


def test_an_even_light_stays_even():
    stack = synthetic()[0] / synthetic()[1].astype(np.float32)
    found, _ = median.estimate(stack, (32, 32), median.Params())
    assert rms(found, 1) < 0.002


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


def test_all_channels_are_corrected_at_once():
    stack, truth = plate()
    image = np.random.default_rng(0).integers(0, 4096, truth.shape, dtype=np.uint16)
    each = [correct(plane, light) for plane, light in zip(image, truth, strict=True)]
    np.testing.assert_array_equal(correct(image, truth), each)


def test_a_flatfield_of_another_size_is_refused():
    with pytest.raises(ValueError, match="do not match"):
        correct(np.zeros((2, 3), np.uint8), np.ones((3, 2), np.float32))


def test_unknown_parameters_are_refused(method):
    with pytest.raises(ValidationError):
        method.Params(wrong=1)


def test_listing_the_methods_imports_nothing_heavy():
    code = (
        "import sys, plateloom.illumination; "
        "heavy = {'scipy', 'pydantic', 'skimage', 'pandas', 'dask', 'zarr', 'torch'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
