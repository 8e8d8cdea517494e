"""OME-Zarr HCS plates, NGFF 0.5 and 0.4: what is written, in which order, and read back.

A group's metadata is written last and atomically, so a group that has metadata is whole; it vouches for every byte below
it (see `plateloom.store.integrity`), so a read returns what was written or raises. Reading needs no word about the
format. Every shard has one writer: one call writes a field's image, shard by shard, each in one piece and only once.
"""

import colorsys
import contextlib
import functools
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numcodecs.blosc
import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype

from plateloom.errors import CorruptStoreError, PlateLayoutError
from plateloom.store.integrity import SEAL, VouchedStore, broken_seal, read_json_strictly, seal
from plateloom.store.provenance import FULL, room_left, write_bytes
from plateloom.store.shards import sharded
from plateloom.wells import parse_well, row_name

UNIT = "micrometer"
TO_MICROMETER = {"angstrom": 1e-4, "nanometer": 1e-3, UNIT: 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}
# NGFF wants a color for every label value, 45 bytes of JSON for each. Beyond so many viewers choose.
COLORED_LABELS = 65_535
LARGE_GROUP = 1 << 15  # bytes of metadata that are not parsed again for each window
OPENED_ARRAYS = 64  # kept open by a process
_OPENED = {}
SHARD_PX = 2048  # in NGFF 0.4, which has none: what is in memory at once of large labels
GROUP_KEYS = {"zarr_format", "node_type", "attributes", "consolidated_metadata"}
# What stands before and behind a group's attributes, as we write them.
IN_GROUP = b'{"attributes":', b',"node_type":"group","zarr_format":3}\n'

# Threads inside blosc leave the blocks of a chunk in the order in which they finish: other bytes for the same pixels.
numcodecs.blosc.use_threads = False


@dataclass(frozen=True)
class Format:
    """How images are stored.

    Attributes
    ----------
    ngff : str
        ``"0.5"`` (Zarr 3, sharded) or ``"0.4"`` (Zarr 2, one file per chunk: OMERO, QuPath, MoBIE).
    codec : str
        ``"blosc"`` (zstd after a byte shuffle), ``"zstd"`` (0.5 only) or ``"zlib"`` (0.4 only, for readers that lack
        blosc). In 0.5 each chunk has a checksum of its own.
    level : int
        Of the compression.
    chunk_px : int
        Side of a chunk, as nearly as the image is cut evenly [px].
    shard_px : int or None
        Side of a shard [px], rounded up to whole chunks, for large images: then a shard is one plane's square, and
        writing needs memory for some of them, however large the image is (2048 px of uint16: about 130 MB). None: all planes of a level are one shard. In 0.4, which has no
        shards, it is what is in memory at once.
    """

    ngff: str = "0.5"
    codec: str = "blosc"
    level: int = 2
    chunk_px: int = 512
    shard_px: int | None = None

    def __post_init__(self):
        known = {"0.5": ("blosc", "zstd"), "0.4": ("blosc", "zlib")}
        if self.codec not in known.get(self.ngff, ()):
            raise ValueError(f"NGFF {self.ngff!r} with codec {self.codec!r}; known: {known}")
        if self.chunk_px < 1 or (self.shard_px is not None and self.shard_px < 1):
            raise ValueError(f"chunk_px {self.chunk_px} and shard_px {self.shard_px} must be 1 or more")


def well_path(store, well):
    """Folder of a well's group: ``plate.zarr/A/01``."""
    row, column = parse_well(well)
    return Path(store) / row_name(row) / f"{column + 1:02d}"


def field_path(store, well, field):
    """Folder of a field's image group: ``plate.zarr/A/01/1``."""
    return well_path(store, well) / str(field)


def write_group(path, attributes, *, ngff=None, arrays=None):
    """Write a group's metadata with their seal, whole or not at all.

    Parameters
    ----------
    path : path
    attributes : dict
        NGFF's below `ome`, in both versions; what was read by `read_group` may be changed and written back.
    ngff : str, optional
        ``"0.4"`` or ``"0.5"``; as what lies there, else 0.5.
    arrays : dict, optional
        Manifest of arrays that were written into the group (`VouchedStore.finish`), for `open_array` to check; else
        that of the attributes is kept.
    """
    _write_sealed(path, attributes, ngff or group_version(path) or Format.ngff, arrays)


