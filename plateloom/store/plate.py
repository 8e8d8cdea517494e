"""OME-Zarr 0.5 HCS plates: what is written, in which order, and read back. One shard per field and level, inner checksums.

A group's metadata is written last and atomically, so a group that has metadata is whole.
"""

import shutil
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from plateloom.errors import PlateLayoutError
from plateloom.store.provenance import read_json, write_json
from plateloom.wells import parse_well, row_name

NGFF = "0.5"
CHUNK = 512
UNIT = "micrometer"


def well_path(store, well):
    """Folder of a well's group: ``plate.zarr/A/01``."""
    row, column = parse_well(well)
    return Path(store) / row_name(row) / f"{column + 1:02d}"


def field_path(store, well, field):
    """Folder of a field's image group: ``plate.zarr/A/01/1``."""
    return well_path(store, well) / str(field)


def write_group(path, attributes):
    """Write a group's metadata, whole or not at all."""
    write_json(Path(path) / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})


def read_group(path):
    """Attributes of a group; None where the group is missing or was not finished."""
    metadata = read_json(Path(path) / "zarr.json")
    return None if metadata is None else metadata.get("attributes", {})


def write_image(path, image, *, channels, pixel_size_um, levels, record, missing=()):
    """Write one field with its pyramid.

    Parameters
    ----------
    path : path
        The field's group (see `field_path`); what lay there is replaced.
    image : ndarray of uint8, uint16 or float32, shape (C, Y, X)
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
    """
    path = Path(path)
    _forget(path)
    highest = int(np.iinfo(image.dtype).max) if image.dtype.kind == "u" else 1
    datasets = _write_levels(path, image, levels, pixel_size_um, shrink_image)
    omero = [
        {
            "label": channel["label"],
            "color": channel["color"],
            "active": True,
            "window": {"min": 0, "max": highest, "start": channel["window"][0], "end": channel["window"][1]},
        }
        for channel in channels
    ]
    attributes = {
        "ome": {
            "version": NGFF,
            "multiscales": [{"name": path.name, "axes": _axes(image.ndim), "datasets": datasets}],
            "omero": {"channels": omero},
        },
        "plateloom": {**record, "missing": list(missing)},
    }
    write_group(path, attributes)


def write_labels(path, labels, *, pixel_size_um, levels, record):
    """Write the label images of one field.

    Parameters
    ----------
    path : path
        The field's group.
    labels : dict of str to ndarray of uint32, shape (Y, X)
        Compartment to label image; 0 is background.
    pixel_size_um : float
        [µm/px].
    levels : int
        As many as the image has.
    record : dict
        The `plateloom` record.
    """
    folder = Path(path) / "labels"
    for compartment, image in labels.items():
        _forget(folder / compartment)
        datasets = _write_levels(folder / compartment, image, levels, pixel_size_um, shrink_labels)
        attributes = {
            "ome": {
                "version": NGFF,
                "multiscales": [{"name": compartment, "axes": _axes(image.ndim), "datasets": datasets}],
                "image-label": {"version": NGFF, "source": {"image": "../../"}},
            },
            "plateloom": record,
        }
        write_group(folder / compartment, attributes)
    write_group(folder, {"ome": {"version": NGFF, "labels": sorted(labels)}})


def write_well(store, well, fields, record):
    """Write a well's list of fields, after all of its fields have been written."""
    images = [{"path": str(field), "acquisition": 0} for field in fields]
    path = well_path(store, well)
    write_group(path.parent, {})
    write_group(path, {"ome": {"version": NGFF, "well": {"version": NGFF, "images": images}}, "plateloom": record})


def write_plate(store, *, name, wells, shape, field_count, record):
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
    """
    rows, columns = shape
    listed = []
    for well in sorted(wells, key=parse_well):
        row, column = parse_well(well)
        listed.append({"path": f"{row_name(row)}/{column + 1:02d}", "rowIndex": row, "columnIndex": column})
    plate = {
        "version": NGFF,
        "name": name,
        "rows": [{"name": row_name(row)} for row in range(rows)],
        "columns": [{"name": f"{column + 1:02d}"} for column in range(columns)],
        "wells": listed,
        "field_count": field_count,
        "acquisitions": [{"id": 0}],
    }
    write_group(store, {"ome": {"version": NGFF, "plate": plate}, "plateloom": record})


def remove_well(store, well):
    """Remove a well with its images and labels; its metadata first, so that a half-removed well is none."""
    _forget(well_path(store, well))


def read_image(path, *, channels=slice(None), window=(slice(None), slice(None)), level=0):
    """Read pixels of a field, or a window of it, decoding only the chunks needed.

    Parameters
    ----------
    path : path
        The field's group.
    channels : slice or sequence of int
    window : tuple of slice
        Rows and columns [px].
    level : int

    Returns
    -------
    ndarray, shape (C, Y, X)

    Raises
    ------
    PlateLayoutError
        If the shard is missing (zarr would return zeros).
    """
    return _open(Path(path) / str(level)).oindex[(channels, *window)]


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
    ndarray of uint32, shape (Y, X)

    Raises
    ------
    PlateLayoutError
        If no labels, or others, lie there.
    """
    if made is not None:
        found = (read_group(Path(path) / "labels" / compartment) or {}).get("plateloom", {}).get("fingerprint")
        if found != made:
            raise PlateLayoutError(f"{str(path)!r} holds the labels {found}, expected {made}; segment the well again")
    return _open(Path(path) / "labels" / compartment / str(level))[window]


