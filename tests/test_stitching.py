"""Fields side by side: each pixel once, from the field whose center is nearest."""

import numpy as np
import pytest

from plateloom.stitching import Mosaic, place_fields


def grid(rows, columns, step, size):
    return Mosaic(tuple((y * step, x * step) for y in range(rows) for x in range(columns)), (size, size))


def whole(mosaic):
    return tuple(slice(0, size) for size in mosaic.shape)


def test_fields_without_overlap_are_laid_side_by_side():
    mosaic = grid(2, 3, 10, 10)
    fields = np.random.default_rng(0).integers(1, 99, (6, 2, 10, 10), dtype=np.uint16)
    image = mosaic.assemble(whole(mosaic), lambda n, there: fields[(n, slice(None), *there)], np.uint16)
    assert image.shape == (2, 20, 30)
    for number, (y, x) in enumerate(mosaic.origins):
        np.testing.assert_array_equal(image[:, y : y + 10, x : x + 10], fields[number])


def test_a_pixel_belongs_to_the_nearest_center_and_of_equals_to_the_first():
    mosaic = grid(1, 2, 7, 10)
    owners = mosaic.owners(whole(mosaic))
    # Columns 7, 8, 9 are covered twice; the centers lie at 4.5 and 11.5, so that column 8 is as near to both.
    np.testing.assert_array_equal(owners[0], [0] * 9 + [1] * 8)


def test_single_pixels_have_the_owners_of_the_whole():
    mosaic = Mosaic(((0, 0), (3, 17), (1, 32), (21, 2)), (20, 20))
    pixels = np.argwhere(np.ones(mosaic.shape, bool))
    np.testing.assert_array_equal(mosaic.owners_of(pixels), mosaic.owners(whole(mosaic)).ravel())
    assert (mosaic.owners_of([[-1, 5], [5, 500]]) == -1).all()


def test_overlapping_pieces_of_one_scene_give_the_scene():
    rng = np.random.default_rng(1)
    scene = rng.integers(0, 999, (40, 52), dtype=np.uint16)
    mosaic = Mosaic(((0, 0), (3, 17), (1, 32), (20, 2), (19, 15), (20, 32)), (20, 20))
    pieces = [scene[y : y + 20, x : x + 20] for y, x in mosaic.origins]
    image = mosaic.assemble(whole(mosaic), lambda n, there: pieces[n][there], np.uint16)
    covered = mosaic.owners(whole(mosaic)) >= 0
    np.testing.assert_array_equal(image[covered], scene[: image.shape[0], : image.shape[1]][covered])
    assert (image[~covered] == 0).all() and not covered.all()


@pytest.mark.parametrize(
    "window", [(slice(0, 7), slice(0, 9)), (slice(5, 23), slice(11, 31)), (slice(29, 30), slice(3, 4))]
)
def test_a_window_is_a_piece_of_the_whole(window):
    mosaic = Mosaic(((0, 0), (2, 13), (14, 1), (13, 15)), (16, 17))
    fields = np.random.default_rng(2).integers(1, 999, (4, 16, 17), dtype=np.uint16)
    read = lambda n, there: fields[n][there]  # noqa: E731
    image = mosaic.assemble(whole(mosaic), read, np.uint16)
    np.testing.assert_array_equal(mosaic.assemble(window, read, np.uint16), image[window])


def test_positions_are_rounded_to_whole_pixels_and_begin_at_zero():
    mosaic = place_fields([(100.0, -50.0), (100.2, 49.9), (0.0, 0.0)], 0.5, (200, 200))
    assert mosaic.origins == ((200, 0), (200, 200), (0, 100))
    assert mosaic.shape == (400, 400)


def test_a_gap_is_zero():
    mosaic = Mosaic(((0, 0), (0, 8)), (4, 4))
    image = mosaic.assemble((slice(0, 4), slice(4, 8)), lambda n, there: np.ones((4, 4))[there], np.uint8)
    assert image.shape == (4, 4) and not image.any()
