"""An OME-Zarr plate that exists already: NGFF 0.4 (Zarr 2), 0.5 and 0.6 (Zarr 3), HCS layout, on a local file system.

``plate.zarr/{row}/{column}/{field}/{level}``: the plate's metadata list the wells, a well's the images, an image's the
axes, the levels of its pyramid and how indexes become lengths. `field` is the number in an image's path (``0``,
``fov_12``), else its place in the well's list, from 0; `z` and `t` are indexes, from 0; a channel is called by its
label in `omero`, else by its index. Positions are the image's translation in whatever unit the axes have; NGFF's y
grows as rows do. A plate has no end marker.
"""

import errno
import json
import math
import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from plateloom.errors import CorruptStoreError, PlateLayoutError, UnreadableImageError
from plateloom.readers import Source, SourceImage
from plateloom.readers.folders import compile_expression, sort_planes
from plateloom.readers.ome_tiff import distinct_names, inside
from plateloom.readers.planes import LIMIT, DamagedError, decoded, gray_plane, plane_digest
from plateloom.store.integrity import SEAL
from plateloom.store.plate import open_array, read_group
from plateloom.wells import parse_well, row_name, well_name

VERSION = re.compile(r"0\.[456](?!\d).*")
MICROMETERS = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "nm": 1e-3,
    "micrometer": 1.0,
    "micron": 1.0,
    "um": 1.0,
    "µm": 1.0,
    "μm": 1.0,
    "millimeter": 1e3,
    "mm": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
# Codecs that compute. Others exist that would run a program stored in the data (pickle).
CODECS = {"bytes", "transpose", "blosc", "gzip", "zstd", "crc32c", "sharding_indexed"}
CODECS |= {"zlib", "bz2", "lzma", "lz4", "delta", "shuffle", "bitround", "fletcher32", "adler32", "crc32"}
DTYPES = {"uint8", "uint16", "|u1", "<u1", ">u1", "<u2", ">u2"}
METADATA_LIMIT = 1 << 26  # bytes of one metadata file
FEW = 16  # files of an array whose sizes and times are looked at one by one
MOST_PLANES = 2_000_000
MOST_CHUNKS = 100_000


class Params(BaseModel):
    """Which of a plate's images are read, and how changes are noticed."""

    model_config = ConfigDict(extra="forbid")

    acquisition: int | None = Field(
        None, description="Number of the acquisition to read, where the plate has several; default: there is one."
    )
    images: str = Field(
        "",
        description="Regular expression that an image's whole path below its well must match, e.g. `[0-9]+` where a well lists `0` and "
        "its projection `0_mip`; default: all images.",
    )
    watch: Literal["chunks", "metadata"] = Field(
        "chunks",
        description="What a changed plate is noticed by: `chunks`, the times of the folders that chunks lie in (every folder is listed at "
        "every start: 15 µs each on a local disk, about 1 ms over a network; a field of 5 channels in 4 × 4 chunks has 30, a sharded one 4), "
        "or `metadata`, those of metadata files alone.",
    )

    @field_validator("images")
    @classmethod
    def _compiles(cls, text):
        compile_expression(text)
        return text


class Image(NamedTuple):
    """What metadata say of one field: its array, and where its planes are."""

    array: str
    axes: list
    shape: dict
    channels: list
    scale: dict
    translation: dict
    moved: bool
    units: dict
    size: int
    modified: int
    mark: int


def scan(source, params):
    """List the planes of a plate from its metadata.

    Parameters
    ----------
    source : path
    params : Params

    Returns
    -------
    Source
        Wells and fields that are listed and absent, or there and not listed, are notes. A field whose own metadata
        cannot be read has the planes of another one, so that loading them says why. `size` is that of the array's
        metadata and its chunks, where there are more than 16 of them their number; `modified` is the newest of these.

    Raises
    ------
    PlateLayoutError
        If it is no plate, its metadata are broken or point out of it, or there are several acquisitions.
    """
    return _scan(Path(source), params)[0]


