"""ImageXpress plates as MetaXpress (Molecular Devices) exports them, or keeps them beside its database.

::

    NAME_Plate_3434/NAME.HTD                                        export; the .HTD may be in every folder
    NAME_Plate_3434/TimePoint_1/ZStep_2/NAME_B02_s1_w1.TIF
    2023-02-21/1334/[TimePoint_1/]ZStep_2/NAME_B02_s1_w1{GUID}.tif  database; {GUID} may stand in [ ]
    2023-02-21/1334/ZStep_2/NAME_B02_s1_w1_thumb{GUID}.tif          a thumbnail, which is never read

``_s1`` is absent where a well has one field, ``_w1`` where there is one wavelength, either folder where there is one time
or one plane. A file outside of ZStep folders, or in ZStep_0, is the only plane of its channel or the projection of the
planes in ZStep_1, ZStep_2 …; its z is 0. The export writes a channel that has one plane only into every ZStep folder.

The .HTD, where there is one, says the plate's rows and columns, the wavelengths' names, and what was to be imaged.
Positions [µm], pixel size [µm/px], wavelength [nm] and time stand in each TIFF's own description, and nowhere else. They
are read from few files: one per field of one well, since MetaXpress repeats the same fields in every well (two fields of
another well are compared; the next well is read where a file of the first is damaged), and up to three per channel. What
a file says of itself is compared when its pixels are read.
Positions are relative to the center of the well where the files say so, else to the mean of its fields; MetaXpress
counts y as the image's rows do. `z_um` is relative to the lowest plane of a field, `seconds` is set for the files that
were read, in the microscope's local time as if it were UTC. Old versions of MetaXpress write descriptions (MetaMorph's
STK tags) that are not read: there are no positions then, and no size of a pixel.

Nothing that MetaXpress writes marks the end of a plate: `finished` stays None.
"""

import datetime
import html
import itertools
import math
import re
import struct
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from plateloom.errors import PlateLayoutError, UnreadableImageError, some_of
from plateloom.readers import Source, SourceImage
from plateloom.readers.folders import list_files, sort_planes
from plateloom.readers.planes import load_plane
from plateloom.wells import parse_well, well_name

__all__ = ["Params", "listing", "load", "recognize", "scan"]

