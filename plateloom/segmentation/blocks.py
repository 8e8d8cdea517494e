"""Objects of a network that knows no tiles, such that a tile gets those of the whole image.

A network may say something else of an object where it sees other surroundings. So it never sees a tile: the whole image
is divided into *blocks*, which do not depend on the tiles, and the network sees each block with the same surroundings,
whichever tile asks. What it finds is put together by rules that look no farther than a known distance:

1. An object belongs to the block in which its center lies, give or take a margin, since two blocks may place the same
   center on either side of their border: an object may be found twice, but none is lost.
2. Blocks have four colors, like the fields of a chess board of two rows: blocks of one color never meet. Objects are
   laid down color by color. One that shares more than half of itself, or of another, with what lies there is the
   same object once more and is left out; else it gets the pixels that are free.
3. The id of an object is 1 + the index of its first pixel in the raster of the whole image.

An object depends, through at most three others, on what lies within five times the length of the longest.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from plateloom.errors import TileOverlapError


class _Candidate(NamedTuple):
    """An object that a block answers for: where its box begins in the image, its pixels, and its turn."""

    turn: tuple
    row: int
    column: int
    mask: np.ndarray


class Blocks:
    """How an image is divided for a network.

    Parameters
    ----------
    shape : tuple of int (Y, X)
        Size of the whole image [px].
    longest_px : int
        Objects longer than this along either axis [px] are left out: no block is sure to see them whole.
    context_px : int
        What the network sees beyond the longest object [px].
    block_px : int
        A block's side is at least this [px].
    """

    def __init__(self, shape, *, longest_px, context_px, block_px=512):
        self.shape, self.longest_px = tuple(shape), int(longest_px)
        self.margin_px = max(2, self.longest_px // 8)
        self.surround_px = self.longest_px + self.margin_px + int(context_px)
        self.reach_px = 5 * self.longest_px + self.margin_px
        self.block_px = max(block_px, 64 * math.ceil(self.reach_px / 64))

    @property
    def halo_px(self):
        """Halo of a view from which the objects of its core can be told [px]."""
        return self.block_px + self.reach_px + self.surround_px

    def find_objects(self, find, view, origin, region):
        """Find the objects of a part of the image.

        Parameters
        ----------
        find : callable(ndarray, shape (C, h, w)) -> ndarray of int, shape (h, w)
            The network: labels of what it sees; 0 is background.
        view : ndarray, shape (C, H, W)
        origin : tuple of int (Y, X)
            Where the view begins in the image [px].
        region : tuple of slice
            The part, within the view.

        Returns
        -------
        ndarray of int64, shape of the region
            Ids; 0 is background.

        Raises
        ------
        TileOverlapError
            If the view does not hold every block that has a say, with its surroundings.
        """
        candidates = []
        for block in self._blocks_near(region, origin):
            window = tuple(
                slice(max(part.start - self.surround_px, 0), min(part.stop + self.surround_px, size))
                for part, size in zip(block, self.shape, strict=True)
            )
            inside = tuple(slice(part.start - o, part.stop - o) for part, o in zip(window, origin, strict=True))
            if any(part.start < 0 or part.stop > size for part, size in zip(inside, view.shape[1:], strict=True)):
                raise TileOverlapError(
                    f"The tile at {tuple(origin)} sees {view.shape[1]} × {view.shape[2]} px. Objects of up to "
                    f"{self.longest_px} px need a halo of {self.halo_px} px: widen the halo or lower the largest diameter."
                )
            candidates += self._candidates(np.asarray(find(view[:, *inside])), block, window)
        laid = np.zeros(view.shape[1:], np.int32)
        sizes = [0]
        for one in sorted(candidates, key=lambda candidate: candidate.turn):
            row, column = one.row - origin[0], one.column - origin[1]
            place = laid[row : row + one.mask.shape[0], column : column + one.mask.shape[1]]
            size = int(one.mask.sum())
            shared = np.bincount(place[one.mask], minlength=1)
            if any(2 * shared[k] > min(size, sizes[k]) for k in np.flatnonzero(shared[1:]) + 1):
                continue
            sizes.append(size)
            place[one.mask & (place == 0)] = len(sizes) - 1
        numbers, firsts = np.unique(laid, return_index=True)
        y, x = np.divmod(firsts, laid.shape[1])
        ids = np.zeros(len(sizes), np.int64)
        ids[numbers] = (y + origin[0]) * self.shape[1] + x + origin[1] + 1
        ids[0] = 0
        return ids[laid[region]]

    def _blocks_near(self, region, origin):
        """Blocks that may have a say in a region of a view."""
        ranges = [
            range(
                max(part.start + o - self.reach_px, 0) // self.block_px,
                -(-min(part.stop + o + self.reach_px, size) // self.block_px),
            )
            for part, o, size in zip(region, origin, self.shape, strict=True)
        ]
        for i in ranges[0]:
            for j in ranges[1]:
                starts = (i * self.block_px, j * self.block_px)
                yield tuple(
                    slice(start, min(start + self.block_px, size))
                    for start, size in zip(starts, self.shape, strict=True)
                )

    def _candidates(self, labels, block, window):
        """Objects of a block, from the labels of what the network saw of it."""
        i, j = (part.start // self.block_px for part in block)
        found = []
        for value, box in enumerate(ndimage.find_objects(labels), 1):
            if box is None or max(part.stop - part.start for part in box) > self.longest_px:
                continue
            mask = labels[box] == value
            corner = [part.start + begin.start for part, begin in zip(box, window, strict=True)]
            center = [start + places.mean() for start, places in zip(corner, np.nonzero(mask), strict=True)]
            if all(
                part.start - self.margin_px <= middle < part.stop + self.margin_px
                for part, middle in zip(block, center, strict=True)
            ):
                found.append(_Candidate((2 * (i % 2) + j % 2, i, j, value), *corner, mask))
        return found