def _scan(source, params):
    """The plate, and a number for each array that changes with the time of anything that it is stored in."""
    notes, marks = [], {}
    plate = _read_plate(source)
    wells = _read_wells(source, plate, notes)
    fields = _read_fields(source, plate, wells, params, notes)
    images, broken, channels, moved = [], [], {}, set()
    for well, field, path in fields:
        try:
            found = _read_image(source, path, params.watch)
        except PlateLayoutError as fault:
            broken.append((well, field, path, str(fault)))
            continue
        for name, facts in found.channels:
            channels.setdefault(name, facts)
        if found.moved:
            moved.add(well)
        marks[found.array] = found.mark
        images += _planes(well, field, found)
        if len(images) > MOST_PLANES:
            raise PlateLayoutError(f"{str(source)!r} declares more than {MOST_PLANES} planes; no plate has so many")
    images = _settle_positions(images, moved, notes)
    if unknown := {image[:2] for image in images if image.pixel_size_um is None}:
        notes.append(f"{len(unknown)} fields have no size of pixels (no unit of length, or y and x differ)")
    if broken:
        notes.append(f"{len(broken)} fields cannot be read, e.g. {broken[0][2]!r}: {broken[0][3]}")
        if not images:
            raise PlateLayoutError(f"no field of {str(source)!r} can be read, e.g. {broken[0][2]!r}: {broken[0][3]}")
        images += _stand_ins(source, broken, images)
    found = Source(sort_planes(images), shape=_plate_shape(plate, wells), channels=channels, notes=notes)
    found.plate = plate["name"] if isinstance(plate.get("name"), str) else ""
    found.absent = len(plate.get("wells") or ()) - len(wells)
    return found, marks


def listing(source, params):
    """See `plateloom.readers.folders.list_changes`: every plane, with all that metadata say of it."""
    found, marks = _scan(Path(source), params)
    for image in found.images:
        yield image.well, "/".join(map(str, (*image[1:], marks.get(image.file))))


def load(source, image):
    """Read one plane; see `plateloom.readers.planes.load_plane`. The plane's pixels stand for its content.

    Chunks that were never written read as zeros, as Zarr has it; a plane of which none was is unreadable.
    """
    try:
        shape, dtype = _read_array(source, image.file)
    except PlateLayoutError as fault:
        raise UnreadableImageError(f"{image.file}: {_reason(source, image, fault)}") from None
    if dtype not in DTYPES:
        raise UnreadableImageError(f"{image.file}: {dtype} pixels, expected uint8 or uint16")
    if len(shape) < 2 or math.prod(shape[-2:]) * 2 > LIMIT or image.page >= math.prod(shape[:-2]):
        raise UnreadableImageError(f"{image.file}: an array of shape {tuple(shape)} has no plane {image.page}")
    plane = gray_plane(image, decoded(image, _decode, source, image, shape))
    return plane, plane_digest(plane)


def recognize(source, names):
    """See `plateloom.readers.pattern.recognize`; the plate's own metadata decide."""
    try:
        _read_plate(Path(source))
    except (PlateLayoutError, OSError):
        return None
    return {"reader": "ome_zarr", "params": {}, "layout": "OME-Zarr", "share": 1.0}


def _read_plate(source):
    """NGFF's `plate` of the plate's own metadata."""
    if re.match(r"[A-Za-z0-9+]+:/", str(source)) or source.is_file():
        raise PlateLayoutError(
            f"{str(source)!r} is no folder; Plateloom reads OME-Zarr from local folders: unzip or download it first"
        )
    attributes = _attributes(source, "")
    if attributes is None:
        raise PlateLayoutError(f"no OME-Zarr group at {str(source)!r}: neither zarr.json nor .zattrs")
    plate = attributes.get("plate")
    if not isinstance(plate, dict):
        other = "it is a single image" if "multiscales" in attributes else "its metadata have no `plate`"
        raise PlateLayoutError(f"{str(source)!r} is no OME-Zarr plate: {other}")
    _refuse_version(plate, "the plate's metadata")
    return plate