def read_group(path):
    """Attributes of a group, NGFF's below `ome` in both versions; None where the group is missing or not finished.

    Raises
    ------
    CorruptStoreError
        If the metadata are not those that were written. Groups that are not Plateloom's have nothing to check.
    """
    path = os.fspath(path)  # a plate's metadata are hundreds of files: no Path for each
    file = f"{path}/zarr.json"
    found, text = read_json_strictly(file)
    if found is not None:
        text = text.removeprefix(IN_GROUP[0]).removesuffix(IN_GROUP[1])
        attributes = found.get("attributes", {})
        if (found.get("zarr_format"), found.get("node_type")) != (3, "group") or not GROUP_KEYS.issuperset(found):
            raise CorruptStoreError(file, "is no group of Zarr 3")
    else:
        file = f"{path}/.zattrs"
        attributes, text = read_json_strictly(file)
        if attributes is None:
            return None
        if read_json_strictly(f"{path}/.zgroup")[0] != {"zarr_format": 2}:
            raise CorruptStoreError(f"{path}/.zgroup", "is no group of Zarr 2")
    if not isinstance(attributes, dict):
        raise CorruptStoreError(file, "has no attributes")
    if reason := broken_seal(attributes, path, text.removesuffix(b"\n")):
        raise CorruptStoreError(file, reason)
    if found is not None:
        return attributes
    ours = {key: attributes[key] for key in ("plateloom", SEAL) if key in attributes}
    return {"ome": {key: value for key, value in attributes.items() if key not in ours}} | ours


def finished_record(path):
    """The `plateloom` record of a group; None where the group is missing, not finished or damaged: to be made again."""
    try:
        return (read_group(path) or {}).get("plateloom")
    except CorruptStoreError:
        return None


def group_version(path):
    """NGFF version that a group's files belong to, ``"0.5"`` or ``"0.4"``; None where there is no group."""
    path = Path(path)
    if (path / "zarr.json").exists():
        return "0.5"
    return "0.4" if (path / ".zattrs").exists() or (path / ".zgroup").exists() else None


