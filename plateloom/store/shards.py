"""Shards of Zarr 3 as plates hold them, encoded and decoded without zarr's event loop.

zarr gives each chunk tasks of its event loop, which take half as long as to decode or encode a chunk of 540² pixels.
"""

import dataclasses
import itertools
import math

import google_crc32c  # zarr needs it too
import numcodecs
import numpy as np
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from plateloom.store.integrity import ABSENT


@dataclasses.dataclass(frozen=True)
class Shards:
    """How an array's pixels lie in its files.

    Attributes
    ----------
    shape, chunk, shard : tuple of int
        Of the array, of a chunk and of a shard, a whole number of chunks [px].
    dtype : numpy.dtype
        As stored, little-endian.
    codec : numcodecs codec
    checked : bool
        Whether a CRC-32C follows each chunk.
    """

    shape: tuple
    chunk: tuple
    shard: tuple
    dtype: np.dtype
    codec: object
    checked: bool

    @classmethod
    def of(cls, array):
        """Layout of a zarr.Array; None where it is none that `plateloom.store.plate` writes."""
        if array.metadata.zarr_format != 3 or len(array.metadata.codecs) != 1:
            return None
        (sharding,) = array.metadata.codecs
        if not isinstance(sharding, ShardingCodec) or sharding.index_location.value != "end":
            return None
        order, *compressors = sharding.codecs
        if not isinstance(order, BytesCodec) or (order.endian and order.endian.value != "little"):
            return None
        match compressors:
            case [BloscCodec() as blosc, Crc32cCodec()] if blosc.shuffle.value == "shuffle":
                codec, checked = numcodecs.Blosc(blosc.cname.value, blosc.clevel, numcodecs.Blosc.SHUFFLE), True
            case [ZstdCodec() as zstd]:
                codec, checked = numcodecs.Zstd(level=zstd.level, checksum=zstd.checksum), False
            case _:
                return None
        return cls(array.shape, array.chunks, array.shards, array.dtype.newbyteorder("<"), codec, checked)

    @property
    def counts(self):
        """Chunks of a shard along each axis."""
        return tuple(whole // part for whole, part in zip(self.shard, self.chunk, strict=True))

    @staticmethod
    def key(name, place):
        """Name of a shard's file, by its place among the shards of an array."""
        return f"{name}/c/{'/'.join(map(str, place))}"

    def encode(self, block):
        """Bytes of a shard.

        Parameters
        ----------
        block : ndarray
            The shard's pixels; less where the array ends within it.

        Returns
        -------
        bytes
        """
        parts, index, end = [], np.full((*self.counts, 2), ABSENT, "<u8"), 0
        for position in np.ndindex(*self.counts):
            pixels = block[tuple(slice(i * n, (i + 1) * n) for i, n in zip(position, self.chunk, strict=True))]
            if not pixels.size:
                continue  # beyond the array's edge
            if pixels.shape != self.chunk:
                pixels = np.pad(pixels, [(0, n - m) for n, m in zip(self.chunk, pixels.shape, strict=True)])
            data = self.codec.encode(np.ascontiguousarray(pixels, self.dtype))
            data = [data, google_crc32c.value(data).to_bytes(4, "little")] if self.checked else [data]
            index[position] = end, sum(map(len, data))
            end += int(index[position][1])
            parts += data
        index = index.tobytes()
        return b"".join([*parts, index, google_crc32c.value(index).to_bytes(4, "little")])

    def read(self, store, name, region):
        """Read a region, decoding and checking only the chunks that it touches.

        Parameters
        ----------
        store : VouchedStore
        name : str
            The array's.
        region : sequence of slice
            From start to stop within the array, in steps of 1.

        Returns
        -------
        ndarray

        Raises
        ------
        CorruptStoreError
        """
        found = np.empty([part.stop - part.start for part in region], self.dtype)
        pixels = np.empty(self.chunk, self.dtype)
        if not found.size:
            return found
        for shard in itertools.product(*map(_touched, region, self.shard)):
            corner = [i * n for i, n in zip(shard, self.shard, strict=True)]
            inside = [
                slice(max(0, part.start - at), min(n, part.stop - at))
                for part, at, n in zip(region, corner, self.shard, strict=True)
            ]
            chunks = {
                int(np.ravel_multi_index(position, self.counts)): position
                for position in itertools.product(*map(_touched, inside, self.chunk))
            }
            for number, data in store.read_chunks(self.key(name, shard), sorted(chunks)):
                first = [at + i * n for at, i, n in zip(corner, chunks[number], self.chunk, strict=True)]
                shared = [
                    slice(max(at, part.start), min(at + n, part.stop))
                    for at, n, part in zip(first, self.chunk, region, strict=True)
                ]
                there = tuple(
                    slice(s.start - part.start, s.stop - part.start) for s, part in zip(shared, region, strict=True)
                )
                if data is None:
                    found[there] = 0
                    continue
                self.codec.decode(data[:-4] if self.checked else data, out=pixels)
                here = tuple(slice(s.start - at, s.stop - at) for s, at in zip(shared, first, strict=True))
                found[there] = pixels[here]
        return found


def _touched(part, size):
    """Numbers of the pieces of a size that a slice touches."""
    return range(part.start // size, math.ceil(part.stop / size))


def sharded(array):
    """The same array, read and written by `ShardedArray` where its files are such shards.

    Parameters
    ----------
    array : zarr.Array
        In a `VouchedStore`.
    """
    shards = Shards.of(array)
    return array if shards is None else ShardedArray(array, shards)


class ShardedArray:
    """An array of a plate: windows are read as from a zarr.Array, and written whole shards at a time.

    Parameters
    ----------
    array : zarr.Array
        In a `VouchedStore`.
    shards : Shards
    """

    def __init__(self, array, shards):
        self._shards, self._store, self._name = shards, array.store, array.path
        self.shape, self.dtype, self.chunks, self.shards = array.shape, array.dtype, array.chunks, array.shards
        self.compressors = array.compressors

    def __getitem__(self, key):
        key = key if isinstance(key, tuple) else (key,)
        if Ellipsis in key:
            at = key.index(Ellipsis)
            key = (*key[:at], *[slice(None)] * (len(self.shape) - len(key) + 1), *key[at + 1 :])
        key += (slice(None),) * (len(self.shape) - len(key))
        region, steps = [], []
        for axis, (part, size) in enumerate(zip(key, self.shape, strict=True)):
            if isinstance(part, slice):
                start, stop, step = part.indices(size)
                if step < 1:
                    raise IndexError(f"step {step} along axis {axis}; only forwards")
                region.append(slice(start, max(start, stop)))
                steps.append(slice(None, None, step))
            elif -size <= int(part) < size:
                region.append(slice(int(part) % size, int(part) % size + 1))
                steps.append(0)
            else:
                raise IndexError(f"index {part} is out of bounds for axis {axis} with size {size}")
        return self._shards.read(self._store, self._name, region)[tuple(steps)]

    def __setitem__(self, region, block):
        place = [part.start // n for part, n in zip(region, self.shards, strict=True)]
        ends = [min((i + 1) * n, size) for i, n, size in zip(place, self.shards, self.shape, strict=True)]
        if any(part != slice(i * n, end) for part, i, n, end in zip(region, place, self.shards, ends, strict=True)):
            raise IndexError(f"{region} is no whole shard of {self.shards}")
        self._store.write(self._shards.key(self._name, place), memoryview(self._shards.encode(block)))
