"""Crops of cells on disk: read a few at a time, so that memory does not grow with their number."""

import os
from pathlib import Path

import numpy as np

from plateloom.store.provenance import replacing

BLOCK = 256  # crops that are read or written at once


def write_crops(path, blocks):
    """Write crops one after the other as plain float32; the file is there when all are.

    Parameters
    ----------
    path : path
    blocks : iterable of array of float32, shape (n, C, H, W)

    Returns
    -------
    int
        Number of crops.
    """
    count = 0
    with replacing(path) as file:
        for block in blocks:
            file.write(np.ascontiguousarray(block, np.float32).data)
            count += len(block)
    return count


def count_crops(path, shape):
    """Count the crops (C, H, W) of a file of `write_crops`."""
    return Path(path).stat().st_size // (4 * int(np.prod(shape)))


def read_crops(path, shape, most=None):
    """Read a file of `write_crops` block by block.

    Parameters
    ----------
    path : path
    shape : tuple of int (C, H, W)
    most : int, optional
        Only so many, from the beginning.

    Yields
    ------
    ndarray of float32, shape (n, C, H, W)
    """
    left, size = count_crops(path, shape), int(np.prod(shape))
    left = left if most is None else min(left, most)
    with open(path, "rb") as file:
        while left > 0:
            number = min(BLOCK, left)
            yield np.fromfile(file, np.float32, number * size).reshape(number, *shape)
            left -= number


class CropShards:
    """Crops in files of some thousand each, in half precision; indexed like an array, and read by plain reads.

    A memory map would count as memory of the process as far as it was ever touched: all of it, after an epoch.

    Parameters
    ----------
    folder : path
        Empty, or not there yet.
    shape : tuple of int (C, H, W)
    per_file : int
        Crops in a file.

    Attributes
    ----------
    shape : tuple of int (N, C, H, W)
    dtype : dtype of float16

    Examples
    --------
    >>> import tempfile
    >>> with CropShards(tempfile.mkdtemp(), (1, 2, 2), per_file=2) as crops:
    ...     crops.append(np.arange(20).reshape(5, 1, 2, 2))
    ...     crops[[0, 3]][:, 0, 0].tolist(), crops[1:3].sum(axis=(1, 2, 3)).tolist(), crops.shape
    ([[0.0, 1.0], [12.0, 13.0]], [22.0, 38.0], (5, 1, 2, 2))
    """

    dtype = np.dtype(np.float16)

    def __init__(self, folder, shape, *, per_file=8192):
        self.folder, self.per_file, self._one, self._files = Path(folder), per_file, tuple(shape), []
        self._bytes = self.dtype.itemsize * int(np.prod(shape))
        self._count = 0
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Close the files; they stay."""
        while self._files:
            os.close(self._files.pop())

    def append(self, crops):
        """Write crops behind those that are there: array of float, shape (n, C, H, W)."""
        crops = np.ascontiguousarray(crops, self.dtype)
        for start, stop, file, place in self._runs(self._count, self._count + len(crops)):
            if file == len(self._files):
                path = self.folder / f"{file:05d}.crops"
                self._files.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644))
            _write(self._files[file], memoryview(crops[start:stop]).cast("B"), place)
        self._count += len(crops)

    @property
    def shape(self):
        return self._count, *self._one

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        """Read crops by a slice, or by an array of their numbers."""
        chosen = np.arange(*index.indices(self._count)) if isinstance(index, slice) else np.asarray(index)
        found = np.empty((len(chosen), *self._one), self.dtype)
        breaks = np.flatnonzero(np.diff(chosen) != 1) + 1
        for begin, end in zip([0, *breaks], [*breaks, len(chosen)], strict=True):
            if begin == end:
                continue
            first = int(chosen[begin])
            for start, stop, file, place in self._runs(first, first + int(end - begin)):
                _read(self._files[file], memoryview(found[begin + start : begin + stop]).cast("B"), place)
        return found

    def _runs(self, first, last):
        """Where crops lie: (start and stop among them, number of the file, place in it [bytes])."""
        crop = first
        while crop < last:
            file, place = divmod(crop, self.per_file)
            stop = min(last, (file + 1) * self.per_file)
            yield crop - first, stop - first, file, place * self._bytes
            crop = stop


def _read(file, into, place):
    """Fill a buffer from a place in an open file."""
    while into:
        read = os.preadv(file, [into], place)
        if not read:
            raise OSError("a file of crops is shorter than it was")
        into, place = into[read:], place + read


def _write(file, data, place):
    """Write a buffer at a place in an open file."""
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written