def count_files(shape, levels, *, labels=0, format=Format()):
    """Number of files of one field, its metadata included.

    Parameters
    ----------
    shape : tuple of int
        (C, Y, X) or (C, Z, Y, X).
    levels : int
    labels : int
        Number of label images, of the same shape without channels.
    format : Format

    Returns
    -------
    int
    """
    metadata = 1 if format.ngff == "0.5" else 2

    def of(shape):
        count = metadata
        for level in range(levels):
            size = [-(-n // 2**level) for n in shape[-2:]]
            chunk, shard = _chunk_and_shard(size, format)
            part = shard if format.ngff == "0.5" else chunk
            planes = 1 if format.ngff == "0.5" and format.shard_px is None else math.prod(shape[:-2])
            count += 1 + planes * math.prod(-(-n // p) for n, p in zip(size, part, strict=True))
        return count

    return of(tuple(shape)) + (metadata + labels * of(tuple(shape[1:])) if labels else 0)


def write_image(
    path,
    image,
    *,
    channels,
    pixel_size_um,
    levels,
    record,
    missing=(),
    axes="cyx",
    position_um=None,
    z_step_um=None,
    seconds=None,
    format=Format(),
):
    """Write one field, or one stitched well, with its pyramid.

    Parameters
    ----------
    path : path
        The field's group (see `field_path`); what lay there is replaced.
    image : array-like of uint8, uint16 or float32, shape (C, Y, X), or as `axes` says
        Anything with `shape`, `dtype` and slices: it is read shard by shard, never whole (see `Format`).
    channels : sequence of dict, length C
        `label`, `color` (``"RRGGBB"``) and `window` (start, end in counts) of each channel.
    pixel_size_um : float
        [µm/px].
    levels : int
        Number of pyramid levels; each halves Y and X.
    record : dict
        The `plateloom` record.
    missing : sequence of str
        Labels of channels whose planes were not there; their pixels are 0 and mean nothing.
    axes : str
        ``"cyx"``, ``"czyx"``, ``"tcyx"`` or ``"tczyx"``.
    position_um : tuple of float, optional
        Where the center of the first pixel lies on the plate or stage, y and x [µm].
    z_step_um : float, optional
        Distance of planes [µm].
    seconds : float, optional
        Time between frames [s].
    format : Format

    Raises
    ------
    ValueError
        If the image does not have the axes, or not as many channels.
    OSError
        If it cannot be written: nothing is left behind. A full disk or quota says what was needed.
    """
    path = Path(path)
    if axes not in ("cyx", "czyx", "tcyx", "tczyx") or len(axes) != len(image.shape):
        raise ValueError(f"an image of shape {tuple(image.shape)} has no axes {axes!r}")
    if len(channels) != image.shape[axes.index("c")]:
        raise ValueError(f"{len(channels)} channels for an image of shape {tuple(image.shape)}, axes {axes!r}")
    scale = {"y": pixel_size_um, "x": pixel_size_um, "z": z_step_um, "t": seconds}
    dtype = np.dtype(image.dtype)
    highest = int(np.iinfo(dtype).max) if dtype.kind == "u" else 1
    windows = [{"min": 0, "max": highest, "start": c["window"][0], "end": c["window"][1]} for c in channels]
    omero = {
        "channels": [
            {"label": channel["label"], "color": channel["color"], "active": True, "window": window}
            for channel, window in zip(channels, windows, strict=True)
        ],
        "rdefs": {"defaultT": 0, "defaultZ": image.shape[axes.index("z")] // 2 if "z" in axes else 0, "model": "color"},
    }
    remove_group(path)
    with _all_or_nothing(path, image, levels, format) as store:
        arrays = _write_levels(store, image, axes, levels, shrink_image, format)
        multiscale = _multiscale(path.name, axes, levels, scale, position_um, "2 x 2 mean", format.ngff)
        attributes = {
            "ome": {"version": format.ngff, "multiscales": [multiscale], "omero": omero},
            "plateloom": {**record, "missing": list(missing)},
        }
        _write_sealed(path, attributes, format.ngff, arrays=arrays)


def write_labels(path, labels, *, pixel_size_um, levels, record, axes=None, position_um=None, format=None):
    """Write label images of one field, beside those that are there already.

    Parameters
    ----------
    path : path
        The field's group.
    labels : dict of str to array-like of uint32, shape (Y, X), or as `axes` says
        Compartment to label image; 0 is background.
    pixel_size_um : float
        [µm/px].
    levels : int
        As many as the image has.
    record : dict
        The `plateloom` record.
    axes : str, optional
        ``"yx"`` (default), ``"zyx"``, ``"tyx"`` or ``"tzyx"``.
    position_um : tuple of float, optional
        As the image's, unless given: labels lie on the image's grid on every level.
    format : Format, optional
        NGFF version, codec and chunks as the image's, unless given, and its shards where a plane has several.

    Raises
    ------
    ValueError, OSError
        See `write_image`.
    """
    path = Path(path)
    image = _read_finished(path) if group_version(path) else None
    if format is None:
        alike = {} if image is None else _format_of(path, image)
        format = Format(ngff=group_version(path) or Format.ngff, **alike)
    scale = {"y": pixel_size_um, "x": pixel_size_um}
    if image is not None:
        of_image = _geometry(image)
        scale |= {"z": of_image["z_step_um"], "t": of_image["seconds"]}
        position_um = of_image["position_um"] if position_um is None else position_um
    folder = path / "labels"
    _remove_metadata(folder)
    for compartment, pixels in labels.items():
        names = axes or "yx"
        if names not in ("yx", "zyx", "tyx", "tzyx") or len(names) != len(pixels.shape):
            raise ValueError(f"labels of shape {tuple(pixels.shape)} have no axes {names!r}")
        remove_group(folder / compartment)
        with _all_or_nothing(folder / compartment, pixels, levels, format) as store:
            counted = _Highest(pixels)
            arrays = _write_levels(store, counted, names, levels, shrink_labels, format)
            described = {"version": format.ngff, "source": {"image": "../../"}}
            if 0 < counted.highest <= COLORED_LABELS:
                described["colors"] = _label_colors(counted.highest)
            multiscale = _multiscale(compartment, names, levels, scale, position_um, "every second pixel", format.ngff)
            attributes = {
                "ome": {"version": format.ngff, "multiscales": [multiscale], "image-label": described},
                "plateloom": record,
            }
            _write_sealed(folder / compartment, attributes, format.ngff, arrays=arrays)
    there = sorted(child.name for child in folder.iterdir() if group_version(child)) if folder.is_dir() else []
    _write_sealed(folder, {"ome": {"version": format.ngff, "labels": there}}, format.ngff)


def write_well(store, well, fields, record, *, acquisitions=None, ngff=None):
    """Write a well's list of fields, after all of its fields have been written.

    Parameters
    ----------
    store : path
    well : str
    fields : sequence of int
    record : dict
        The `plateloom` record; with it stand the fingerprints of the images, and reading refuses others in their places.
    acquisitions : dict of int to int, optional
        Acquisition of each field; 0 where none is given.
    ngff : str, optional
        As the fields', unless given.
    """
    path = well_path(store, well)
    ngff = ngff or next(filter(None, (group_version(path / str(field)) for field in fields)), Format.ngff)
    of = acquisitions or {}
    images = [{"path": str(field), "acquisition": of.get(field, 0)} for field in fields]
    made = {str(field): (finished_record(path / str(field)) or {}).get("fingerprint") for field in fields}
    record = record | {"images": {field: fingerprint for field, fingerprint in made.items() if fingerprint}}
    _write_sealed(path.parent, {}, ngff)
    attributes = {"ome": {"version": ngff, "well": {"version": ngff, "images": images}}, "plateloom": record}
    _write_sealed(path, attributes, ngff)


def write_plate(store, *, name, wells, shape, field_count, record, acquisitions=None, ngff=None):
    """Write the plate's list of wells; rows and columns are the physical plate's, also when it is sparse.

    Parameters
    ----------
    store : path
    name : str
    wells : sequence of str
        Wells that have images, as ``A01``.
    shape : tuple of int
        Rows and columns of the physical plate.
    field_count : int
        Highest number of fields in a well.
    record : dict
        The `plateloom` record.
    acquisitions : sequence of dict, optional
        `id`, and `name`, `maximumfieldcount`, `starttime` (whole seconds since 1970) where known; one by default.
    ngff : str, optional
        As the wells', unless given.
    """
    rows, columns = shape
    wells = sorted(wells, key=parse_well)
    ngff = ngff or next(filter(None, (group_version(well_path(store, well)) for well in wells)), Format.ngff)
    listed = []
    for well in wells:
        row, column = parse_well(well)
        listed.append({"path": f"{row_name(row)}/{column + 1:02d}", "rowIndex": row, "columnIndex": column})
    plate = {
        "version": ngff,
        "name": name,
        "rows": [{"name": row_name(row)} for row in range(rows)],
        "columns": [{"name": f"{column + 1:02d}"} for column in range(columns)],
        "wells": listed,
        "field_count": field_count,
        "acquisitions": [
            {"name": f"acquisition {known['id']}", "maximumfieldcount": field_count} | known
            for known in acquisitions or [{"id": 0}]
        ],
    }
    for name in {entry["path"].split("/")[0] for entry in listed}:
        _write_sealed(Path(store, name), {}, ngff)
    _write_sealed(store, {"ome": {"version": ngff, "plate": plate}, "plateloom": record}, ngff)


def remove_well(store, well):
    """Remove a well with its images and labels; its metadata first, so that a half-removed well is none."""
    remove_group(well_path(store, well))


def remove_group(path):
    """Remove a group with all below it, its metadata first."""
    path = Path(path)
    _remove_metadata(path)
    if path.exists():
        shutil.rmtree(path)


def read_image(path, *, channels=slice(None), window=(slice(None), slice(None)), level=0, t=slice(None), z=slice(None)):
    """Read pixels of a field, or a window of it, decoding and checking only the chunks needed.

    Parameters
    ----------
    path : path
        The field's group.
    channels : slice or sequence of int
    window : tuple of slice
        Rows and columns [px].
    level : int
    t, z : slice or int
        Frames and planes, where the image has them; an int takes the axis away. ``z="max"``: the brightest value below each pixel,
        one plane after the other.

    Returns
    -------
    ndarray, shape (C, Y, X), or T and Z before as the image has them

    Raises
    ------
    PlateLayoutError
        If there is no image, or not that level.
    CorruptStoreError
        If a file is missing or does not hold what was written.
    """
    attributes = _read_finished(path)
    chosen = {"t": t, "z": z, "y": window[0], "x": window[1]}
    array = _open(path, attributes, level)
    names = [axis["name"] for axis in attributes["ome"]["multiscales"][0]["axes"]]

    def read(channel):
        place = chosen | {"c": channel}
        if z != "max" or "z" not in names:
            return array[tuple(place[name] for name in names)]
        found = None
        for plane in range(array.shape[names.index("z")]):
            pixels = array[tuple((place | {"z": plane})[name] for name in names)]
            found = pixels if found is None else np.maximum(found, pixels, out=found)
        return found

    if not isinstance(channels, slice) and list(channels) == list(range(len(channels))):
        channels = slice(len(channels))
    if isinstance(channels, slice):
        return read(channels)
    # zarr takes a list of numbers ten times slower than one number after the other.
    axis = 1 if "t" in names and isinstance(t, slice) else 0
    return np.stack([read(int(channel)) for channel in channels], axis=axis) if len(channels) else read(slice(0, 0))


def read_labels(path, compartment, *, window=(slice(None), slice(None)), level=0, made=None):
    """Read a label image of a field, or a window of it.

    Parameters
    ----------
    path : path
        The field's group.
    compartment : str
    window : tuple of slice
        Rows and columns [px].
    level : int
    made : str, optional
        The fingerprint that the labels must have.

    Returns
    -------
    ndarray of uint32, shape (Y, X), or T and Z before as the labels have them

    Raises
    ------
    PlateLayoutError
        If no labels, or others, lie there.
    CorruptStoreError
        If a file is missing or does not hold what was written.
    """
    folder = Path(path) / "labels" / compartment
    attributes = _read_labels_group(folder)
    if made is not None:
        found = (attributes or {}).get("plateloom", {}).get("fingerprint")
        if found != made:
            raise PlateLayoutError(f"{str(path)!r} holds the labels {found}, expected {made}; segment the well again")
    if attributes is None or "multiscales" not in attributes.get("ome", {}):
        raise PlateLayoutError(f"no labels at {str(folder)!r}")
    return _open(folder, attributes, level)[(..., *window)]


def _read_labels_group(folder):
    """`read_group`; thousands of colors are parsed once, as long as the file is the same one (writers rename new ones into place)."""
    for name in ("zarr.json", ".zattrs"):
        try:
            status = os.stat(folder / name)
        except FileNotFoundError:
            continue
        if status.st_size >= LARGE_GROUP:
            return _read_large_group(folder, status.st_ino, status.st_size, status.st_mtime_ns)
        break
    return read_group(folder)


@functools.lru_cache(maxsize=4)
def _read_large_group(folder, *_version):
    return read_group(folder)


def project_labels(path, compartment, *, window=(slice(None), slice(None)), made=None):
    """Read a label image as it is seen from the first plane: where planes are kept, the first label below each pixel.

    Parameters and errors are those of `read_labels`.

    Returns
    -------
    ndarray of uint32, shape (Y, X)
    """
    return project_volume(read_labels(path, compartment, window=window, made=made))


def project_volume(labels):
    """The first label below each pixel of labels (Z, Y, X): array (Y, X); labels of a plane as they are.

    >>> project_volume(np.array([[[0, 2]], [[3, 3]]]))
    array([[3, 2]])
    """
    if labels.ndim == 2:
        return labels
    first = (labels != 0).argmax(axis=0)
    return np.take_along_axis(labels, first[None], axis=0)[0]


def image_shape(path, level=0):
    """Shape (C, Y, X) of a field's image, T and Z before as it has them, from its metadata."""
    return _shape(path, _read_finished(path), level)


def describe_image(path):
    """What a field's metadata say.

    Returns
    -------
    dict
        `channels` (labels in order), `colors`, `windows`, `missing` (channels without pixels), `pixel_size_um` [µm/px],
        `levels`, `shape` (C, Y, X, or as `axes` says), `axes`, `position_um` (y, x [µm]; None where unknown),
        `z_step_um` [µm] and `seconds` [s] (None where unknown).

    Raises
    ------
    PlateLayoutError
        If no image was finished there.
    CorruptStoreError
        If the metadata are not those that were written.
    """
    attributes = _read_finished(path)
    multiscale = attributes["ome"]["multiscales"][0]
    shape, axes = _shape(path, attributes, 0), "".join(axis["name"] for axis in multiscale["axes"])
    channels = attributes["ome"].get("omero", {}).get("channels", [])
    if not channels:  # NGFF does not demand them
        count = shape[axes.index("c")] if "c" in axes else 1
        channels = [{"label": str(i), "color": "FFFFFF", "window": {"start": 0, "end": 1}} for i in range(count)]
    return {
        "channels": [str(channel.get("label", i)) for i, channel in enumerate(channels)],
        "colors": [channel["color"] for channel in channels],
        "windows": [(channel["window"]["start"], channel["window"]["end"]) for channel in channels],
        "missing": attributes.get("plateloom", {}).get("missing", []),
        "levels": len(multiscale["datasets"]),
        "shape": shape,
        "axes": axes,
        **_geometry(attributes),
    }


def list_fields(store):
    """List a plate's wells and their fields, from the metadata of the plate and its wells.

    Returns
    -------
    dict of str to list of int
        Well (``A01``) to its fields, both in the order of the metadata; a field whose name is no number stays text.

    Raises
    ------
    PlateLayoutError
        If there is no plate.
    CorruptStoreError
        If a listed well is missing, or metadata are not those that were written.
    """
    attributes = read_group(store)
    if attributes is None or "plate" not in attributes.get("ome", {}):
        raise PlateLayoutError(f"no plate at {str(store)!r}")
    found = {}
    for entry in attributes["ome"]["plate"]["wells"]:
        well = read_group(f"{store}/{entry['path']}")
        if well is None or "well" not in well.get("ome", {}):
            raise CorruptStoreError(f"{store}/{entry['path']}", "is listed as a well, and is missing")
        names = [image["path"] for image in well["ome"]["well"]["images"]]
        found[entry["path"].replace("/", "")] = [int(name) if name.isdigit() else name for name in names]
    return found


def list_labels(path):
    """Names of a field's label images; empty where there are none."""
    return (read_group(Path(path) / "labels") or {}).get("ome", {}).get("labels", [])


def shrink_image(image):
    """Halve Y and X by the mean of 2 × 2 pixels, rounded; an odd edge is repeated.

    >>> shrink_image(np.array([[[0, 2], [4, 6]]], dtype=np.uint8))
    array([[[3]]], dtype=uint8)
    """
    if image.shape[-2] % 2 or image.shape[-1] % 2:
        pad = [(0, 0)] * (image.ndim - 2) + [(0, image.shape[-2] % 2), (0, image.shape[-1] % 2)]
        image = np.pad(image, pad, mode="edge")
    small = np.empty((*image.shape[:-2], image.shape[-2] // 2, image.shape[-1] // 2), image.dtype)
    wide = np.float32 if image.dtype.kind == "f" else np.uint32
    # Plane by plane, and rows first: what is added lies side by side, in the processor's cache.
    for plane in np.ndindex(image.shape[:-2]):
        rows = np.add(image[plane][::2], image[plane][1::2], dtype=wide)
        total = rows[:, ::2] + rows[:, 1::2]
        if image.dtype.kind == "f":
            total /= 4
        else:
            total += 2
            total >>= 2
        small[plane] = total
    return small


def shrink_labels(labels):
    """Halve Y and X by taking every second pixel: a label image has no means."""
    return labels[..., ::2, ::2]


def open_array(path, attributes, name):
    """Open an array of an image group, through the group's manifest where it has one.

    Parameters
    ----------
    path : path
        The group.
    attributes : dict
        Of the group, from `read_group`.
    name : str

    Raises
    ------
    PlateLayoutError
        If the array is missing, in a plate that is not Plateloom's.
    CorruptStoreError
        See `read_image`.
    """
    path = Path(path)
    if SEAL in attributes:
        # Opening costs as much as reading a tile; the seal's digest names the array's metadata and every chunk.
        key = (str(path), name, attributes[SEAL].get("digest"))
        if key not in _OPENED:
            while len(_OPENED) >= OPENED_ARRAYS:
                _OPENED.pop(next(iter(_OPENED)), None)
            _OPENED[key] = _open_vouched(path, attributes, name)
        return _OPENED[key]
    try:
        return zarr.open_array(zarr.storage.LocalStore(path, read_only=True), path=name, mode="r")
    except FileNotFoundError:
        raise PlateLayoutError(f"no array {name!r} in {str(path)!r}") from None


def forget_opened():
    """Close the arrays that this process keeps open, so that what lies on disk is looked at anew."""
    _OPENED.clear()
    _read_large_group.cache_clear()


def _open_vouched(path, attributes, name):
    """Open an array through its group's manifest."""
    store = VouchedStore(path, attributes[SEAL].get("arrays", {}))
    if store.metadata(name) is None:
        raise PlateLayoutError(f"no array {name!r} in {str(path)!r}")
    version = 3 if group_version(path) == "0.5" else 2
    return sharded(zarr.open_array(store, path=name, mode="r", zarr_format=version))


def _write_sealed(path, attributes, ngff, arrays=None):
    """Write a group's metadata in one version, and remove another's.

    Every group has a record, if an empty one: with it, a damaged seal is noticed (see `broken_seal`).
    """
    path, attributes = Path(path), {"plateloom": {}} | attributes
    if ngff == "0.5":
        for name in (".zattrs", ".zgroup"):
            (path / name).unlink(missing_ok=True)
        sealed = seal(attributes, path, arrays)
        files = {"zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": sealed}}
    else:
        (path / "zarr.json").unlink(missing_ok=True)
        flat = {key: value for key, value in attributes.get("ome", {}).items() if key != "version"}
        flat |= {key: value for key, value in attributes.items() if key != "ome"}
        files = {".zgroup": {"zarr_format": 2}, ".zattrs": seal(flat, path, arrays)}
    for name, content in files.items():
        write_bytes(path / name, (json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n").encode())


def _remove_metadata(path):
    for name in ("zarr.json", ".zattrs", ".zgroup"):
        (path / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _all_or_nothing(path, image, levels, format):
    """A store to write a group's arrays into; what cannot be written whole is removed.

    A full disk or quota says what was needed.
    """
    store = VouchedStore(path)
    try:
        yield store
    except BaseException as error:
        full = isinstance(error, OSError) and error.errno in FULL
        left = room_left(path) if full else ""
        store.close()
        shutil.rmtree(path, ignore_errors=True)
        if full:
            size = math.prod(image.shape) * np.dtype(image.dtype).itemsize * 4 / 3e6
            count = count_files(image.shape, levels, format=format)
            needed = f"up to {size:.1f} MB in {count} files were needed, {left}"
            fewer = "" if format.ngff == "0.5" else "conversion.ngff 0.5, a larger chunk_px or "
            fewer += "a smaller conversion.levels makes fewer files"
            raise OSError(error.errno, f"{os.strerror(error.errno)}: {needed}; {fewer}", str(path)) from error
        raise


def _chunk_and_shard(size, format):
    """Sides of a chunk and of what is written at once [px], for a plane of this height and width."""
    # As many chunks as come near the side asked for, of equal size: padding costs as much time as pixels.
    chunk = [-(-n // max(1, round(n / format.chunk_px))) for n in size]
    whole = [-(-n // part) * part for n, part in zip(size, chunk, strict=True)]
    if format.shard_px is None:
        return chunk, whole
    return chunk, [min(-(-format.shard_px // part) * part, n) for part, n in zip(chunk, whole, strict=True)]


def _write_levels(store, image, axes, levels, shrink, format):
    """Write the arrays of a pyramid; returns their manifest."""
    source, dtype = image, np.dtype(image.dtype).newbyteorder("=")
    for level in range(levels):
        leading = tuple(image.shape[:-2])
        size = [-(-n // 2**level) for n in image.shape[-2:]]
        chunk, shard = _chunk_and_shard(size, format)
        ones = (1,) * len(leading)
        piece = (leading if format.shard_px is None else ones) + tuple(shard)
        layout, files = _layout(leading + tuple(size), dtype, ones + tuple(chunk), piece, format, axes)
        for name, data in files.items():
            store.hold(f"{level}/{name}", data)
        path = zarr.storage.StorePath(store, str(level))
        array = sharded(zarr.Array(zarr.AsyncArray(layout.metadata, path, layout.config)))
        source = _fill(array, source, piece, shrink if level else None)
    return store.finish()


def _format_of(path, attributes):
    """How an image is stored, as `Format` has it; another program's codec is taken for the default."""
    array = _open(path, attributes, 0)
    shard = SHARD_PX if array.shards is None else max(array.shards[-2:])
    found = {"chunk_px": max(array.chunks[-2:]), "shard_px": shard if shard < max(array.shape[-2:]) else None}
    codec = array.compressors[0] if array.compressors else None
    if isinstance(codec, (BloscCodec, numcodecs.Blosc)) and getattr(codec.cname, "value", codec.cname) == "zstd":
        return found | {"codec": "blosc", "level": codec.clevel}
    for name, kinds in (("zstd", ZstdCodec), ("zlib", numcodecs.Zlib)):
        if isinstance(codec, kinds):
            return found | {"codec": name, "level": codec.level}
    return found


@functools.lru_cache(maxsize=64)
def _layout(shape, dtype, chunks, piece, format, axes):
    """An array that is stored like this, and its metadata's files. To make one takes zarr as long as to compress a small plane."""
    array = zarr.create_array(
        zarr.storage.MemoryStore(),
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        fill_value=0,
        config={"write_empty_chunks": True},
        **_encoding(format, axes, piece),
    )
    files = array.metadata.to_buffer_dict(default_buffer_prototype())
    return array, {name: data.to_bytes() for name, data in files.items()}


def _encoding(format, axes, shard):
    """How an array is stored, as `zarr.create_array` wants it."""
    if format.ngff == "0.4":
        codec = numcodecs.Blosc("zstd", format.level, numcodecs.Blosc.SHUFFLE)
        return {
            "zarr_format": 2,
            "compressors": codec if format.codec == "blosc" else numcodecs.Zlib(format.level),
            "chunk_key_encoding": {"name": "v2", "separator": "/"},
        }
    codecs = [ZstdCodec(level=format.level, checksum=True)]
    if format.codec == "blosc":
        codecs = [BloscCodec(cname="zstd", clevel=format.level, shuffle="shuffle"), Crc32cCodec()]
    return {"zarr_format": 3, "compressors": codecs, "shards": shard, "dimension_names": list(axes)}


def _fill(array, source, piece, shrink):
    """Write an array piece by piece; returns what the next level is made from.

    A piece is a shard, or a whole number of chunks where there are none, so no file is touched twice. The next level is made
    from the pixels in memory where the array is one piece, else from regions that are read back.
    """
    parts = [
        [slice(start, min(start + n, size)) for start in range(0, size, n)]
        for size, n in zip(array.shape, piece, strict=True)
    ]
    count = math.prod(len(part) for part in parts)
    for number in range(count):
        position = np.unravel_index(number, [len(part) for part in parts])
        region = tuple(part[i] for part, i in zip(parts, position, strict=True))
        block = np.asarray(source[region]) if shrink is None else _shrunk(source, region, shrink, array.dtype)
        array[region] = block
    return block if count == 1 else array


def _shrunk(source, region, shrink, dtype):
    """A region of a level, from twice that region of the level before, a quarter at a time."""
    *leading, rows, columns = region
    if isinstance(source, np.ndarray):
        return shrink(source[(*leading, *(slice(2 * part.start, 2 * part.stop) for part in (rows, columns)))])
    block = np.empty([part.stop - part.start for part in region], dtype)
    halves = [
        [slice(start, min(start + step, part.stop)) for start in range(part.start, part.stop, step)]
        for part in (rows, columns)
        for step in [max(1, -(-(part.stop - part.start) // 2))]
    ]
    for y in halves[0]:
        for x in halves[1]:
            wide = tuple(slice(2 * part.start, 2 * part.stop) for part in (y, x))
            here = tuple(
                slice(p.start - w.start, p.stop - w.start) for p, w in zip((y, x), (rows, columns), strict=True)
            )
            block[(..., *here)] = shrink(np.asarray(source[(*leading, *wide)]))
    return block


class _Highest:
    """Labels that remember the highest value that was read from them."""

    def __init__(self, labels):
        self.labels, self.shape, self.dtype, self.highest = labels, labels.shape, labels.dtype, 0

    def __getitem__(self, region):
        pixels = np.asarray(self.labels[region])
        self.highest = max(self.highest, int(pixels.max(initial=0)))
        return pixels


def _label_colors(count):
    """NGFF's colors of the labels 1 … count: hues far apart for neighboring numbers."""
    golden = (5**0.5 - 1) / 2
    colors = [colorsys.hsv_to_rgb(label * golden % 1, 0.75, 1.0) for label in range(1, count + 1)]
    return [
        {"label-value": label, "rgba": [*(round(255 * part) for part in color), 255]}
        for label, color in enumerate(colors, 1)
    ]


def _multiscale(name, axes, levels, scale, position_um, method, ngff):
    """NGFF's description of a pyramid.

    The first pixel of level k covers the first 2^k × 2^k pixels, so its center lies (2^k - 1) / 2 pixels further in.
    """
    datasets = []
    for level in range(levels):
        factor = {"y": 2**level, "x": 2**level}
        steps = [float(scale.get(axis) or 1.0) * factor.get(axis, 1) for axis in axes]
        transformations = [{"type": "scale", "scale": steps}]
        if position_um is not None:
            shift = {
                axis: float(position + (2**level - 1) / 2 * scale[axis])
                for axis, position in zip("yx", position_um, strict=True)
            }
            transformations.append({"type": "translation", "translation": [shift.get(axis, 0.0) for axis in axes]})
        datasets.append({"path": str(level), "coordinateTransformations": transformations})
    described = {
        "name": name,
        "type": method,
        "metadata": {"method": "plateloom"},
        "axes": [_axis(axis, known=bool(scale.get(axis))) for axis in axes],
        "datasets": datasets,
    }
    return described | ({"version": ngff} if ngff == "0.4" else {})


def _axis(name, *, known):
    """NGFF's description of an axis; a unit where the scale is known."""
    kind = {"t": "time", "c": "channel"}.get(name, "space")
    unit = {"time": "second", "space": UNIT}.get(kind)
    return {"name": name, "type": kind} | ({"unit": unit} if unit and known else {})


def _geometry(attributes):
    """Pixel size, position, plane distance and frame time of a pyramid's first level."""
    multiscale = attributes["ome"]["multiscales"][0]
    names = [axis["name"] for axis in multiscale["axes"]]
    to_um = [TO_MICROMETER.get(axis.get("unit"), 1.0) for axis in multiscale["axes"]]
    scale, shift = np.ones(len(names)), None
    both = multiscale["datasets"][0]["coordinateTransformations"], multiscale.get("coordinateTransformations", [])
    for transformation in (one for several in both for one in several):
        if transformation["type"] == "scale":
            scale = scale * transformation["scale"]
            shift = None if shift is None else shift * transformation["scale"]
        elif transformation["type"] == "translation":
            shift = (0 if shift is None else shift) + np.asarray(transformation["translation"], float)
    value = {name: float(n) for name, n in zip(names, scale * to_um, strict=True)}
    known = {axis["name"] for axis in multiscale["axes"] if "unit" in axis}
    position = dict(zip(names, shift * to_um, strict=True)) if shift is not None else None
    return {
        "pixel_size_um": value["x"],
        "position_um": None if position is None else (float(position["y"]), float(position["x"])),
        "z_step_um": value["z"] if "z" in known else None,
        "seconds": value["t"] if "t" in known else None,
    }


def _read_finished(path):
    """Attributes of an image group that is there."""
    attributes = read_group(path)
    if attributes is None or "multiscales" not in attributes.get("ome", {}):
        raise PlateLayoutError(f"no image at {str(path)!r}")
    if reason := foreign_image(path, attributes):
        raise CorruptStoreError(str(path), reason)
    return attributes


def foreign_image(path, attributes):
    """Say what is wrong with an image that lies where its well was finished with another one; None where it is that one."""
    found = attributes.get("plateloom", {}).get("fingerprint")
    well = finished_record(Path(path).parent) if found else None
    expected = ((well or {}).get("images") or {}).get(Path(path).name, found)
    return None if found == expected else "is not the image that its well was finished with"


def _level_name(path, attributes, level):
    datasets = attributes["ome"]["multiscales"][0]["datasets"]
    if not 0 <= level < len(datasets):
        raise PlateLayoutError(f"{str(path)!r} has {len(datasets)} levels, none {level}")
    return datasets[level]["path"]


def _open(path, attributes, level):
    return open_array(path, attributes, _level_name(path, attributes, level))


def image_type(path):
    """Type of a field's pixels: numpy.dtype."""
    attributes = _read_finished(path)
    return np.dtype(open_array(path, attributes, _level_name(path, attributes, 0)).dtype)


def _shape(path, attributes, level):
    """Shape of a level, without opening the array where the manifest vouches for its metadata."""
    name = _level_name(path, attributes, level)
    if SEAL in attributes:
        store = VouchedStore(path, attributes[SEAL].get("arrays", {}))
        if store.metadata(name) is not None:
            return store.layout(name).shape
    return open_array(path, attributes, name).shape