def _read_wells(source, plate, notes):
    """Well's name by path, of the wells that are listed and there; the others are notes."""
    wells, absent = {}, []
    for entry in _items(plate, "wells", "the plate's metadata"):
        path = _text(entry, "path", "a well of the plate's metadata")
        well = _well_of(entry, path, plate)
        if path in wells or path in absent:
            raise PlateLayoutError(f"the plate's metadata list the well {path!r} twice")
        if inside(source, path) and _is_group(source, path):
            wells[path] = well
        else:
            absent.append(path)
    if absent:
        notes.append(f"{len(absent)} wells of the plate's list are not there, e.g. {absent[0]!r}")
    known = {*wells, *absent}
    strangers = [
        path
        for row in _folders(source, "")
        for path in _folders(source, row)
        if path not in known and _is_group(source, path)
    ]
    if strangers:
        notes.append(f"{len(strangers)} wells are there but not in the plate's list, e.g. {min(strangers)!r}")
    return wells


def _well_of(entry, path, plate):
    """Well's name from its path ``A/1``; from its row and column in the plate's lists where they are called otherwise."""
    named = _parse_path(path)
    row, column = (_whole(entry.get(key)) for key in ("rowIndex", "columnIndex"))
    lists = [plate.get(key) if isinstance(plate.get(key), list) else [] for key in ("rows", "columns")]
    parts = [
        items[index].get("name")
        if index is not None and index < len(items) and isinstance(items[index], dict)
        else None
        for items, index in zip(lists, (row, column), strict=True)
    ]
    indexed = _parse_path("/".join(map(str, parts)))
    if named and indexed and named != indexed:
        raise PlateLayoutError(
            f"the plate's metadata contradict themselves: the well {path!r} has the indexes of {indexed}"
        )
    if named:
        return named
    if row is None or column is None or row >= 32 or column >= 48:
        raise PlateLayoutError(f"the plate's metadata list the well {path!r}; expected a path such as 'B/03'")
    return indexed or well_name(row, column)


def _parse_path(path):
    """``B03`` of ``B/3``; None where it is no well."""
    found = re.fullmatch(r"([A-Za-z]{1,2})/([0-9]{1,3})", path)
    try:
        return well_name(*parse_well(found[1] + found[2])) if found else None
    except ValueError:
        return None


def _read_fields(source, plate, wells, params, notes):
    """(Well, field, path) of every image that counts."""
    fields, absent, strangers, seen, without = [], [], [], {}, []
    for path, well in wells.items():
        where = f"the metadata of the well {path!r}"
        attributes = _attributes(source, path) or {}
        if not isinstance(attributes.get("well"), dict):
            raise PlateLayoutError(f"{where} have no `well`")
        _refuse_version(attributes["well"], where)
        listed = {}
        for place, entry in enumerate(_items(attributes["well"], "images", where)):
            name = _text(entry, "path", where)
            if name in listed:
                raise PlateLayoutError(f"{where} list the image {name!r} twice")
            listed[name] = (place, _acquisition(entry, where))
        chosen = {name: facts for name, facts in listed.items() if re.fullmatch(params.images or ".*", name, re.DOTALL)}
        for name, (_, number) in chosen.items():
            seen.setdefault(number, f"{path}/{name}")
        if params.acquisition is not None:
            without += [name for name, (_, number) in chosen.items() if number is None]
            chosen = {name: facts for name, facts in chosen.items() if facts[1] == params.acquisition}
        for name, number in _number_fields(chosen, where).items():
            image = inside(source, f"{path}/{name}")
            if _is_group(source, image):
                fields.append((well, number, image))
            else:
                absent.append(image)
        strangers += [
            found
            for found in _folders(source, path)
            if found.rpartition("/")[2] not in listed and _is_group(source, found)
        ]
    _choose_acquisition(plate, seen, params)
    for paths, what in (
        (absent, "fields of the wells' lists are not there"),
        (strangers, "images are there but in no well's list"),
        (without, "images belong to no acquisition and are left out"),
    ):
        if paths:
            notes.append(f"{len(paths)} {what}, e.g. {paths[0]!r}")
    return fields