def image_shape(path, level=0):
    """Shape (C, Y, X) of a field's image, from its metadata."""
    return tuple(_metadata(Path(path) / str(level))["shape"])


def describe_image(path):
    """What a field's metadata say.

    Returns
    -------
    dict
        `channels` (labels in order), `colors`, `windows`, `missing` (channels without pixels), `pixel_size_um` [µm/px],
        `levels`, and `shape` (C, Y, X).

    Raises
    ------
    PlateLayoutError
        If no image was finished there.
    """
    attributes = read_group(path)
    if attributes is None:
        raise PlateLayoutError(f"no image at {str(path)!r}")
    channels = attributes["ome"]["omero"]["channels"]
    datasets = attributes["ome"]["multiscales"][0]["datasets"]
    return {
        "channels": [channel["label"] for channel in channels],
        "colors": [channel["color"] for channel in channels],
        "windows": [(channel["window"]["start"], channel["window"]["end"]) for channel in channels],
        "missing": attributes["plateloom"]["missing"],
        "pixel_size_um": datasets[0]["coordinateTransformations"][0]["scale"][-1],
        "levels": len(datasets),
        "shape": image_shape(path),
    }


def shrink_image(image):
    """Halve Y and X by the mean of 2 × 2 pixels, rounded; an odd edge is repeated.

    >>> shrink_image(np.array([[[0, 2], [4, 6]]], dtype=np.uint8))
    array([[[3]]], dtype=uint8)
    """
    if image.shape[-2] % 2 or image.shape[-1] % 2:
        pad = [(0, 0)] * (image.ndim - 2) + [(0, image.shape[-2] % 2), (0, image.shape[-1] % 2)]
        image = np.pad(image, pad, mode="edge")
    wide = np.float32 if image.dtype.kind == "f" else np.uint32
    total = image[..., ::2, ::2].astype(wide)
    total += image[..., 1::2, ::2]
    total += image[..., ::2, 1::2]
    total += image[..., 1::2, 1::2]
    return (total / 4 if image.dtype.kind == "f" else (total + 2) // 4).astype(image.dtype)


def shrink_labels(labels):
    """Halve Y and X by taking every second pixel: a label image has no means."""
    return labels[..., ::2, ::2]


def _write_levels(path, image, levels, pixel_size_um, shrink):
    """Write the arrays of a pyramid; returns NGFF's list of datasets."""
    datasets = []
    for level in range(levels):
        if level:
            image = shrink(image)
        height, width = image.shape[-2:]
        chunk = (min(CHUNK, height), min(CHUNK, width))
        shard = tuple(-(-size // part) * part for size, part in zip((height, width), chunk, strict=True))
        leading = image.shape[:-2]
        array = zarr.create_array(
            str(path / str(level)),
            shape=image.shape,
            dtype=image.dtype,
            chunks=(1,) * len(leading) + chunk,
            shards=leading + shard,
            compressors=[ZstdCodec(level=3, checksum=True)],
            fill_value=0,
            dimension_names=[axis["name"] for axis in _axes(image.ndim)],
            zarr_format=3,
            overwrite=True,
            config={"write_empty_chunks": True},
        )
        array[...] = image
        scale = [1.0] * len(leading) + [pixel_size_um * 2**level] * 2
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    return datasets


def _axes(ndim):
    """NGFF axes of a (C, Y, X) image or of (Y, X) labels."""
    space = [{"name": name, "type": "space", "unit": UNIT} for name in "yx"]
    return [{"name": "c", "type": "channel"}] * (ndim - 2) + space


def _open(path):
    """Open an array whose one shard is there."""
    array = zarr.open_array(str(path), mode="r")
    if not path.joinpath("c", *["0"] * array.ndim).exists():
        raise PlateLayoutError(f"the shard of {str(path)!r} is missing; remove the well's folder and run again")
    return array


def _metadata(path):
    metadata = read_json(path / "zarr.json")
    if metadata is None:
        raise PlateLayoutError(f"no array at {str(path)!r}")
    return metadata


def _forget(path):
    """Remove a group, its metadata first."""
    (path / "zarr.json").unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)
