"""OME-Zarr plates as other programs write them: NGFF 0.4, 0.5 and 0.6, with any axes, chunks and units. Constructed: the
pixels are the caller's, the metadata are what the specification asks for."""

import json
import math

import numpy as np
import zarr

from plateloom.wells import parse_well, row_name

MICROMETERS = {"nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3}


def write(
    folder,
    planes,
    *,
    pixel_size_um=0.65,
    positions=None,
    shape=(8, 12),
    channels=("DNA", "GFP"),
    version="0.5",
    axes="tczyx",
    unit="micrometer",
    z_step_um=1.5,
    chunks=None,
    sharded=False,
    separator="/",
    field_name="{}",
    acquisition=None,
    dtype=np.uint16,
    list_all=True,
):
    """Write a plate.

    Parameters
    ----------
    folder : path
        The plate's group.
    planes : dict of tuple to ndarray of uint16, shape (Y, X)
        By (well, field, channel, z, t), all but the well counted from 1.
    pixel_size_um : float
        [µm/px].
    positions : dict of int to tuple of float, optional
        Center of each field, y and x [µm].
    version : str
        ``"0.4"`` (Zarr 2), ``"0.5"`` or ``"0.6"`` (Zarr 3; coordinate systems, no versions inside).
    axes : str
        Any of t, c, z, then y, x.
    unit : str or None
        Of all lengths in the metadata.
    chunks : tuple of int, optional
        Shape of a chunk; default: one plane.
    sharded : bool
        Whether all chunks lie in one file.
    separator : str
        Between the indexes of a chunk's name.
    field_name : str
        Path of an image below its well, with {} for the field.
    acquisition : int, optional
    list_all : bool
        Whether rows and columns are those of the physical plate, or only those that were imaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wells, fields = sorted({key[0] for key in planes}), {}
    for (well, field, channel, z, t), plane in planes.items():
        fields.setdefault((well, field), {})[t - 1, channel - 1, z - 1] = plane
    rows = [row_name(i) for i in range(shape[0])] if list_all else sorted({row_name(parse_well(w)[0]) for w in wells})
    columns = [str(i + 1) for i in range(shape[1])] if list_all else sorted({str(parse_well(w)[1] + 1) for w in wells})
    paths = {well: f"{row_name(parse_well(well)[0])}/{parse_well(well)[1] + 1}" for well in wells}
    indexes = {
        well: tuple(items.index(part) for items, part in zip((rows, columns), path.split("/"), strict=True))
        for well, path in paths.items()
    }
    plate = {
        "rows": [{"name": name} for name in rows],
        "columns": [{"name": name} for name in columns],
        "wells": [{"path": paths[w], "rowIndex": indexes[w][0], "columnIndex": indexes[w][1]} for w in wells],
    }
    if acquisition is not None:
        plate["acquisitions"] = [{"id": acquisition, "name": f"cycle {acquisition}"}]
    write_group(folder, version, "plate", plate)
    for well in wells:
        numbers = sorted(field for name, field in fields if name == well)
        images = [
            {"path": field_name.format(field)} | ({} if acquisition is None else {"acquisition": acquisition})
            for field in numbers
        ]
        write_group(folder / paths[well].split("/")[0], version)
        write_group(folder / paths[well], version, "well", {"images": images})
        for field in numbers:
            path = folder / paths[well] / field_name.format(field)
            array = _stack(fields[well, field], axes, dtype)
            _write_array(path / "0", array, version, chunks, sharded, separator)
            center = (positions or {}).get(field)
            _write_image(path, array.shape, version, axes, unit, pixel_size_um, z_step_um, center, channels)


def write_group(path, version, kind=None, found=None, **others):
    """Write a group's metadata: `found` under NGFF's name for it."""
    path.mkdir(parents=True, exist_ok=True)
    attributes = {} if kind is None else {kind: found, **others}
    if version == "0.4":
        if kind in ("plate", "well"):
            found["version"] = version
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        if kind:
            (path / ".zattrs").write_text(json.dumps(attributes))
        return
    attributes = {"ome": {"version": version, **attributes}} if kind else {}
    (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}))


def _stack(planes, axes, dtype):
    """The planes of one field as one array."""
    counts = dict(zip("tcz", (max(key[i] for key in planes) + 1 for i in range(3)), strict=True))
    array = np.zeros((*counts.values(), *next(iter(planes.values())).shape), dtype)
    for index, plane in planes.items():
        array[index] = plane
    return array.reshape([n for axis, n in zip("tczyx", array.shape, strict=True) if axis in axes])


def _write_array(path, array, version, chunks, sharded, separator):
    chunks = chunks or (1,) * (array.ndim - 2) + array.shape[-2:]
    shards = tuple(-(-n // c) * c for n, c in zip(array.shape, chunks, strict=True)) if sharded else None
    encoding = {"name": "v2" if version == "0.4" else "default", "separator": separator}
    found = zarr.create_array(
        str(path),
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunks,
        shards=shards,
        zarr_format=2 if version == "0.4" else 3,
        chunk_key_encoding=encoding,
        fill_value=0,
    )
    found[...] = array


def _write_image(path, shape, version, axes, unit, pixel_size_um, z_step_um, center, channels):
    factor = MICROMETERS.get(unit, 1.0)
    step = {"y": pixel_size_um / factor, "x": pixel_size_um / factor, "z": z_step_um / factor}
    scale = [step.get(axis, 1.0) for axis in axes]
    steps = [{"type": "scale", "scale": scale}]
    if center is not None:
        corner = dict(
            zip(
                "yx",
                ((um - (n - 1) / 2 * pixel_size_um) / factor for um, n in zip(center, shape[-2:], strict=True)),
                strict=True,
            )
        )
        steps.append({"type": "translation", "translation": [corner.get(axis, 0.0) for axis in axes]})
    kinds = {"t": "time", "c": "channel"}
    named = [
        {"name": axis, "type": kinds.get(axis, "space")} | ({"unit": unit} if unit and axis not in kinds else {})
        for axis in axes
    ]
    if version == "0.6":
        if len(steps) > 1:
            steps = [{"type": "sequence", "transformations": steps}]
        steps[0] |= {"input": {"path": "0"}, "output": {"name": "intrinsic"}}
        multiscale = {
            "coordinateSystems": [{"name": "world", "axes": named[::-1]}, {"name": "intrinsic", "axes": named}]
        }
    else:
        multiscale = {"axes": named} | ({"version": version} if version == "0.4" else {})
    multiscale["datasets"] = [{"path": "0", "coordinateTransformations": steps}]
    omero = {"channels": [{"label": name, "color": "00FF00" if i else "0000FF"} for i, name in enumerate(channels)]}
    write_group(path, version, "multiscales", [multiscale], omero=omero)


def edit(path, change):
    """Change a group's NGFF metadata by a function that gets them."""
    file = path / "zarr.json" if (path / "zarr.json").exists() else path / ".zattrs"
    found = json.loads(file.read_text())
    change(found["attributes"]["ome"] if file.name == "zarr.json" else found)
    file.write_text(json.dumps(found))


def count_chunks(path):
    """Number of files that hold pixels below a folder."""
    metadata = ("zarr.json", ".zarray", ".zattrs", ".zgroup")
    return sum(file.is_file() and file.name not in metadata for file in path.rglob("*"))


def is_close(one, other):
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-6)