def _number_fields(listed, where):
    """Field by path: the one number in it, else its place in the list."""
    numbers = {}
    for name, (place, _) in listed.items():
        digits = re.findall(r"[0-9]+", name)
        numbers[name] = int(digits[0]) if len(digits) == 1 and len(digits[0]) < 10 else place
    names = {}
    for name, number in numbers.items():
        if number in names and listed[names[number]][1] == listed[name][1]:
            raise PlateLayoutError(
                f"{where}: the images {names[number]!r} and {name!r} are both field {number}; choose with the reader's "
                "parameter `images`, a regular expression of paths"
            )
        names.setdefault(number, name)
    return numbers


def _choose_acquisition(plate, seen, params):
    """Refuse several acquisitions without a choice, and a choice that is not there."""
    names = {}
    for entry in plate.get("acquisitions") if isinstance(plate.get("acquisitions"), list) else []:
        if isinstance(entry, dict) and _whole(entry.get("id")) is not None:
            names[entry["id"]] = entry.get("name")
    shown = ", ".join(
        f"{number} ({names[number]})" if names.get(number) else "none" if number is None else str(number)
        for number in sorted(seen, key=lambda number: -1 if number is None else number)
    )
    if params.acquisition is None and len(seen) > 1:
        raise PlateLayoutError(
            f"the plate has several acquisitions: {shown}; choose one with the parameter `acquisition`"
        )
    if params.acquisition is not None and seen and params.acquisition not in seen:
        raise PlateLayoutError(f"the plate has no image of acquisition {params.acquisition}; it has {shown}")


def _acquisition(entry, where):
    """Number of the acquisition that an image belongs to, or None."""
    if "acquisition" not in entry:
        return None
    number = _whole(entry["acquisition"])
    if number is None:
        raise PlateLayoutError(f"{where}: acquisition {entry['acquisition']!r}, expected a whole number")
    return number


def _read_image(source, path, watch):
    """What the metadata of one image say."""
    where = f"the metadata of the image {path!r}"
    attributes = _attributes(source, path) or {}
    multiscale = _items(attributes, "multiscales", where)[0]
    _refuse_version(multiscale, where)
    dataset = _items(multiscale, "datasets", where)[0]
    array = f"{path}/{_text(dataset, 'path', where)}"
    axes, units = _axes(multiscale, dataset, where)
    shape, _ = _read_array(source, inside(source, array))
    if len(shape) != len(axes):
        raise PlateLayoutError(f"{where} have the axes {', '.join(axes)}, the array {array!r} the shape {tuple(shape)}")
    sizes = dict(zip(axes, shape, strict=True))
    if odd := [axis for axis in axes[:-2] if axis not in "tcz" and sizes[axis] != 1]:
        raise PlateLayoutError(f"{where} have an axis {odd[0]!r} of {sizes[odd[0]]} planes; known: t, c, z, y, x")
    scale, translation, moved = _transform(multiscale, dataset, axes, where)
    count = sizes.get("c", 1)
    if math.prod(shape[:-2]) > MOST_PLANES:
        raise PlateLayoutError(f"{where}: {math.prod(shape[:-2])} planes in one field")
    omero = attributes.get("omero")
    listed = omero.get("channels") if isinstance(omero, dict) else None
    listed = [
        entry if isinstance(entry, dict) else {} for entry in (listed if isinstance(listed, list) else [])[:count]
    ]
    listed += [{}] * (count - len(listed))
    labels = [entry["label"] if isinstance(entry.get("label"), str) else "" for entry in listed]
    channels = []
    for name, label, entry in zip(distinct_names(labels), labels, listed, strict=True):
        facts = {"name": label} if label else {}
        if isinstance(entry.get("color"), str) and re.fullmatch("#?[0-9A-Fa-f]{6}", entry["color"]):
            facts["color"] = entry["color"].lstrip("#").upper()
        channels.append((name, facts))
    return Image(array, axes, sizes, channels, scale, translation, moved, units, *_changes(Path(source, array), watch))


