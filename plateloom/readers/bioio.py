"""Files of microscopes that bioio reads: CZI, ND2, LIF and others, each a well, or each scene in them a well or a field.

bioio is optional, and every format needs a plugin: ``pip install bioio bioio-czi`` (bioio-dv, bioio-sldy; bioio-bioformats
for the rest, which runs Java). ND2 and LIF are read by nd2 and liffile themselves, see `nikon` and `leica`. Wells come from
the names of files, or of scenes, by a pattern: nothing else says them alike in all formats. A field is the pattern's, else a scene's place in its file (or among
the scenes, or tiles, of its well), from 1; `z` and `t` are indexes, from 0; a channel is called as the plugin calls it.

Positions are the plugin's stage position of the scene's center [µm], else that of the first plane in the file's
OME metadata; y may grow either way (see the parameter `mirror`). Sizes are those of the OME metadata, else the plugin's,
which are taken for µm. There is no end marker.

Every scan opens every file, which takes from 0.1 s to some seconds each and reads metadata alone; a listing opens none. A
plane is read by itself wherever the plugin can do so; a plugin's own chunks may hold more.
"""

import datetime
import errno
import functools
import importlib.util
import math
import threading
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from plateloom.errors import DataFault, PlateLayoutError, UnreadableImageError
from plateloom.readers import Source, SourceImage, leica, nikon, pattern
from plateloom.readers.folders import list_changes, list_files, name_well, sort_planes
from plateloom.readers.ome_tiff import FIRST_WELL, LENGTHS, distinct_names
from plateloom.readers.planes import decoded, gray_plane, plane_digest
from plateloom.readers.scenes import Scene, check_size, finite_number, pixel_size

PLUGINS = {
    ".czi": "bioio-czi",
    ".dv": "bioio-dv",
    ".r3d": "bioio-dv",
    ".sldy": "bioio-sldy",
    ".ome.tif": "bioio-ome-tiff",
    ".ome.tiff": "bioio-ome-tiff",
    ".tif": "bioio-tifffile",
    ".tiff": "bioio-tifffile",
}
OTHERS = "bioio-bioformats"
SUFFIXES = (".czi", ".nd2", ".lif", ".dv", ".r3d", ".sldy", ".oib", ".oir", ".vsi", ".lsm", ".ims", ".mvd2")
SCENES = {
    "ZEN": r"P(?P<field>\d+)-(?P<well>[A-P]\d{1,2})",
    "LAS X Navigator": r"(?:.*/)?(?P<row>[A-P])/(?P<column>\d{1,2})/R(?P<field>\d+)",
    "first well": FIRST_WELL,
}
SCENE_BITS = 24  # of `page`: below are a scene's planes, above its number
MOST_PLANES = 1 << 21
DIRECT = {".nd2": nikon, ".lif": leica}  # read by the package that bioio's plugin rests on


class Params(BaseModel):
    """Which files are read, and where their wells come from."""

    model_config = ConfigDict(extra="forbid")

    pattern: str = Field(
        FIRST_WELL,
        description="Regular expression that a whole name must match, in small or large letters; named groups `well` (or `row` and `column`), and "
        "if there are any `field`, `channel`, `z`, `t`.",
    )
    names: Literal["file", "scene"] = Field(
        "file",
        description="What the pattern is matched with: names of files without folders, or of the scenes in them.",
    )
    suffixes: list[str] = Field(list(SUFFIXES), min_length=1, description="Ends of the names of files that are read.")
    mirror: Literal["", "x", "y", "xy"] = Field(
        "", description="Axes along which positions grow the other way than the image's columns (x) or rows (y) do."
    )

    @field_validator("pattern")
    @classmethod
    def _has_a_well(cls, text):
        return pattern.Params(pattern=text).pattern

    @field_validator("suffixes")
    @classmethod
    def _are_ends(cls, suffixes):
        if wrong := [suffix for suffix in suffixes if not suffix.startswith(".") or len(suffix) < 2]:
            raise ValueError(f"{wrong[0]!r} is no suffix; expected one such as '.czi'")
        return [suffix.lower() for suffix in suffixes]


