"""Files of microscopes that bioio reads: CZI, ND2, LIF and others, each a well, or each scene in them a well or a field.

bioio is optional, and every format needs a plugin: ``pip install bioio bioio-czi`` (bioio-nd2, bioio-lif, bioio-dv,
bioio-sldy; bioio-bioformats for the rest, which runs Java). Wells come from the names of files, or of scenes, by a
pattern: nothing else says them alike in all formats. A field is the pattern's, else a scene's place in its file (or among
the scenes of its well), from 1; `z` and `t` are indexes, from 0; a channel is called as the plugin calls it.

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
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from plateloom.errors import DataFault, PlateLayoutError, UnreadableImageError
from plateloom.readers import Source, SourceImage, pattern
from plateloom.readers.folders import list_changes, list_files, name_well, sort_planes
from plateloom.readers.ome_tiff import FIRST_WELL, LENGTHS, distinct_names
from plateloom.readers.planes import LIMIT, decoded, gray_plane, plane_digest

PLUGINS = {
    ".czi": "bioio-czi",
    ".nd2": "bioio-nd2",
    ".lif": "bioio-lif",
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
SCENES = {"ZEN": r"P(?P<field>\d+)-(?P<well>[A-P]\d{1,2})", "first well": FIRST_WELL}
SCENE_BITS = 24  # of `page`: below are a scene's planes, above its number
MOST_PLANES = 1 << 21


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


class Scene(NamedTuple):
    """What a plugin says of one scene. Lengths are in µm, a place is that of y and x."""

    name: str
    sizes: tuple  # t, c, z
    channels: list
    colors: list
    wavelengths: list
    colored: bool
    pixel_size_um: float | None
    z_step_um: float | None
    place: tuple
    seconds: float | None
    interval: float | None


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
    images, broken, others, channels, counts, colored = [], {}, [], {}, {}, 0
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
            elif scene.colored:
                colored += 1
            else:
                where = name if params.names == "file" else f"scene {scene.name} of {name}"
                well = name_well(pattern.well_text(here), where)
                place = (name, well) if params.names == "file" else well
                counts[place] = counts.get(place, 0) + 1
                said = {"field": counts[place]} | pattern.said(here, where)
                images += _planes(name, status, number, scene, well, said, params)
                for channel, color in zip(scene.channels, scene.colors, strict=True):
                    channels.setdefault(said.get("channel", channel), {"color": color} if color else {})
        if len(images) > MOST_PLANES:
            raise PlateLayoutError(f"{str(source)!r} declares more than {MOST_PLANES} planes; no plate has so many")
    if not images and broken:
        raise PlateLayoutError(f"no file of {str(source)!r} can be opened; {next(iter(broken.values()))[2]}")
    if others:
        what = "files" if params.names == "file" else "scenes"
        notes.append(f"{len(others)} {what} do not match the pattern and are left out, e.g. {others[0]!r}")
    if colored:
        notes.append(f"{colored} scenes have several samples per pixel (colors) and are left out")
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
    _import_bioio(image.file)
    plane = gray_plane(image, decoded(image, _decode, Path(source, image.file), image))
    return plane, plane_digest(plane)


def recognise(source, names):
    """See `plateloom.readers.pattern.recognise`; by suffixes alone, since without bioio no file can be opened."""
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
        raise PlateLayoutError(
            f"reading {name!r} needs a package that is not installed: pip install bioio {_plugin_of(name)}"
        ) from None
    return bioio


def _plugin_of(name):
    """The plugin for a file's format."""
    fitting = [suffix for suffix in PLUGINS if name.lower().endswith(suffix)]
    return PLUGINS[max(fitting, key=len)] if fitting else OTHERS


@functools.lru_cache(maxsize=2)
def _open(path, size, modified):
    """An opened file and its lock: which scene it shows is the object's own state. Size and time keep a changed file apart."""
    bioio = _import_bioio(path.name)
    try:
        try:
            image = bioio.BioImage(path, chunk_dims=["Y", "X"])
        except TypeError:  # a plugin that chooses its chunks itself
            image = bioio.BioImage(path)
    except Exception as error:  # a plugin raises whatever it likes
        _raise_if_disk(error)
        plugin = _plugin_of(path.name)
        if type(error).__name__ == "UnsupportedFileFormatError" and not importlib.util.find_spec(
            plugin.replace("-", "_")
        ):
            raise PlateLayoutError(
                f"no plugin of bioio that is installed reads {path.name!r}: pip install bioio {plugin}"
            ) from None
        raise UnreadableImageError(f"{path.name!r}: {_first_line(error)}") from None
    return image, threading.Lock()


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
    with lock:
        try:
            pictures = _ome_images(image)
            return [_describe_scene(image, number, pictures.get(number)) for number in range(len(image.scenes))]
        except Exception as error:  # a plugin raises whatever it likes
            _raise_if_disk(error)
            raise UnreadableImageError(f"{path.name!r}: {_first_line(error)}") from None