def _axes(multiscale, dataset, where):
    """Names of the axes, and what one unit of each is [µm]; None where that is not said, or no length."""
    axes = multiscale.get("axes")
    if axes is None and "coordinateSystems" in multiscale:
        systems = _items(multiscale, "coordinateSystems", where)
        output = _items(dataset, "coordinateTransformations", where)[-1].get("output")
        output = output.get("name") if isinstance(output, dict) else output
        chosen = next((system for system in systems if output and system.get("name") == output), systems[0])
        axes = chosen.get("axes")
    if not isinstance(axes, list) or not all(
        isinstance(axis, dict) and isinstance(axis.get("name"), str) for axis in axes
    ):
        raise PlateLayoutError(f"{where} have no list of named axes")
    names = [axis["name"] for axis in axes]
    if len(set(names)) < len(names) or names[-2:] != ["y", "x"]:
        raise PlateLayoutError(f"{where} have the axes {', '.join(names)}; expected any of t, c, z, then y, x")
    units = {
        axis["name"]: MICROMETERS.get(axis["unit"].lower()) if isinstance(axis.get("unit"), str) else None
        for axis in axes
    }
    return names, units


def _transform(multiscale, dataset, axes, where):
    """Scale and translation of each axis, in the axis' own unit, and whether a translation is given."""
    scale, translation = dict.fromkeys(axes, 1.0), dict.fromkeys(axes, 0.0)
    moved = False
    own = dataset.get("coordinateTransformations")
    of_all = multiscale.get("coordinateTransformations")
    if "coordinateSystems" in multiscale and isinstance(of_all, list) and len(of_all) > 1:
        of_all = None  # ways into several other coordinate systems, not steps of one way
    for step in _steps(
        [*(own or []), *(of_all or [])] if isinstance(own, list | None) and isinstance(of_all, list | None) else None,
        where,
    ):
        kind = step.get("type")
        values = step.get(kind) if kind in ("scale", "translation") else None
        if kind == "identity":
            continue
        if not isinstance(values, list) or len(values) != len(axes) or not all(map(_is_number, values)):
            raise PlateLayoutError(
                f"{where} have a coordinate transformation {kind!r} that is not a scale or translation with one number "
                "per axis; resave the image without it"
            )
        for axis, value in zip(axes, values, strict=True):
            if kind == "scale":
                scale[axis], translation[axis] = scale[axis] * value, translation[axis] * value
            else:
                translation[axis], moved = translation[axis] + value, True
    if not all(math.isfinite(scale[axis]) and scale[axis] > 0 for axis in "yx"):
        raise PlateLayoutError(f"{where} have the scale {scale['y']:g}, {scale['x']:g}; expected numbers above 0")
    return scale, translation, moved


def _steps(transformations, where, depth=0):
    """Single transformations, one after the other; those of a sequence in its place."""
    if not isinstance(transformations, list) or depth > 8:
        raise PlateLayoutError(f"{where}: `coordinateTransformations` is no list of transformations")
    for step in transformations:
        if not isinstance(step, dict):
            raise PlateLayoutError(f"{where}: `coordinateTransformations` is no list of transformations")
        if step.get("type") == "sequence":
            yield from _steps(step.get("transformations"), where, depth + 1)
        else:
            yield step