def scan(source, params):
    """List the planes of a plate from the files' metadata.

    Parameters
    ----------
    source : path
    params : Params

    Returns
    -------
    Source
        Files that cannot be opened have, where the pattern is one of file names, the planes of another one, so that
        loading them says why.

    Raises
    ------
    PlateLayoutError
        If there is no such file, bioio or the plugin is not installed, or no file can be opened.
    """
    match, notes = _matcher(params), []
    found_scenes, images, broken, others, channels, counts, other_axes = [], [], {}, [], {}, {}, 0
    files = dict(sorted(list_files(source, tuple(params.suffixes))))
    if not files:
        raise PlateLayoutError(f"no file in {str(source)!r} ends in {', '.join(params.suffixes)}")
    for name, entry in files.items():
        found = match(name.rpartition("/")[2]) if params.names == "file" else None
        if params.names == "file" and not found:
            others.append(name)
            continue
        status = entry.stat()
        try:
            scenes = describe(Path(source, name), status.st_size, status.st_mtime_ns)
        except UnreadableImageError as fault:
            broken[name] = (found, status, str(fault))
            continue
        for number, scene in enumerate(scenes):
            here = found or match(scene.name)
            if not here:
                others.append(f"{name}: {scene.name}")
            elif not scene.plain:
                other_axes += 1
            else:
                where = name if params.names == "file" else f"scene {scene.name} of {name}"
                well, told = name_well(pattern.well_text(here), where), pattern.said(here, where)
                found_scenes.append((name, status, number, scene, well, told))
    tiled = {well for _, _, _, scene, well, _ in found_scenes if scene.sizes[0] > 1}
    for name, status, number, scene, well, told in found_scenes:
        place = (name, well) if params.names == "file" else well
        if well in tiled:  # no name tells tiles apart, so they are counted over all files of the well
            place = (well, *(told.get(axis) for axis in ("channel", "z", "t")))
        for tile in range(scene.sizes[0]):
            counts[place] = counts.get(place, 0) + 1
            said = told | {"field": counts[place]} if well in tiled else {"field": counts[place]} | told
            images += _planes(name, status, number, scene, tile, well, said, params)
        if len(images) > MOST_PLANES:
            raise PlateLayoutError(f"{str(source)!r} declares more than {MOST_PLANES} planes; no plate has so many")
        for channel, color in zip(scene.channels, scene.colors, strict=True):
            channels.setdefault(told.get("channel", channel), {"color": color} if color else {})
    if not images and broken:
        raise PlateLayoutError(f"no file of {str(source)!r} can be opened; {next(iter(broken.values()))[2]}")
    if others:
        what = "files" if params.names == "file" else "scenes"
        notes.append(f"{len(others)} {what} do not match the pattern and are left out, e.g. {others[0]!r}")
    if other_axes:
        notes.append(f"{other_axes} scenes have axes besides t, c, z, y and x, as of colors, and are left out")
    if broken:
        notes.append(f"{len(broken)} files cannot be opened; {next(iter(broken.values()))[2]}")
    images = _without_false_positions(images, notes) + _stand_ins(broken, images)
    return Source(sort_planes(images), channels=channels, notes=notes)


def listing(source, params):
    """See `plateloom.readers.folders.list_changes`. Only a pattern of file names tells a file's well."""
    match = _matcher(params)

    def well_of(name):
        found = match(name.rpartition("/")[2]) if params.names == "file" else None
        return pattern.well_text(found) if found else None if params.names == "file" else ""

    return list_changes(source, tuple(params.suffixes), well_of)


def load(source, image):
    """Read one plane; see `plateloom.readers.planes.load_plane`. The plane's pixels stand for its content."""
    plane = gray_plane(image, decoded(image, _decode, Path(source, image.file), image))
    return plane, plane_digest(plane)