SUFFIXES = (".tif", ".tiff", ".htd")
INDEX_LIMIT = 1 << 20  # bytes of an .HTD; that of 1536 wells has 20 kB
DESCRIPTION_LIMIT = 1 << 20  # bytes of a TIFF's description; it has 6 kB
FIELDS, CHANNELS = 256, 16  # of which tags are read
SAMPLES = 3  # wells that are tried
RELATIVE = "OffsetFromWellCenterUmY", "OffsetFromWellCenterUmX"
TOLERANCE = 5.0  # µm that a field of another well may lie elsewhere; stages repeat to about one
MICROMETERS = {"um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "nm": 1e-3, "mm": 1e3}
PROPERTY = re.compile(rb'<(?:custom-)?prop\s+id="([^"<>]{1,64})"\s+type="[^"<>]*"\s+value="([^"<>]{0,256})"')

# The prefix is greedy: text that looks like a well in the plate's name is no well.
NAME = re.compile(
    r"(?:(?P<plate>.*)_)?(?P<well>(?:A[A-F]|[A-Z])(?:0[1-9]|[1-3]\d|4[0-8]))"
    r"(?i:(?:_s(?P<field>\d{1,4}))?(?:_w(?P<channel>\d{1,2}))?(?P<thumb>_thumb)?"
    r"(?P<guid>_?\[?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\]?)?\.tiff?)",
    re.ASCII,
)
STEP = re.compile(r"(TimePoint|ZStep)_(\d{1,6})", re.IGNORECASE | re.ASCII)


class Params(BaseModel):
    """What of a plate counts."""

    model_config = ConfigDict(extra="forbid")

    z: Literal["stack", "projection"] = Field(
        "stack",
        description="Which counts where a channel has both its planes and the projection that MetaXpress made of them. "
        "`stack`: conversion.z does what it says, whatever the microscope was told (its projection may be the "
        "best focus); the max of all planes is MetaXpress's maximum projection. `projection`: one file is read in place "
        "of many. Where only one of them is there, that one.",
    )
    positions: Literal["sampled", "none"] = Field(
        "sampled",
        description="`sampled`: fields lie where the tags of one well say, and a field of another well whose own tags say "
        "something else cannot be read. `none`: they have no positions, for a plate whose wells were imaged each in places "
        "of its own.",
    )


class _Listed(NamedTuple):
    """A file as its name and its folders describe it."""

    image: SourceImage
    plate: str
    root: str  # its folder without TimePoint and ZStep
    form: tuple  # whether it names a field, a channel, a time point


class _Plate(NamedTuple):
    """Files of one plate, before any choice of z."""

    images: list
    indexes: list  # (name, os.stat_result) of .HTD files, the one that counts first
    notes: list
    name: str = ""


class _Sample(NamedTuple):
    """The few files whose tags are read."""

    fields: dict  # field -> a plane of the well that is sampled
    others: dict  # the same for two fields of another well
    channels: dict  # channel -> planes of one of these fields: z 0, the lowest and the highest of a stack
    last: list  # a plane of the last time point

    def images(self):
        """Each file once."""
        found = itertools.chain(self.fields.values(), self.others.values(), *self.channels.values(), self.last)
        return list({image.file: image for image in found}.values())


def scan(source, params):
    """List the planes of a plate from names, the .HTD, and the tags of few files.

    Parameters
    ----------
    source : path
    params : Params

    Returns
    -------
    Source
        Channels are called by their number, ``1`` …; `channels` has the names that the .HTD gives them.

    Raises
    ------
    PlateLayoutError
        If there is no such folder, or it holds several plates; if two files claim the same plane; if the .HTD is none.
    """
    plate = _list_plate(source)
    if not plate.images:
        return Source([], notes=plate.notes)
    notes = list(plate.notes)
    index_name = plate.indexes[0][0] if plate.indexes else ""
    index = _read_index(source, index_name) if index_name else {}
    sample, tags = _read_sample(source, _samples(plate.images))
    copied = _find_copies(sample, tags)
    single = _drop_copies(plate.images, copied, notes)
    images = _choose_z(single, params.z, notes)
    if params.z == "stack":
        notes += _doubt_stacks(single, sample, tags)
    shape = _plate_shape(index, index_name, images, notes)
    if index:
        notes += _compare(index, index_name, plate.images)
    notes += _find_gaps(images)
    return Source(
        sort_planes(_describe(images, sample, tags, copied, notes, params)),
        shape=shape,
        channels=_channel_names(images, index, sample, tags),
        notes=notes,
        plate=plate.name,
        absent=_count_absent(index, plate.images),
    )


def load(source, image):
    """Read and decode one plane, see `plateloom.readers.planes.load_plane`; refuse one that lies elsewhere than is said."""
    plane, content = load_plane(source, image)
    if image.y_um is not None:
        tags = _read_tags(Path(source, image.file))
        own = [_value(tags, key) for key in RELATIVE]
        if None not in own and math.dist(own, (image.y_um, image.x_um)) > TOLERANCE:
            raise UnreadableImageError(
                f"{image.file}: lies at y {own[0]:g}, x {own[1]:g} µm of its well's center, field {image.field} of the first "
                f"well at {image.y_um:g}, {image.x_um:g}; if wells were imaged each in places of its own, set readers: "
                "{imagexpress: {positions: none}}"
            )
    return plane, content


def listing(source, params):
    """List what a scan depends on; see `plateloom.readers.folders.list_changes`.

    The .HTD, and the files whose tags are read, matter to all wells.
    """
    plate = _list_plate(source)
    for name, status in plate.indexes:
        yield "", f"{name}/{status.st_size}/{status.st_mtime_ns}"
    sampled = {image.file for sample in _samples(plate.images) for image in sample.images()}
    for image in plate.images:
        line = f"{image.file}/{image.size}/{image.modified}"
        yield image.well, line
        if image.file in sampled:
            yield "", line


def recognize(source, names):
    """Find a MetaXpress plate: by its .HTD, by GUIDs or TimePoint and ZStep folders, or by what a TIFF says of itself.

    See `plateloom.readers.pattern.recognize`.
    """
    files = [name.rpartition("/") for name in names if name.lower().endswith(SUFFIXES[:2])]
    found = [(folder, NAME.fullmatch(stem)) for folder, _, stem in files if not stem.startswith(".")]
    found = [(folder, match) for folder, match in found if not (match and match["thumb"])]
    planes = [(folder, match) for folder, match in found if match]
    if not planes:
        return None
    folder, first = planes[0][0], planes[0][1].string
    indexed = any(_is_index(Path(source, name)) for name in names if name.lower().endswith(".htd"))
    share = 1.0 if indexed else len(planes) / len(found)
    marked = any(match["guid"] or any(map(STEP.fullmatch, place.split("/"))) for place, match in planes)
    if share < 0.5 or not (indexed or marked or _is_metaxpress(Path(source, folder, first))):
        return None
    layout = "MetaXpress database" if any(match["guid"] for _, match in planes) else "MetaXpress export"
    return {"reader": "imagexpress", "params": {}, "layout": layout, "share": share}


def _is_index(path):
    try:
        with open(path, "rb") as file:
            return b"HTSInfoFile" in file.read(64)
    except OSError:
        return False


def _is_metaxpress(path):
    try:
        return _read_tags(path).get("ApplicationName") == "MetaMorph"
    except OSError:
        return False


def _list_plate(source):
    """List a plate's files; refuse several plates, leave out what is not named as the others are."""
    listed, indexes, strange = _list_all(source)
    # A picture that somebody saved under a well's name lacks what all of the microscope's files have, or has more.
    forms = Counter(one.form for one in listed)
    usual = max(forms, key=lambda form: (forms[form], form), default=None)
    strange += [one.image.file for one in listed if one.form != usual]
    listed = [one for one in listed if one.form == usual]
    listed = _choose_plate(source, listed, {Path(name).stem.lower() for name, _ in indexes}, strange)
    notes = []
    if strange:
        shown = some_of(map(repr, sorted(strange)), 2)
        notes.append(f"{len(strange)} TIFF files left out, named unlike the others: {shown}")
    prefix = listed[0].plate.lower() if listed else ""
    if foreign := [
        name for name, _ in indexes if listed and not _are_one_branch(name.rpartition("/")[0], listed[0].root)
    ]:
        notes.append(f"left out, since they lie in another plate's folder: {some_of(map(repr, foreign), 2)}")
        indexes = [one for one in indexes if one[0] not in foreign]
    indexes.sort(key=lambda one: (Path(one[0]).stem.lower() != prefix, one[0].count("/"), one[0]))
    return _Plate([one.image for one in listed], indexes, notes, listed[0].plate if listed else "")


def _are_one_branch(one, other):
    """Whether a folder is the other or lies in it, whichever way round; the source itself is ''."""
    one, other = one.split("/") if one else [], other.split("/") if other else []
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _list_all(source):
    """Images, .HTD files with their os.stat_result, and names of other TIFFs; thumbnails are passed over."""
    listed, indexes, strange, places, wells = [], [], [], {}, {}
    for name, entry in list_files(source, SUFFIXES):
        folder, _, stem = name.rpartition("/")
        found = NAME.fullmatch(stem)
        if stem.startswith(".") or (found and found["thumb"]):  # macOS leaves ._NAME beside each file that it copies
            continue
        status = entry.stat()
        if stem.lower().endswith(".htd"):
            indexes.append((name, status))
        elif not found:
            strange.append(name)
        else:
            if folder not in places:
                places[folder] = _place(folder)
            if found["well"] not in wells:
                wells[found["well"]] = well_name(*parse_well(found["well"]))
            root, t, z = places[folder]
            image = SourceImage(
                wells[found["well"]],
                int(found["field"] or 1),
                str(int(found["channel"] or 1)),
                z,
                t or 0,
                name,
                status.st_size,
                status.st_mtime_ns,
            )
            form = found["field"] is not None, found["channel"] is not None, t is not None
            listed.append(_Listed(image, found["plate"] or "", root, form))
    return listed, indexes, strange


def _place(folder):
    """Folder without TimePoint and ZStep, time point (None where there is none), and z (0 where there is none)."""
    root, found = [], {"timepoint": None, "zstep": 0}
    for part in folder.split("/"):
        if step := STEP.fullmatch(part):
            found[step[1].lower()] = int(step[2])
        else:
            root.append(part)
    return "/".join(root), found["timepoint"], found["zstep"]


def _choose_plate(source, listed, stems, strange):
    """Files of the plate that the .HTD is named for; refused where it is not clear which files are one plate."""
    names = sorted({one.plate for one in listed})
    if len(names) > 1:
        chosen = [name for name in names if name.lower() in stems]
        if len(chosen) != 1:
            raise PlateLayoutError(
                f"{str(source)!r} holds files of {len(names)} plates ({some_of(map(repr, chosen or names))}); "
                "give each plate a folder of its own"
            )
        strange += [one.image.file for one in listed if one.plate != chosen[0]]
        listed = [one for one in listed if one.plate == chosen[0]]
    roots = sorted({one.root for one in listed})
    if len(roots) > 1:
        shown = some_of(map(repr, roots))
        raise PlateLayoutError(
            f"{str(source)!r} holds {len(roots)} acquisitions ({shown}); give the folder of one of them"
        )
    return listed


def _read_index(source, name):
    """Read an .HTD: key -> values, both as text; a key that is not as it should be is left out.

    The file is a table of ``"Key", value, value …`` in the code page of the microscope's computer.
    """
    with open(Path(source, name), "rb") as file:
        data = file.read(INDEX_LIMIT + 1)
    if len(data) > INDEX_LIMIT:
        raise PlateLayoutError(
            f"{name!r} is larger than {INDEX_LIMIT >> 20} MiB; no .HTD is: remove it, or copy it again"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = re.split(r"[\r\n]+", text.strip())
    if "HTSInfoFile" not in lines[0]:
        raise PlateLayoutError(f"{name!r} does not begin with HTSInfoFile as an .HTD does: remove it, or copy it again")
    index = {}
    for line in lines:
        if found := re.match(r'\s*"?([A-Za-z]+\d*)"?\s*,(.*)', line):
            values = [value.strip().strip('"').strip() for value in re.findall(r'"[^"]*"|[^",]+', found[2])]
            if any(values):
                index.setdefault(found[1], [value for value in values if value])
    return index


def _number(index, key, most):
    """A number of the .HTD; None where it is absent or cannot be."""
    text = (index.get(key) or [""])[0]
    return int(text) if re.fullmatch(r"[0-9]{1,6}", text) and 0 < int(text) <= most else None


def _plate_shape(index, name, images, notes):
    """Rows and columns of the plate that the .HTD declares; None where it does not, or where the wells do not fit."""
    shape = _number(index, "YWells", 32), _number(index, "XWells", 48)
    if None in shape:
        return None
    cells = [parse_well(well) for well in {image.well for image in images}]
    if any(row >= shape[0] or column >= shape[1] for row, column in cells):
        notes.append(
            f"{name!r} declares {shape[0]} × {shape[1]} wells, but there are images of others; it is not believed"
        )
        return None
    return shape


def _compare(index, name, images):
    """What the .HTD declares and the files lack, and the other way round; one line each."""
    lines = []

    def tell(kind, declared, found, label=str):
        if absent := sorted(declared - found):
            shown = some_of(map(label, absent))
            lines.append(f"absent {kind}, {len(absent)} of {len(declared)} that {name!r} declares: {shown}")
        if unknown := sorted(found - declared):
            shown = some_of(map(label, unknown))
            lines.append(f"{kind} that {name!r} does not declare, {len(unknown)} of {len(found)}: {shown}")

    def named(wave):
        return f"{wave} ({_wave_name(index, wave)})" if _wave_name(index, wave) else str(wave)

    if selected := _declared_wells(index):
        tell("wells", selected, {image.well for image in images})
    if waves := _declared_waves(index):
        tell("channels", waves, {int(image.channel) for image in images}, named)
    if fields := _declared_fields(index):
        tell("fields", set(range(1, fields + 1)), {image.field for image in images})
    if times := _number(index, "TimePoints", 100_000):
        tell("time points", set(range(1, times + 1)), {image.t or 1 for image in images})
    steps = 1 if index.get("ZSeries", [""])[0].upper() == "FALSE" else _number(index, "ZSteps", 100_000)
    found = {image.z for image in images if image.z}
    if steps and (found or index.get("ZProjection", [""])[0].upper() != "TRUE"):  # of a stack, the projection may do
        tell("z steps", set(range(1, steps + 1)), found or {1})
    return lines


def _count_absent(index, images):
    """Images that the .HTD declares and the files lack, planes and time points apart; 0 where it does not say all of it."""
    declared = len(_declared_wells(index)) * len(_declared_waves(index)) * _declared_fields(index) if index else 0
    return max(0, declared - len({(image.well, image.field, image.channel) for image in images}))


def _declared_wells(index):
    """Wells that were to be imaged."""
    return {
        well_name(row, column)
        for row in range(32)
        for column, value in enumerate(index.get(f"WellsSelection{row + 1}", [])[:48])
        if value.upper() == "TRUE"
    }


def _declared_waves(index):
    """Numbers of the wavelengths that were to be imaged."""
    if index.get("Waves", [""])[0].upper() == "FALSE":
        return {1}
    count = _number(index, "NWavelengths", 99) or 0
    return {wave for wave in range(1, count + 1) if index.get(f"WaveCollect{wave}") != ["0"]}


def _declared_fields(index):
    """Number of fields in a well; 0 where the .HTD does not say."""
    if index.get("Sites", [""])[0].upper() == "FALSE":
        return 1
    rows, columns = _number(index, "YSites", 100) or 0, _number(index, "XSites", 100) or 0
    chosen = sum(
        value.upper() == "TRUE" for row in range(rows) for value in index.get(f"SiteSelection{row + 1}", [])[:columns]
    )
    return chosen or rows * columns


def _samples(images):
    """Choose the files whose tags are read, from names alone; the first sample counts unless a file of it is damaged.

    The first wells in the plate's order that have all fields: they stay the same while a plate grows.
    """
    fields = {}
    for image in images:
        fields.setdefault(image.well, set()).add(image.field)
    most = max(map(len, fields.values()), default=0)
    wells = sorted((well for well, found in fields.items() if len(found) == most), key=parse_well)[:SAMPLES]
    planes = {well: {field: [] for field in sorted(fields[well])} for well in wells}
    for image in images:
        if image.well in planes:
            planes[image.well][image.field].append(image)
    for found in itertools.chain(*(found.values() for found in planes.values())):
        found.sort(key=lambda image: (image.t, int(image.channel), image.z))
    firsts = {well: {field: found[0] for field, found in planes[well].items()} for well in wells}
    samples = []
    for i, well in enumerate(wells):
        other = firsts[wells[(i + 1) % len(wells)]] if len(wells) > 1 else {}
        fullest = max(planes[well].values(), key=len)
        samples.append(
            _Sample(
                fields=firsts[well] if most <= FIELDS else {},
                others={field: other[field] for field in _ends(other)},
                channels=_channel_planes(planes[well].values()),
                last=[next(image for image in fullest if image.t == fullest[-1].t)],
            )
        )
    return samples


def _channel_planes(fields):
    """Channel -> its first plane, and the lowest and the highest of its stack, in the field that has most images.

    What that field lacks comes from the next. Of several times the first counts.
    """
    channels = {}
    for images in sorted(fields, key=len, reverse=True):
        for image in images:
            if image.t == images[0].t:
                channels.setdefault(image.channel, {}).setdefault(image.field, []).append(image)
    chosen = {channel: next(iter(found.values())) for channel, found in list(channels.items())[:CHANNELS]}
    return {
        channel: list({image.z: image for image in (found[0], found[min(1, len(found) - 1)], found[-1])}.values())
        for channel, found in chosen.items()
    }


def _ends(fields):
    """The first and the last field."""
    return sorted({min(fields), max(fields)}) if fields else []


def _read_sample(source, samples):
    """The first sample whose own well has tags in all files, or else the first, and these tags by file."""
    found = []
    for sample in samples:
        tags = {image.file: _read_tags(Path(source, image.file)) for image in sample.images()}
        needed = itertools.chain(sample.fields.values(), *sample.channels.values())
        if all(tags[image.file] for image in needed):
            return sample, tags
        found.append((sample, tags))
    return found[0]


def _read_tags(path):
    """What MetaXpress says of a plane in its description: id -> value; empty where it says nothing."""
    return {
        html.unescape(key.decode("latin-1")): html.unescape(_decode(value)).strip()
        for key, value in PROPERTY.findall(_read_description(path))
    }


def _decode(data):
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _read_description(path):
    """ImageDescription of a TIFF's first page, as bytes; empty where there is none. Reads a few kB of the file."""
    with open(path, "rb") as file:
        head = file.read(8)
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
        if order is None or len(head) < 8:
            return b""
        file.seek(struct.unpack(order + "I", head[4:])[0])
        count = file.read(2)
        table = file.read(12 * struct.unpack(order + "H", count)[0]) if len(count) == 2 else b""
        for start in range(0, len(table) - 11, 12):
            code, _, length, offset = struct.unpack_from(order + "HHII", table, start)
            if code == 270 and length > 4:
                file.seek(offset)
                return file.read(min(length, DESCRIPTION_LIMIT))
    return b""


def _value(tags, key):
    """A number among the tags; None where it is absent, none, or beyond what a microscope measures."""
    try:
        value = float(tags.get(key, ""))
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None


def _pixel_size(tags):
    """Size of a pixel [µm/px]; None where it is not said, or pixels are not square."""
    y, x = _value(tags, "spatial-calibration-y"), _value(tags, "spatial-calibration-x")
    unit = MICROMETERS.get(tags.get("spatial-calibration-units", "").lower())
    if not unit or not x or not y or tags.get("spatial-calibration-state") == "off":
        return None
    size = x * unit
    return size if 1e-3 < size < 1e3 and abs(x - y) <= 0.01 * x else None


def _wavelength(tags):
    """[nm]; None where it is not said. MetaXpress writes 0 for light that has none."""
    value = _value(tags, "wavelength")
    return value if value and 100 <= value <= 3000 else None


def _seconds(tags):
    """When a plane was taken, in local time as if it were UTC [s]."""
    try:
        taken = datetime.datetime.strptime(tags.get("acquisition-time-local", ""), "%Y%m%d %H:%M:%S.%f")
    except ValueError:
        return None
    return taken.replace(tzinfo=datetime.UTC).timestamp()


def _identity(tags):
    """What tells a plane from all others, copies of its file excepted; None where the tags do not say."""
    if tags.get("plane-guid"):
        return tags["plane-guid"]
    found = tags.get("acquisition-time-local"), tags.get("z-position")
    return found if all(found) else None


def _find_copies(sample, tags):
    """Channels that have one plane, which the export has written into every ZStep folder.

    Equal sizes alone mean nothing, since planes that are not compressed have them all; the tags decide.
    """
    return {
        channel
        for channel, planes in sample.channels.items()
        if len(planes) > 1
        and len({image.size for image in planes}) == 1
        and len({_identity(tags[image.file]) for image in planes}) == 1
        and _identity(tags[planes[0].file]) is not None
    }


def _stacks(images):
    """Planes by well, field, channel and time, each list in the order of z."""
    stacks = {}
    for image in images:
        stacks.setdefault((image.well, image.field, image.channel, image.t), []).append(image)
    for planes in stacks.values():
        planes.sort(key=lambda image: image.z)
    return stacks


def _drop_copies(images, copied, notes):
    """Keep one of the files of a channel that has one plane only; a stack of other sizes is not believed to be copies."""
    if not copied:
        return images
    kept = []
    for (_, _, channel, _), planes in _stacks(images).items():
        same = channel in copied and len({image.size for image in planes}) == 1
        kept += planes[:1] if same else planes
    shown = some_of(sorted(copied, key=int))
    notes.append(f"channel {shown}: one plane, which the export repeats in every ZStep folder, counts once")
    return kept


def _choose_z(images, z, notes):
    """Where a channel has a stack and its projection, keep what the parameter says."""
    kept, both, other = [], set(), Counter()
    for (_, _, channel, _), planes in _stacks(images).items():
        parts = {"projection": [p for p in planes if p.z == 0], "stack": [p for p in planes if p.z]}
        kept += parts[z] or planes
        if all(parts.values()):
            both.add(channel)
        elif not parts[z]:
            other[channel] += 1
    if both:
        shown = some_of(sorted(both, key=int))
        notes.append(f"channel {shown}: of stack and projection, both there, the {z} counts (parameter z)")
    if mixed := sum(other[channel] for channel in both):
        instead = "projection" if z == "stack" else "stack"
        notes.append(f"images without a {z} where others of their channel have one: {mixed}; their {instead} counts")
    return kept


def _doubt_stacks(images, sample, tags):
    """Where a projection would not be what a stack gives: made in another way, or of more planes than there are."""
    lines = []
    for channel, planes in sample.channels.items():
        steps = len({image.z for image in images if image.channel == channel and image.z})
        if planes[0].z or not steps:
            continue
        said = tags[planes[0].file]
        method = said.get("Z Projection Method", "Maximum")
        if method != "Maximum":
            lines.append(f"channel {channel}: MetaXpress's projection is {method!r}, no maximum")
        step, thickness = _value(said, "Z Projection Step Size"), _value(said, "Z Thickness")
        if step and thickness and (made := round(thickness / step) + 1) > steps:
            lines.append(f"channel {channel}: MetaXpress's projection was made of {made} planes, {steps} are there")
    return lines


def _find_gaps(images):
    """Fields that lack a channel or a time point, and stacks that lack planes."""
    lines, stacks, channels = [], _stacks(images), {}
    kinds = [sorted({key[i] for key in stacks}) for i in range(4)]
    if absent := math.prod(map(len, kinds)) - len(stacks):
        well, field, channel, t = next(key for key in itertools.product(*kinds) if key not in stacks)
        lines.append(
            f"{absent} of {absent + len(stacks)} images are absent, the first in well {well}, field {field}, "
            f"channel {channel}, t {t}"
        )
    for (_, _, channel, _), planes in stacks.items():
        channels.setdefault(channel, []).append({image.z for image in planes})
    for channel, found in sorted(channels.items()):
        steps = len(set().union(*found) - {0})
        if short := sum(len(planes) < steps for planes in found):
            lines.append(f"channel {channel}: {short} of {len(found)} stacks lack planes that others have")
    return lines


def _describe(images, sample, tags, copied, notes, params):
    """Give each plane what the tags of the sampled ones say."""
    positions, reason = _positions(sample, tags) if params.positions == "sampled" else ({}, "")
    if reason:
        notes.append(f"fields have no positions: {reason}")
    elif len(positions) > 1 and len({image.well for image in images}) > 2 and not _are_relative(sample, tags):
        notes.append(
            "positions are those of the stage in one well, compared with one other: if further wells were imaged in places "
            "of their own, set readers: {imagexpress: {positions: none}}"
        )
    sizes = {channel: _pixel_size(tags[planes[0].file]) for channel, planes in sample.channels.items()}
    if unknown := sorted({image.channel for image in images if sizes.get(image.channel) is None}, key=int):
        notes.append(f"channel {some_of(unknown)}: tags do not say the size of a pixel")
    waves = {channel: _wavelength(tags[planes[0].file]) for channel, planes in sample.channels.items()}
    seconds = {file: _seconds(found) for file, found in tags.items()}
    heights = _heights(sample, tags, copied)
    return [
        image._replace(
            y_um=positions.get(image.field, (None, None))[0],
            x_um=positions.get(image.field, (None, None))[1],
            z_um=heights.get(image.channel, lambda z: None)(image.z) if image.z else None,
            pixel_size_um=sizes.get(image.channel),
            seconds=seconds.get(image.file),
            wavelength_nm=waves.get(image.channel),
        )
        for image in images
    ]


def _are_relative(sample, tags):
    """Whether files say where they lie in their well, so that each can be judged by itself when it is read."""
    return not _places(sample.fields, tags, RELATIVE)[1]


def _positions(sample, tags):
    """Field -> y and x of its center [µm], relative to a point of the well; or why there are none."""
    if not sample.fields:
        return {}, f"more than {FIELDS} per well"
    relative = _are_relative(sample, tags)
    keys = RELATIVE if relative else ("stage-position-y", "stage-position-x")
    found, unknown = _places(sample.fields, tags, keys)
    if unknown:
        return {}, f"{unknown!r} does not say where it lies"
    if len({(round(y), round(x)) for y, x in found.values()}) < len(found):
        return {}, "several fields of a well claim the same place"
    if not _same_places(found, _places(sample.others, tags, keys)[0]):
        wells = sample.fields[min(found)].well, next(iter(sample.others.values())).well
        return {}, f"wells {' and '.join(wells)} have their fields in other places"
    y, x = (0.0, 0.0) if relative else (math.fsum(axis) / len(found) for axis in zip(*found.values(), strict=True))
    # Adding zero makes -0.0 a 0.0.
    return {field: (round(place[0] - y, 3) + 0.0, round(place[1] - x, 3) + 0.0) for field, place in found.items()}, ""


def _places(planes, tags, keys):
    """Field -> y and x as the tags say them; and the first file that says nothing."""
    places = {field: tuple(_value(tags[image.file], key) for key in keys) for field, image in planes.items()}
    return places, next((planes[field].file for field, place in places.items() if None in place), "")


def _same_places(one, other):
    """Whether two fields lie as far apart in another well; true where that well does not say."""
    first, last = min(one), max(one)
    if not {first, last} <= set(other) or None in other[first] + other[last]:
        return True
    return all(abs((one[last][i] - one[first][i]) - (other[last][i] - other[first][i])) <= TOLERANCE for i in (0, 1))


def _heights(sample, tags, copied):
    """Channel -> function of z that gives a plane's height above the lowest one [µm]."""
    ends = {}
    for channel, planes in sample.channels.items():
        found = [(image.z, _value(tags[image.file], "z-position")) for image in planes if image.z]
        if found and channel not in copied and None not in found[0] + found[-1]:
            ends[channel] = found[0] + found[-1]
    lowest = min((min(low, high) for _, low, _, high in ends.values()), default=0.0)

    def height(first, low, last, high):
        step = (high - low) / (last - first) if last > first else 0.0
        return lambda z: round(low - lowest + (z - first) * step, 3)

    return {channel: height(*found) for channel, found in ends.items()}


def _channel_names(images, index, sample, tags):
    """Names that the .HTD gives to channels, or else those of the microscope's setting for them."""
    names = {}
    for channel in sorted({image.channel for image in images}, key=int):
        name = _wave_name(index, channel)
        if not name and channel in sample.channels:
            name = _printable(tags[sample.channels[channel][0].file].get("_IllumSetting_", ""))
        names[channel] = {"name": name} if name else {}
    return names


def _wave_name(index, wave):
    return _printable(next(iter(index.get(f"WaveName{wave}", [])), ""))


def _printable(text):
    return "".join(letter for letter in text if letter.isprintable()).strip()