def _planes(well, field, found):
    """The planes of one field, as the array has them: its leading axes counted as one."""
    planes = []
    pixel = [found.scale[axis] * found.units[axis] if found.units[axis] else None for axis in "yx"]
    same = None not in pixel and abs(pixel[0] - pixel[1]) <= 1e-3 * pixel[0]
    center = {
        axis: (found.translation[axis] + (found.shape[axis] - 1) / 2 * found.scale[axis]) * found.units[axis]
        for axis in "yx"
        if found.units[axis] and math.isfinite(found.translation[axis])
    }
    leading = found.axes[:-2]
    for page in range(math.prod(found.shape[axis] for axis in leading)):
        rest, at = page, {"t": 0, "c": 0, "z": 0}
        for axis in reversed(leading):
            rest, at[axis] = divmod(rest, found.shape[axis])
        height = None
        if found.units.get("z"):
            height = (found.translation["z"] + at["z"] * found.scale["z"]) * found.units["z"]
        planes.append(
            SourceImage(
                well,
                field,
                found.channels[at["c"]][0],
                at["z"],
                at["t"],
                found.array,
                found.size,
                found.modified,
                page,
                y_um=center.get("y"),
                x_um=center.get("x"),
                z_um=height if height is not None and math.isfinite(height) else None,
                pixel_size_um=math.sqrt(pixel[0] * pixel[1]) if same else None,
            )
        )
    return planes


def _stand_ins(source, broken, images):
    """Planes for fields whose metadata cannot be read: those of the first field that can."""
    first = [image for image in images if image[:2] == images[0][:2]]
    for well, field, path, _ in broken:
        for image in first:
            size, modified, _ = _changes(Path(source, path), "metadata")
            yield SourceImage(well, field, image.channel, image.z, image.t, path, size, modified, image.page)


def _settle_positions(images, moved, notes):
    """Drop the positions of wells without a translation, and of those whose fields would all lie on one spot.

    Where some fields of a well have a translation, those without lie at the origin, as NGFF has it.
    """
    wells = {}
    for image in images:
        wells.setdefault(image.well, {})[image.field] = (image.y_um, image.x_um)
    false = {
        well
        for well in moved
        if len(wells[well]) > 1 and (len(set(wells[well].values())) == 1 or (None, None) in wells[well].values())
    }
    if false:
        notes.append(f"{len(false)} wells have no usable positions (all the same, or not all known), e.g. {min(false)}")
    known = moved - false
    return [image if image.well in known else image._replace(y_um=None, x_um=None) for image in images]


def _plate_shape(plate, wells):
    """Rows and columns of the physical plate; None where the lists name only those that were imaged."""
    lists = [plate.get(key) if isinstance(plate.get(key), list) else [] for key in ("rows", "columns")]
    names = [[str(item.get("name")) if isinstance(item, dict) else "" for item in items] for items in lists]
    rows, columns = map(len, names)
    spelled = [[row_name(i) for i in range(min(rows, 32))], [str(i + 1) for i in range(min(columns, 48))]]
    found = [[name.upper() for name in names[0]], [name.lstrip("0") for name in names[1]]]
    whole = found == spelled or not any(map(_parse_path, wells))
    inside = all(row < rows and column < columns for row, column in map(parse_well, wells.values()))
    return (rows, columns) if rows and columns and whole and inside else None