def _raise_if_disk(error):
    """Let pass what the disk itself raised: trying again may help."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.ENOENT):
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


def _describe_scene(image, number, picture):
    image.set_scene(number)
    sizes = tuple(int(getattr(image.dims, axis, 1)) for axis in "TCZ")
    if math.prod(sizes) > MOST_PLANES:
        raise ValueError(f"{math.prod(sizes)} planes in one scene; no field has so many")
    said = _standard(image)
    pixels = getattr(picture, "pixels", None)
    listed = list(getattr(pixels, "channels", None) or [])[: sizes[1]]
    listed += [None] * (sizes[1] - len(listed))
    names = [str(name) for name in image.channel_names or []][: sizes[1]]
    y, x, z = (_size(image, pixels, axis) for axis in "yxz")
    square = None not in (y, x) and y > 0 and abs(y - x) <= 1e-3 * y
    place = tuple(_number(getattr(said, f"stage_position_{axis}", None)) for axis in "yx")
    if None in place:
        plane = next(iter(getattr(pixels, "planes", None) or []), None)
        place = tuple(_micrometers(plane, f"position_{axis}") for axis in "yx")
    return Scene(
        str(image.scenes[number]),
        sizes,
        distinct_names(names + [""] * (sizes[1] - len(names))),
        [_color(channel) for channel in listed],
        [_nanometers(channel) for channel in listed],
        "S" in image.dims.order,
        math.sqrt(y * x) if square else None,
        z,
        place,
        _date(getattr(said, "imaging_datetime", None)),
        _interval(getattr(said, "timelapse_interval", None)),
    )


def _standard(image):
    """The plugin's standard metadata; None where it fails to put them together."""
    try:
        return image.standard_metadata
    except Exception:  # what it fails at is not needed to read a plane
        return None


def _size(image, pixels, axis):
    """Size of a pixel, or distance of planes [µm]; None where it is not known."""
    found = _micrometers(pixels, f"physical_size_{axis}")
    return found if found is not None else _number(getattr(image.physical_pixel_sizes, axis.upper(), None))


def _micrometers(holder, name):
    """A length of OME's model [µm]; None where it has none, or no unit of length."""
    value = _number(getattr(holder, name, None))
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


def _number(value):
    """A finite number, or None."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


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


def _planes(name, status, number, scene, well, said, params):
    """The planes of one scene."""
    _, channels, depth = scene.sizes
    signs = [-1.0 if axis in params.mirror else 1.0 for axis in "yx"]
    y, x = (None, None) if None in scene.place else (sign * at for sign, at in zip(signs, scene.place, strict=True))
    for index in range(math.prod(scene.sizes)):
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
            (number << SCENE_BITS) + index,
            y_um=y,
            x_um=x,
            z_um=z * scene.z_step_um if scene.z_step_um and depth > 1 else None,
            pixel_size_um=scene.pixel_size_um,
            seconds=None if scene.seconds is None else scene.seconds + t * (scene.interval or 0.0),
            wavelength_nm=scene.wavelengths[c],
        )


def _stand_ins(broken, images):
    """Planes for files that cannot be opened: those of the first one that can, in the well that the name says."""
    found = []
    for name, (match, status, _) in broken.items():
        if match is None:
            continue
        well, said = name_well(pattern.well_text(match), name), pattern.said(match, name)
        for image in images:
            if image.file == images[0].file:
                facts = {"field": image.field, "channel": image.channel, "z": image.z, "t": image.t} | said
                place = (facts["field"], facts["channel"], facts["z"], facts["t"])
                found.append(SourceImage(well, *place, name, status.st_size, status.st_mtime_ns, image.page))
    return found


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
    number, index = image.page >> SCENE_BITS, image.page & ((1 << SCENE_BITS) - 1)
    with lock:
        opened.set_scene(number)
        dims = opened.dims
        if dims.Y * dims.X * opened.dtype.itemsize > LIMIT:
            raise ValueError(f"declares {dims.X} × {dims.Y} pixels")
        rest, z = divmod(index, dims.Z)
        t, c = divmod(rest, dims.C)
        return opened.get_image_dask_data("YX", T=t, C=c, Z=z).compute(scheduler="synchronous")
