"""A stack becomes a plane."""

import numpy as np
import pytest

from plateloom.projection import METHODS, project

STACK = np.random.default_rng(0).integers(0, 65535, (5, 32, 32), dtype=np.uint16)


@pytest.mark.parametrize("method", METHODS)
def test_one_plane_stays_as_it_is(method):
    np.testing.assert_array_equal(project(iter(STACK[:1]), method), STACK[0])


@pytest.mark.parametrize("method", METHODS)
def test_the_planes_given_are_not_changed(method):
    stack = STACK.copy()
    assert project(iter(stack), method).dtype == np.uint16
    np.testing.assert_array_equal(stack, STACK)


def test_max_and_mean_are_those_of_numpy():
    np.testing.assert_array_equal(project(iter(STACK), "max"), STACK.max(0))
    np.testing.assert_allclose(project(iter(STACK), "mean"), STACK.mean(0), atol=0.5)


def test_best_focus_is_the_sharpest_and_not_the_brightest():
    from scipy.ndimage import gaussian_filter

    blurred = [gaussian_filter(STACK[0].astype(float), sigma) for sigma in (4, 2, 0, 2, 4)]
    stack = [(plane * gain).astype(np.uint16) for plane, gain in zip(blurred, (1, 0.5, 0.3, 1, 1), strict=True)]
    np.testing.assert_array_equal(project(iter(stack), "best focus"), stack[2])