def _read_array(source, path):
    """Shape and data type of an array, from its metadata; refused where decoding it could do more than decode."""
    where = f"the metadata of the array {path!r}"
    found = _read_json(source, f"{path}/zarr.json")
    if found is None:
        found = _read_json(source, f"{path}/.zarray")
        if found is None:
            raise PlateLayoutError(f"no array at {path!r}")
        chunks, dtype = found.get("chunks"), found.get("dtype")
        filters = found.get("filters") or []
        codecs = [found.get("compressor"), *(filters if isinstance(filters, list) else [filters])]
        names = [codec.get("id") if isinstance(codec, dict) else codec for codec in codecs if codec is not None]
    else:
        if found.get("node_type") != "array":
            raise PlateLayoutError(f"no array at {path!r}")
        grid = found.get("chunk_grid")
        if (
            not isinstance(grid, dict)
            or grid.get("name") != "regular"
            or not isinstance(grid.get("configuration"), dict)
        ):
            raise PlateLayoutError(f"{where}: no regular grid of chunks")
        chunks, dtype = grid["configuration"].get("chunk_shape"), found.get("data_type")
        names = list(_codec_names(found.get("codecs")))
    shape = found.get("shape")
    for what, sizes in (("shape", shape), ("chunks", chunks)):
        if not isinstance(sizes, list) or not all(_whole(size) for size in sizes) or len(sizes) != len(shape):
            raise PlateLayoutError(f"{where}: {what} {str(sizes)[:60]}, expected whole numbers above 0")
    if math.prod(chunks) * 2 > 4 * LIMIT:
        raise PlateLayoutError(f"{where}: chunks of {math.prod(chunks)} pixels")
    for name in names:
        if not isinstance(name, str) or name.removeprefix("numcodecs.") not in CODECS:
            raise PlateLayoutError(f"{where}: unknown codec {str(name)[:60]!r}; known: {', '.join(sorted(CODECS))}")
    return shape, dtype if isinstance(dtype, str) else str(dtype)[:60]


def _codec_names(codecs, depth=0):
    """Names of the codecs of Zarr 3, those inside of shards as well."""
    if not isinstance(codecs, list) or depth > 8:
        yield None
        return
    for codec in codecs:
        configuration = codec.get("configuration") if isinstance(codec, dict) else None
        yield codec.get("name") if isinstance(codec, dict) else codec
        for key in ("codecs", "index_codecs"):
            if isinstance(configuration, dict) and key in configuration:
                yield from _codec_names(configuration[key], depth + 1)