def recognize(source, names):
    """See `plateloom.readers.pattern.recognize`; by suffixes alone, since without bioio no file can be opened."""
    files = sorted(name for name in names if name.lower().endswith(SUFFIXES))
    images = [name for name in names if name.lower().endswith((".tif", ".tiff", ".png", ".jpg", ".jpeg"))]
    if not files or len(files) < len(images):
        return None
    suffixes = sorted({f".{name.lower().rpartition('.')[2]}" for name in files})
    match = pattern.matcher(pattern.Params(pattern=FIRST_WELL))
    wells = {found["well"].upper() for found in map(match, files) if found}
    params = {"suffixes": suffixes}
    if len(wells) <= len(files) / 2:  # one file for many wells: its scenes have to say them
        params |= {"names": "scene", "pattern": _guess_scenes(source, files[0])}
    layout = f"{', '.join(suffixes)} by bioio"
    return {"reader": "bioio", "params": params, "layout": layout, "share": len(files) / (len(files) + len(images))}


def _guess_scenes(source, name):
    """The pattern that most scenes of a file match; the usual one where it cannot be opened."""
    try:
        scenes = describe(Path(source, name), 0, 0)
    except (DataFault, OSError):
        return FIRST_WELL
    matches = {text: pattern.matcher(pattern.Params(pattern=text, folders=True)) for text in SCENES.values()}
    return max(matches, key=lambda text: sum(bool(matches[text](scene.name)) for scene in scenes))


def _matcher(params):
    """A function of a name: the match of the pattern, or None."""
    return pattern.matcher(pattern.Params(pattern=params.pattern, folders=True))


def _import_bioio(name):
    """The package; where it is missing, the message says how to get it."""
    try:
        import bioio
    except ImportError:
        raise _missing(name, f"bioio {_plugin_of(name)}") from None
    return bioio


def _missing(name, packages):
    return PlateLayoutError(f"reading {name!r} needs a package that is not installed: pip install {packages}")


def _plugin_of(name):
    """The plugin for a file's format."""
    fitting = [suffix for suffix in PLUGINS if name.lower().endswith(suffix)]
    return PLUGINS[max(fitting, key=len)] if fitting else OTHERS


@functools.lru_cache(maxsize=2)
def _open(path, size, modified):
    """An opened file and its lock: what it shows is the object's own state. Size and time keep a changed file apart."""
    direct = DIRECT.get(path.suffix.lower())
    if direct and not importlib.util.find_spec(direct.PACKAGE):
        raise _missing(path.name, direct.PACKAGE)
    bioio = None if direct else _import_bioio(path.name)
    try:
        if direct:
            return direct.open_file(path), threading.Lock()
        try:
            return bioio.BioImage(path, chunk_dims=["Y", "X"]), threading.Lock()
        except TypeError:  # a plugin that chooses its chunks itself
            return bioio.BioImage(path), threading.Lock()
    except Exception as error:  # a plugin raises whatever it likes
        _raise_if_passing(error)
        plugin = _plugin_of(path.name)
        if type(error).__name__ == "UnsupportedFileFormatError" and not importlib.util.find_spec(
            plugin.replace("-", "_")
        ):
            raise PlateLayoutError(
                f"no plugin of bioio that is installed reads {path.name!r}: pip install bioio {plugin}"
            ) from None
        raise UnreadableImageError(f"{path.name!r}: {_first_line(error)}") from None


def describe(path, size, modified):
    """Scenes of a file.

    Parameters
    ----------
    path : Path
    size, modified : int
        Of the file [bytes], [ns].

    Returns
    -------
    list of Scene

    Raises
    ------
    PlateLayoutError
        If bioio or the plugin is not installed.
    UnreadableImageError
        If the plugin cannot open the file.
    """
    image, lock = _open(path, size, modified)
    direct = DIRECT.get(path.suffix.lower())
    with lock:
        try:
            scenes = direct.describe_scenes(image) if direct else _describe_scenes(image)
            if any(math.prod(scene.sizes) > MOST_PLANES for scene in scenes):
                raise ValueError(f"more than {MOST_PLANES} planes in one scene; no field has so many")
            return scenes
        except Exception as error:  # a plugin raises whatever it likes
            _raise_if_passing(error)
            raise UnreadableImageError(f"{path.name!r}: {_first_line(error)}") from None


