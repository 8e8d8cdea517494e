"""What a plate vouches for: digests of its metadata, a checksum of every stored chunk, and a store that checks them.

A group's metadata carry a seal, the attribute `plateloom_integrity`: a digest of all attributes, the place in the plate
where the group was written, and for an image a manifest of its arrays: digest of each array's metadata, size of each
file, CRC-32C of each stored chunk. A reader opens arrays through `VouchedStore`, which checks exactly what it reads.
"""

import asyncio
import base64
import json
import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import google_crc32c  # zarr needs it too
import numpy as np
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype

from plateloom.errors import CorruptStoreError
from plateloom.store.provenance import digest, digest_of_text, file_digest, write_bytes

SEAL = "plateloom_integrity"
ARRAY_METADATA = {2: ".zarray", 3: "zarr.json"}
# What stands in a shard's index where a chunk was never stored (Zarr 3, sharding codec).
ABSENT = 2**64 - 1


def seal(attributes, path, arrays=None):
    """Add the seal to a group's attributes.

    Parameters
    ----------
    attributes : dict
        As they will be stored; an old seal's manifest is kept, its digest made anew.
    path : path
        The group's folder.
    arrays : dict, optional
        Manifest of the arrays below the group (see `VouchedStore.finish`).

    Returns
    -------
    dict
    """
    kept = attributes.get(SEAL, {}).get("arrays", {}) if arrays is None else arrays
    described = {"at": place_in_plate(path), **({"arrays": kept} if kept else {})}
    return attributes | {SEAL: described | {"digest": digest(attributes | {SEAL: described})}}


def broken_seal(attributes, path, text=b""):
    """Say what is wrong with a group's seal; None where it holds, or where the group is not Plateloom's.

    One damaged key cannot make a group look foreign: its record or its seal is still there. `text` is the JSON that
    `attributes` were read from: as we write it, it is what the digest was made of, but for the digest.
    """
    if SEAL not in attributes:
        return "has lost its digest" if "plateloom" in attributes else None
    found = attributes[SEAL]
    if not isinstance(found, dict):
        return "does not match its digest"
    made = found.get("digest")
    own = b',"digest":"%s"' % str(made).encode(errors="replace")
    if digest_of_text(text.replace(own, b"", 1)) != made:
        described = {key: value for key, value in found.items() if key != "digest"}
        try:
            if digest(attributes | {SEAL: described}) != made:
                return "does not match its digest"
        except ValueError:  # a damaged number can read as infinite
            return "does not match its digest"
    here, written = place_in_plate(path), found.get("at")
    if None not in (here, written) and here != written:
        return f"was written for {written!r}"
    return None


def place_in_plate(path):
    """Where a group lies within its plate, the last folder named ``*.zarr``: ``A/01/1``; None outside of one."""
    _, plate, place = (os.path.abspath(path) + "/").rpartition(".zarr/")
    return place[:-1] if plate else None