def _decode(source, image, shape):
    """Pixels of one plane; its leading indexes from its number in the array."""
    import zarr

    array = zarr.open_array(str(Path(source, image.file)), mode="r")
    rest, selection = image.page, []
    for size in reversed(shape[:-2]):
        rest, index = divmod(rest, size)
        selection.insert(0, index)
    root, there = Path(source).resolve(), False
    if (
        math.prod(-(-size // chunk) for size, chunk in zip(shape[-2:], _chunk_sizes(array)[-2:], strict=True))
        > MOST_CHUNKS
    ):
        raise ValueError(f"its plane has more than {MOST_CHUNKS} chunks")
    for name in _chunk_names(array, selection, shape):
        chunk = Path(source, image.file, name)
        if chunk.exists():
            there = True
            if not chunk.resolve().is_relative_to(root):
                raise ValueError(f"its chunk {name!r} lies outside of the plate")
    if not there:
        raise ValueError("none of its chunks is there")
    group = Path(source, image.file).parent
    if not _is_ours(group):
        return array[tuple(selection)]
    try:  # by its manifest, in which no chunk may be missing
        return open_array(group, read_group(group), Path(image.file).name)[tuple(selection)]
    except CorruptStoreError as fault:
        raise DamagedError(str(fault)) from None


def _is_ours(group):
    """Whether Plateloom has written an image, so that its metadata vouch for its pixels."""
    for name in ("zarr.json", ".zattrs"):
        if (found := _read_json(group, name)) is not None:
            attributes = found.get("attributes", {}) if name == "zarr.json" else found
            return isinstance(attributes, dict) and bool({"plateloom", SEAL} & attributes.keys())
    return False


def _chunk_names(array, selection, shape):
    """Paths, below an array, of the files that a plane is stored in."""
    sizes = _chunk_sizes(array)
    leading = [index // size for index, size in zip(selection, sizes, strict=False)]
    for y in range(-(-shape[-2] // sizes[-2])):
        for x in range(-(-shape[-1] // sizes[-1])):
            yield array.metadata.encode_chunk_key((*leading, y, x))


def _chunk_sizes(array):
    """Shape of what one file holds: a chunk, or a shard."""
    return array.metadata.chunk_grid.chunk_shape if array.metadata.zarr_format == 3 else array.metadata.chunks


def _reason(source, image, fault):
    """Why there is no array for a plane: where it stands in for a broken field, that field's metadata say so."""
    try:
        if str(fault).startswith("no array at"):
            _read_image(source, image.file, "metadata")
    except PlateLayoutError as cause:
        return cause
    return fault


def _changes(path, watch):
    """Size [bytes], newest time [ns] and sum of the times of what an array or a group is stored in; see `scan`."""
    found = [path / name for name in ("zarr.json", ".zarray", ".zattrs")]
    found = [os.stat(name) for name in found if name.exists()]
    size, times = sum(status.st_size for status in found), [status.st_mtime_ns for status in found]
    waiting, chunks = [path] if watch == "chunks" else [], []
    while waiting:
        folder = waiting.pop()
        times.append(os.stat(folder).st_mtime_ns)
        with os.scandir(folder) as entries:
            for entry in entries:
                (waiting if entry.is_dir(follow_symlinks=False) else chunks).append(entry)
    if len(chunks) > FEW:
        size += len(chunks)
    else:
        for entry in chunks:
            status = entry.stat(follow_symlinks=False)
            size, times = size + status.st_size, [*times, status.st_mtime_ns]
    return size, max(times, default=0), sum(times)


def _attributes(source, path):
    """NGFF attributes of a group of either version; None where there is no group."""
    found = _read_json(source, f"{path}/zarr.json".lstrip("/"))
    if found is None:
        attributes = _read_json(source, f"{path}/.zattrs".lstrip("/"))
    else:
        attributes = found.get("attributes", {})
        if isinstance(attributes, dict) and "ome" in attributes:
            attributes = attributes["ome"]
    if attributes is None:
        return None
    if not isinstance(attributes, dict):
        raise PlateLayoutError(f"the metadata of {path or str(source)!r} have no attributes")
    _refuse_version(attributes, f"the metadata of {path or str(source)!r}")
    return attributes


def _read_json(source, name):
    """A metadata file as a dict; None where there is none."""
    name = inside(source, name)
    path = Path(source, name)
    try:
        if path.stat().st_size > METADATA_LIMIT:
            raise PlateLayoutError(f"{name!r} is larger than {METADATA_LIMIT >> 20} MiB; no metadata are")
        found = json.loads(path.read_bytes())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            return None
        raise
    except (ValueError, RecursionError) as error:
        if isinstance(error, PlateLayoutError):
            raise
        raise PlateLayoutError(f"{name!r} is not JSON: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise PlateLayoutError(f"{name!r} holds no JSON object")
    return found


def _is_group(source, path):
    return any(os.path.lexists(Path(source, path, name)) for name in ("zarr.json", ".zattrs", ".zgroup"))


def _folders(source, path):
    """Paths of the folders in one of the plate's folders."""
    try:
        with os.scandir(Path(source, path)) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [f"{path}/{name}".lstrip("/") for name in names if not name.startswith(".")]


def _items(found, key, where):
    """A list of dicts with at least one in it."""
    items = found.get(key)
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise PlateLayoutError(f"{where} have no list of `{key}`")
    return items


def _text(found, key, where):
    text = found.get(key)
    if not isinstance(text, str) or not text:
        raise PlateLayoutError(f"{where} has no `{key}`" if where.startswith("a ") else f"{where} name no `{key}`")
    return text


def _whole(value):
    """A whole number from 0, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _refuse_version(found, where):
    """NGFF's versions before 0.4 have no axes, those after 0.6 are not known yet."""
    version = found.get("version", "0.6")
    if not isinstance(version, str) or not VERSION.fullmatch(version):
        raise PlateLayoutError(f"{where}: NGFF version {str(version)[:20]!r}; Plateloom reads 0.4, 0.5 and 0.6")