def _raise_if_passing(error):
    """Let pass what the disk itself raised, and want of memory: trying again may help."""
    of_disk = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.ENOENT)
    if of_disk or isinstance(error, MemoryError):
        raise error


def _first_line(error):
    """What an error says, in one line and not a whole page of it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _ome_images(image):
    """OME's Images by the number of their scene, where the plugin has as many as scenes."""
    try:
        pictures = image.ome_metadata.images
    except Exception:  # plugins without OME metadata raise NotImplementedError, others what their converter does
        return {}
    return dict(enumerate(pictures)) if len(pictures) == len(image.scenes) else {}


def _describe_scenes(image):
    pictures = _ome_images(image)
    return [_describe_scene(image, place, pictures.get(place)) for place in range(len(image.scenes))]


def _describe_scene(image, place, picture):
    image.set_scene(place)
    sizes = (1, *(int(getattr(image.dims, axis, 1)) for axis in "TCZ"))
    said = _standard(image)
    pixels = getattr(picture, "pixels", None)
    listed = list(getattr(pixels, "channels", None) or [])[: sizes[2]]
    listed += [None] * (sizes[2] - len(listed))
    names = [str(name) for name in image.channel_names or []][: sizes[2]]
    y, x, z = (_size(image, pixels, axis) for axis in "yxz")
    center = tuple(finite_number(getattr(said, f"stage_position_{axis}", None)) for axis in "yx")
    if None in center:
        plane = next(iter(getattr(pixels, "planes", None) or []), None)
        center = tuple(_micrometers(plane, f"position_{axis}") for axis in "yx")
    began = _date(getattr(said, "imaging_datetime", None))
    return Scene(
        str(image.scenes[place]),
        sizes,
        distinct_names(names + [""] * (sizes[2] - len(names))),
        [_color(channel) for channel in listed],
        [_nanometers(channel) for channel in listed],
        "S" not in image.dims.order,
        pixel_size(y, x),
        z,
        [center],
        {} if began is None else _times(began, sizes, _interval(getattr(said, "timelapse_interval", None))),
    )


def _times(began, sizes, interval):
    """When each plane was taken, as far as the time points tell."""
    _, times, channels, depth = sizes
    spots = ((t, c, z) for t in range(times) for c in range(channels) for z in range(depth))
    return {(t, c, z): began + t * (interval or 0.0) for t, c, z in spots}


def _standard(image):
    """The plugin's standard metadata; None where it fails to put them together."""
    try:
        return image.standard_metadata
    except Exception:  # what it fails at is not needed to read a plane
        return None


def _size(image, pixels, axis):
    """Size of a pixel, or distance of planes [µm]; None where it is not known."""
    found = _micrometers(pixels, f"physical_size_{axis}")
    return found if found is not None else finite_number(getattr(image.physical_pixel_sizes, axis.upper(), None))


def _micrometers(holder, name):
    """A length of OME's model [µm]; None where it has none, or no unit of length."""
    value = finite_number(getattr(holder, name, None))
    unit = getattr(holder, f"{name}_unit", None)
    factor = LENGTHS.get(getattr(unit, "value", unit))
    return None if value is None or factor is None else value * factor


def _nanometers(channel):
    length = _micrometers(channel, "emission_wavelength")
    return length * 1e3 if length and length > 0 else None


def _color(channel):
    """RRGGBB of a channel of OME's model."""
    color = getattr(channel, "color", None)
    try:
        return "".join(f"{part:02X}" for part in color.as_rgb_tuple(alpha=False)) if color is not None else None
    except (AttributeError, TypeError, ValueError):
        return None