@dataclass
class ArrayFiles:
    """An array's files and chunks, known from its metadata.

    Attributes
    ----------
    shape : tuple of int
    grid : tuple of int
        Number of files along each axis.
    inner : tuple of int
        Chunks of a shard along each axis; empty where a file is one chunk.
    prefix : str
        Folder of the files within the array: ``c/`` or nothing.
    """

    shape: tuple
    grid: tuple
    inner: tuple
    prefix: str

    @classmethod
    def from_metadata(cls, data):
        """Read the layout from the bytes of a `zarr.json` or a `.zarray`."""
        metadata = json.loads(data)
        shape = tuple(metadata["shape"])
        if metadata["zarr_format"] == 2:
            file, inner, prefix = metadata["chunks"], (), ""
        else:
            file, prefix = metadata["chunk_grid"]["configuration"]["chunk_shape"], "c/"
            codec = metadata["codecs"][0]
            sharded = codec["name"] == "sharding_indexed"
            inner = codec["configuration"]["chunk_shape"] if sharded else ()
            inner = tuple(size // part for size, part in zip(file, inner, strict=True)) if inner else ()
        return cls(shape, tuple(-(-size // part) for size, part in zip(shape, file, strict=True)), inner, prefix)

    @property
    def index_bytes(self):
        """Size of a shard's index: offset and length of each chunk, and their CRC-32C [bytes]."""
        return 16 * math.prod(self.inner) + 4 if self.inner else 0

    def keys(self):
        """Names of the files within the array, in the order of the manifest."""
        return [self.prefix + "/".join(map(str, position)) for position in np.ndindex(*self.grid)]

    def key(self, number):
        """Name of one file, by its position in the manifest."""
        return self.prefix + "/".join(map(str, np.unravel_index(number, self.grid)))

    def number(self, key):
        """Position of a file in the manifest; None for what is no chunk file of the array."""
        parts = key.removeprefix(self.prefix).split("/")
        if not key.startswith(self.prefix) or len(parts) != len(self.grid):
            return None
        number = 0
        for part, count in zip(parts, self.grid, strict=True):
            if not part.isdecimal() or int(part) >= count:
                return None
            number = number * count + int(part)
        return number


class VouchedStore(Store):
    """An image group's folder as a zarr store that writes each file once, durably, and checks whatever it reads.

    Metadata of arrays are held back and written by `finish`, after all pixels. A second write of a file is refused:
    a shard has one writer.

    Parameters
    ----------
    root : path
        The group's folder.
    arrays : dict, optional
        The manifest to read by. Without one the store is for writing; what it has written can be read back.
    """

    supports_writes = True
    supports_deletes = False
    supports_listing = False

    def __init__(self, root, arrays=None):
        super().__init__(read_only=arrays is not None)
        self.root = Path(root)
        self._held, self._metadata, self._files, self._offsets = {}, {}, {}, {}
        self._sizes, self._checksums = {}, {}
        self._arrays = {} if arrays is None else arrays
        self._is_open, self._closed = True, False
        self._writing, self._changed = 0, threading.Condition()

    def __eq__(self, other):
        return self is other

    def metadata(self, name):
        """Bytes of an array's metadata, checked; None where no such array is vouched for."""
        if name in self._metadata or name not in self._arrays:
            return self._metadata.get(name)
        entry = self._arrays[name]
        path = self.root / name / ARRAY_METADATA[entry["zarr_format"]]
        data = _read_file(path)
        if file_digest(data) != entry["metadata"]:
            raise CorruptStoreError(path, "does not match the digest in its image's metadata")
        files = ArrayFiles.from_metadata(data)
        checksums = np.frombuffer(base64.b64decode(entry["crc32c"]), "<u4")
        self._checksums[name] = checksums.reshape(len(entry["sizes"]), -1)
        self._sizes[name], self._files[name] = entry["sizes"], files
        self._metadata[name] = data
        return data

    def layout(self, name):
        """`ArrayFiles` of an array that is vouched for."""
        self.metadata(name)
        return self._files[name]

    def finish(self):
        """Write the metadata held back, and return the manifest.

        Returns
        -------
        dict of str to dict
            Per array `zarr_format`, `metadata` (digest of the file), `sizes` of its files [bytes], and `crc32c`: base64
            of uint32, for every file the checksum of its shard index, then those of its chunks (of a file that is no
            shard: its own). A chunk beyond the array's edge has 0.
        """
        manifest = {}
        for key, data in self._held.items():
            name = key.rpartition("/")[0]
            sizes = self._sizes[name]
            if None in sizes:
                raise RuntimeError(f"{name!r} in {str(self.root)!r} was not written whole")
            write_bytes(self.root / key, data)
            manifest[name] = {
                "zarr_format": json.loads(data)["zarr_format"],
                "metadata": file_digest(data),
                "sizes": sizes,
                "crc32c": base64.b64encode(self._checksums[name].astype("<u4").tobytes()).decode(),
            }
        return manifest

    def check_file(self, name, number, *, deep):
        """Check one file of an array: there, its size and its index; `deep`: every chunk.

        Raises
        ------
        CorruptStoreError
        """
        self.metadata(name)
        key = f"{name}/{self._files[name].key(number)}"
        path = self.root / key
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise CorruptStoreError(path, "is missing") from None
        if size != self._sizes[name][number]:
            raise CorruptStoreError(path, f"has {size} bytes, was written with {self._sizes[name][number]}")
        if deep:
            self._read(key, None)
        elif self._files[name].inner:
            self._offsets.pop(key, None)
            list(self.read_chunks(key, ()))

    def close(self):
        """Refuse further writes, and wait for those under way: zarr abandons them when one of several fails."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._writing)
        super().close()

    def read_chunks(self, key, chunks):
        """Some chunks of a shard, checked, as they are stored.

        Parameters
        ----------
        key : str
        chunks : sequence of int
            Their numbers in the shard, in C order.

        Yields
        ------
        int
            The chunk's number.
        bytes or None
            None where it was never stored.

        Raises
        ------
        CorruptStoreError
        """
        name, number = self._locate(key)
        path, size = f"{self.root}/{key}", self._files[name].index_bytes
        try:
            with open(path, "rb") as file:
                if key not in self._offsets:
                    file.seek(max(-size, -os.fstat(file.fileno()).st_size), os.SEEK_END)
                    self._offsets[key] = self._check_index(path, name, number, file.read())
                for chunk in chunks:
                    start, length = self._offsets[key][chunk]
                    if start == ABSENT:
                        yield chunk, None
                        continue
                    file.seek(start)
                    data = file.read(length)
                    self._check_chunk(path, name, number, chunk, data)
                    yield chunk, data
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise CorruptStoreError(path, "is missing") from None

    def _locate(self, key):
        """Array, file number within it, of a key; number None for its metadata, both None for what nothing vouches for."""
        name, _, rest = key.partition("/")
        if rest in ARRAY_METADATA.values():
            return name, None
        if self.metadata(name) is None:
            return None, None
        number = self._files[name].number(rest)
        return (None, None) if number is None else (name, number)

    def _read(self, key, byte_range):
        name, number = self._locate(key)
        if name is None:
            return None
        if number is None:
            data = self.metadata(name)
            return data if data is None or key.endswith(ARRAY_METADATA[json.loads(data)["zarr_format"]]) else None
        if self._sizes[name][number] is None:
            return None  # being written, and this file has not been yet
        path, files = f"{self.root}/{key}", self._files[name]
        data = _read_file(path)
        if files.inner:
            view = memoryview(data)
            offsets = self._check_index(path, name, number, view[-files.index_bytes :])
            for chunk, (start, length) in enumerate(offsets):
                if start != ABSENT:
                    self._check_chunk(path, name, number, chunk, view[start : start + length])
        else:
            self._check_chunk(path, name, number, None, data)
        return data if byte_range is None else _cut(data, byte_range)

    def _check_index(self, path, name, number, data):
        """Offset and length of each chunk of a shard, after their checksum."""
        if _checksum(data) != self._checksums[name][number, 0]:
            raise CorruptStoreError(path, "has a damaged index, or is another file")
        return np.frombuffer(data[:-4], "<u8").reshape(-1, 2).tolist()

    def _check_chunk(self, path, name, number, chunk, data):
        if _checksum(data) == self._checksums[name][number, 0 if chunk is None else chunk + 1]:
            return
        if chunk is None:
            raise CorruptStoreError(path, "is not the chunk that was written")
        files = self._files[name]
        first = np.multiply(np.unravel_index(number, files.grid), files.inner)
        position = ", ".join(str(int(i)) for i in first + np.unravel_index(chunk, files.inner))
        raise CorruptStoreError(path, f"is damaged in chunk ({position})")

    def hold(self, key, data):
        """Take an array's metadata, bytes, for `finish` to write."""
        name, _, rest = key.partition("/")
        if rest not in ARRAY_METADATA.values():
            return  # the group's own metadata, which its writer adds last, and an array's attributes, which are none
        files = ArrayFiles.from_metadata(data)
        self._held[key] = self._metadata[name] = data
        self._files[name] = files
        self._sizes[name] = [None] * math.prod(files.grid)
        self._checksums[name] = np.zeros((math.prod(files.grid), 1 + math.prod(files.inner or (0,))), np.uint32)

    def write(self, key, data):
        """Take a file's bytes, a memoryview, and write it; an array's metadata are only held."""
        name, _, rest = key.partition("/")
        if rest in ("", ".zattrs", *ARRAY_METADATA.values()):
            return self.hold(key, bytes(data))
        number = self._files[name].number(rest)
        if self._sizes[name][number] is not None:
            raise RuntimeError(f"{str(self.root / key)!r} would be written twice")
        with self._changed:
            if self._closed:
                raise RuntimeError(f"{str(self.root)!r} takes no more files")
            self._writing += 1
        try:
            write_bytes(self.root / key, data)
        finally:
            with self._changed:
                self._writing -= 1
                self._changed.notify_all()
        self._sizes[name][number] = data.nbytes
        self._checksums[name][number] = self._sum_up(name, data)

    def _sum_up(self, name, data):
        """Checksums of a file, in the order of the manifest."""
        files = self._files[name]
        if not files.inner:
            return [_checksum(data)]
        index = data[-files.index_bytes :]
        offsets = np.frombuffer(index[:-4], "<u8").reshape(-1, 2).tolist()
        chunks = [0 if start == ABSENT else _checksum(data[start : start + length]) for start, length in offsets]
        return [_checksum(index), *chunks]

    async def get(self, key, prototype=None, byte_range=None):
        data = await asyncio.to_thread(self._read, key, byte_range)
        return None if data is None else (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get_partial_values(self, prototype, key_ranges):
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key):
        return await asyncio.to_thread(self._read, key, None) is not None

    async def set(self, key, value):
        self._check_writable()
        await asyncio.to_thread(self.write, key, memoryview(np.asarray(value.as_buffer_like())).cast("B"))

    async def delete(self, key):
        raise NotImplementedError("an image is replaced as a whole")

    async def list(self):
        for name in self._arrays or self._files:
            yield f"{name}/{ARRAY_METADATA[json.loads(self.metadata(name))['zarr_format']]}"

    async def list_prefix(self, prefix):
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix):
        async for key in self.list_prefix(prefix):
            yield key.removeprefix(prefix).lstrip("/").partition("/")[0]


def read_json_strictly(path):
    """Read a JSON object, and the bytes that it stands in; (None, b"") where there is no such file.

    Raises
    ------
    CorruptStoreError
        If it cannot be decoded: Plateloom's metadata are renamed into place whole.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None, b""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise CorruptStoreError(path, "is no JSON") from None
    if not isinstance(found, dict):
        raise CorruptStoreError(path, "is no JSON object")
    return found, data


def _read_file(path):
    """Bytes of a file."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise CorruptStoreError(path, "is missing") from None


def _checksum(data):
    """CRC-32C of a chunk's bytes, the last four first.

    What ends with its own CRC-32C, as chunks and indexes of Zarr 3 do, has one and the same CRC-32C whatever it holds: in its
    own order, no chunk could be told from another. (zlib's CRC-32 has no such flaw, and takes four times as long.)
    """
    found = np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
    return google_crc32c.extend(google_crc32c.value(found[-4:]), found[:-4])


def _cut(data, byte_range):
    """The part of a file that a byte range names."""
    if isinstance(byte_range, RangeByteRequest):
        return data[byte_range.start : byte_range.end]
    if isinstance(byte_range, OffsetByteRequest):
        return data[byte_range.offset :]
    return data[max(0, len(data) - byte_range.suffix) :]