def _date(value):
    """Seconds since 1970 of a date, in UTC where it names no zone."""
    if not isinstance(value, datetime.datetime):
        return None
    try:
        return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _interval(value):
    return value.total_seconds() if isinstance(value, datetime.timedelta) else None


def _planes(name, status, number, scene, tile, well, said, params):
    """The planes of one tile of a scene."""
    _, _, channels, depth = scene.sizes
    signs = [-1.0 if axis in params.mirror else 1.0 for axis in "yx"]
    place = scene.places[tile]
    y, x = (None, None) if None in place else (sign * at for sign, at in zip(signs, place, strict=True))
    count = math.prod(scene.sizes[1:])
    for index in range(count):
        rest, z = divmod(index, depth)
        t, c = divmod(rest, channels)
        yield SourceImage(
            well,
            said["field"],
            said.get("channel", scene.channels[c]),
            said.get("z", z),
            said.get("t", t),
            name,
            status.st_size,
            status.st_mtime_ns,
            (number << SCENE_BITS) + tile * count + index,
            y_um=y,
            x_um=x,
            z_um=z * scene.z_step_um if scene.z_step_um and depth > 1 else None,
            pixel_size_um=scene.pixel_size_um,
            seconds=scene.times.get((t, c, z)),
            wavelength_nm=scene.wavelengths[c],
        )


def _stand_ins(broken, images):
    """Planes for files that cannot be opened: those of the first one that can, in the well that the name says."""
    found = []
    model = [image for image in images if image.file == images[0].file]
    several = len({image.field for image in model}) > 1
    last = _last_fields(images) if several else {}
    for name, (match, status, _) in broken.items():
        if match is None:
            continue
        well, said = name_well(pattern.well_text(match), name), pattern.said(match, name)
        if several:  # the name does not tell them apart: they are counted on from those of the well's other files
            said.pop("field", None)
        mine = []
        for image in model:
            facts = {"field": image.field, "channel": image.channel, "z": image.z, "t": image.t} | said
            place = (facts["channel"], facts["z"], facts["t"])
            field = facts["field"] + last.get((well, *place), 0)
            mine.append(SourceImage(well, field, *place, name, status.st_size, status.st_mtime_ns, image.page))
        found += mine
        last |= _last_fields(mine) if several else {}
    return found


def _last_fields(images):
    """Highest field by well, channel, z and t."""
    last = {}
    for image in images:
        place = (image.well, image.channel, image.z, image.t)
        last[place] = max(last.get(place, 0), image.field)
    return last


def _without_false_positions(images, notes):
    """Drop the positions of wells whose fields would all lie on one spot."""
    wells = {}
    for image in images:
        wells.setdefault(image.well, {})[image.field] = (image.y_um, image.x_um)
    same = {well for well, fields in wells.items() if len(fields) > 1 and len(set(fields.values())) == 1}
    same = {well for well in same if (None, None) not in wells[well].values()}
    if same:
        notes.append(f"{len(same)} wells have one position for all fields, so none is used, e.g. {min(same)}")
    return [image._replace(y_um=None, x_um=None) if image.well in same else image for image in images]


def _decode(path, image):
    """Pixels of one plane."""
    opened, lock = _open(path, image.size, image.modified)
    place, index = image.page >> SCENE_BITS, image.page & ((1 << SCENE_BITS) - 1)
    direct = DIRECT.get(path.suffix.lower())
    with lock:
        if direct:
            return direct.read_plane(opened, place, index)
        opened.set_scene(place)
        dims = opened.dims
        check_size(dims.Y, dims.X, opened.dtype.itemsize)
        rest, z = divmod(index, dims.Z)
        t, c = divmod(rest, dims.C)
        return opened.get_image_dask_data("YX", T=t, C=c, Z=z).compute(scheduler="synchronous")
