"""Yokogawa CellVoyager CV7000 and CV8000: one gray TIFF (or PNG) per plane, and XML files beside them.

A measurement is one folder::

    MeasurementData.mlf      one record per plane: well, field, channel, z, time point, stage position, file name
    MeasurementDetail.mrf    plate format; per channel the pixel size and the correction image; when it began and ended
    PROTOCOL.mes             what was asked for: names, colors and filters of the channels, slices of the stacks
    PLATE.wpi, PRODUCT.wpp   the plate and its product: rows and columns
    DC_*.tif, SC_*.tif       dark and shading corrections of a camera and a filter: never images of the plate
    PLATE_B03_T0001F001L01A01Z01C01.tif     well, time point, field, timeline, action, z, channel

All but the images may be missing. Without the .mlf, file names say which plane a file is and positions are unknown.

Positions: X and Y of a record are the stage's, relative to the well's center [µm]; Y grows upwards, against the rows of
the image, so `y_um` is -Y (fields are counted from the upper left, at the largest Y; the steps of a grid are the
image's height and width). Z grows from the first slice to the last [µm]. Pixel sizes are in µm, times in ISO 8601 with
the zone. Rows, columns, fields, z, time points, timelines, actions and channels are counted from 1; `field`, `z` and
`t` are kept as they are, and a channel is called by its number, `1`. Wells of 1536-well plates may be named by their
place in one of 96 blocks of 4 × 4, as in `B03.c2`.

End marker: `EndTime` of the .mrf, later than its `BeginTime`. Without a .mrf nothing tells (`Source.finished` is None).

A record of the type `ERR` is a plane (or a field) that was not taken, mostly since the autofocus failed. A projection
that the instrument computed has `ZImageProcessing` in its record (`Maximum`, `Minimum`, `Sum`), or no `Z` in its name.
"""

import functools
import math
import re
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple
from xml.parsers.expat import errors

from pydantic import BaseModel, ConfigDict, Field

from plateloom.errors import PlateLayoutError, UnreadableImageError, some_of
from plateloom.readers import Source, SourceImage
from plateloom.readers.folders import IMAGES, below, list_changes, list_files, name_well, sort_planes
from plateloom.readers.markup import elements
from plateloom.readers.planes import load_plane
from plateloom.wells import parse_well, well_name

NAME = re.compile(
    r"(?:(?P<plate>.*)_)?(?P<well>[A-Z]{1,2}[0-9]{1,2}(?:\.[A-D][1-4])?)_T(?P<t>[0-9]{1,6})F(?P<field>[0-9]{1,6})"
    r"(?:L(?P<timeline>[0-9]{1,6}))?(?:A(?P<action>[0-9]{1,6}))?(?:Z(?P<z>[0-9]{1,6}))?C(?P<channel>[0-9]{1,6})"
    r"\.(?:tiff?|png|jpe?g)",
    re.IGNORECASE,
)
NUMBER = re.compile("[0-9]{1,6}")
CORRECTION = re.compile(r"[DS]C_.*", re.IGNORECASE)
DARK = re.compile(r"dc_.*_cam0*([0-9]+)")  # without the suffix, in small letters
BAND = re.compile(r"BP ?([0-9]{3,4}(?:\.[0-9]+)?)[/-][0-9]")  # center and width of a band-pass filter [nm]
COLOR = re.compile(r"#?(?:[0-9A-Fa-f]{2})?([0-9A-Fa-f]{6})")  # opacity first, where there are eight digits
METADATA = (".mlf", ".mrf", ".mes", ".wpi", ".wpp")
RECORDS, DETAIL = "measurementdata.mlf", "measurementdetail.mrf"
KINDS = ("stack", "Maximum", "Minimum", "Sum")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Params(BaseModel):
    """What the folder does not say by itself."""

    model_config = ConfigDict(extra="forbid")

    z: Literal[KINDS] = Field(
        "stack",
        description="Which planes of a channel count where it has several kinds: those of the `stack`, or the projection that the instrument computed "
        "(`Maximum`, `Minimum`, `Sum`). A channel that lacks this kind counts with what it has.",
    )
    absent: Literal["leave out", "keep"] = Field(
        "leave out",
        description="What becomes of planes that the metadata list and that have no file: `leave out` counts them in the notes (a plate without any file is an "
        "error); `keep` leaves them in the table with size 0 and time 0, also where no file is left at all; each of them is then an unreadable image.",
    )
    records: str = Field(
        "",
        description="The .mlf file that counts, as a path below the source folder; empty: `MeasurementData.mlf`, the one nearest to the source folder.",
    )
    detail: str = Field(
        "",
        description="The .mrf file that counts, as a path below the source folder; empty: `MeasurementDetail.mrf`, the one beside the .mlf file first.",
    )


class Record(NamedTuple):
    """One plane as a record or a file's name says it; `kind` is `stack` or the projection's method."""

    well: str
    field: int
    channel: int
    z: int
    t: int
    timeline: int
    action: int
    kind: str
    file: str
    y_um: float | None = None
    x_um: float | None = None
    z_um: float | None = None
    seconds: float | None = None


class Detail(NamedTuple):
    """What a .mrf file says; pixel sizes [µm/px], names of correction images and numbers of cameras by channel."""

    shape: tuple | None
    finished: bool | None
    settings: str
    plate: str
    product: str
    pixel_size_um: dict
    correction: dict
    camera: dict


def scan(source, params):
    """List the planes of a plate from its metadata files, or from file names where there are none.

    Parameters
    ----------
    source : path
    params : Params

    Returns
    -------
    Source
        `channels` have, where known, `name`, `color`, and `correction` and `dark`: the files of the shading correction
        and of the camera's dark image, relative to the source folder.

    Raises
    ------
    PlateLayoutError
        If there is no such folder, a .mlf or .mrf file is broken or contradicts the file names' wells, two files claim
        the same plane, or no image is there.
    """
    files = dict(list_files(source, IMAGES + METADATA))
    records_file = _pick(source, files, params.records, RECORDS, "records")
    folder = records_file.rpartition("/")[0] if records_file else ""
    detail_file = _pick(source, files, params.detail, DETAIL, "detail", beside=folder)
    notes = []
    if detail_file:
        detail = _read_detail(source, detail_file, notes)
        folder = detail_file.rpartition("/")[0]
    else:
        notes.append("no MeasurementDetail.mrf: pixel size and end of the measurement are unknown")
        detail = Detail(None, None, "", "", "", {}, {}, {})
    settings = _read_settings(source, _beside(files, folder, detail.settings, ".mes"), notes)
    corrections = _corrections(files, detail)
    if records_file:
        records = _read_records(source, records_file, notes)
        located = _locate(source, files, records_file, records, notes)
    else:
        records = _read_names(files, corrections, notes)
        located = [(record, files[record.file]) for record in records]
    absent = sum(status is None for _, status in located)
    located, channel_of = _choose(located, params, records_file, notes)
    images = [
        SourceImage(
            record.well,
            record.field,
            channel_of[record.channel, record.timeline, record.action],
            record.z,
            record.t,
            record.file,
            *entry,
            y_um=record.y_um,
            x_um=record.x_um,
            z_um=record.z_um if record.z_um is not None else _slice_um(settings.get(record.channel), record),
            pixel_size_um=detail.pixel_size_um.get(record.channel),
            seconds=record.seconds,
            wavelength_nm=_wavelength(record.channel, settings, detail),
        )
        for record, entry in located
    ]
    if records_file:
        _note_others(files, {image.file for image in images} | {record.file for record in records} | corrections, notes)
    _note_pixel_sizes(images, detail_file, notes)
    shape = detail.shape or _plate_shape(source, files, folder, detail, notes)
    return Source(
        sort_planes(images),
        shape=_fitting(shape, images, notes),
        channels=_describe(files, channel_of, settings, detail),
        finished=detail.finished,
        notes=notes,
        plate=detail.plate.replace("\\", "/").rpartition("/")[2].removesuffix(".wpi"),
        absent=absent,
    )


def listing(source, params):
    """See `plateloom.readers.folders.list_changes`; a file that is not named as a plane matters to all wells."""

    def well_of(name):
        found = NAME.fullmatch(name.rpartition("/")[2])
        return (_spelled(found["well"]) or "") if found else ""

    return list_changes(source, IMAGES + METADATA, well_of)


def load(source, image):
    """See `plateloom.readers.planes.load_plane`; a plane that only the metadata know is unreadable."""
    if not image.size and not image.modified:
        raise UnreadableImageError(f"{image.file}: listed in the metadata, but there was no such file")
    return load_plane(source, image)


def recognize(source, names):
    """See `plateloom.readers.pattern.recognize`; sure where the .mlf or the .mrf is there, else by file names."""
    folders = {""} | {name.rpartition("/")[0] for name in names}
    wanted = ("MeasurementData.mlf", "MeasurementDetail.mrf")
    if any(name.rpartition("/")[2].lower() in (RECORDS, DETAIL) for name in names) or any(
        Path(source, folder, name).is_file() for folder in folders for name in wanted
    ):
        share = 1.0
    else:
        stems = [name.rpartition("/")[2] for name in names if name.lower().endswith(IMAGES)]
        found = [NAME.fullmatch(stem) for stem in stems]
        # Of all vendors this one alone counts timelines and actions.
        sure = sum(bool(match and match["timeline"] and match["action"]) for match in found)
        images = sum(bool(match or not CORRECTION.fullmatch(stem)) for match, stem in zip(found, stems, strict=True))
        share = sure / images if images else 0.0
    if share < 0.5:
        return None
    return {"reader": "yokogawa", "params": {}, "layout": "CellVoyager", "share": share}


def _pick(source, files, wanted, standard, parameter, beside=""):
    """The metadata file that counts; None where there is none."""
    if wanted:
        name = below(source, wanted)
        if name not in files:
            raise PlateLayoutError(f"no file {wanted!r} below {str(source)!r}, as the parameter `{parameter}` says")
        return name
    found = [name for name in files if name.lower().endswith(standard[-4:])]
    found = [name for name in found if name.rpartition("/")[2].lower() == standard] or found

    def rank(name):
        return name.rpartition("/")[0] != beside, name.count("/")

    found.sort(key=rank)
    if len(found) > 1 and rank(found[0]) == rank(found[1]):
        raise PlateLayoutError(
            f"{found[0]!r} and {found[1]!r} both describe a measurement; choose one with the parameter `{parameter}`, "
            "or give its folder as the plate's source"
        )
    return found[0] if found else None


def _beside(files, folder, name, suffix):
    """A metadata file by its name in the .mrf; where that has none, the only one of its kind in the folder, or None."""
    name = name.replace("\\", "/").rpartition("/")[2].lower()
    found = [file for file in files if file.lower().endswith(suffix) and file.rpartition("/")[0] == folder]
    if name:
        found = [file for file in found if file.rpartition("/")[2].lower() == name][:1]
    return found[0] if len(found) == 1 else None


def _elements(source, file, *tags, root):
    """Elements of a file whose root is as expected; some releases write one `>` too many after it."""
    path = Path(source, file)
    try:
        for number, element in enumerate(elements(path, *tags, root=True)):
            if number == 0 and element.tag != root:
                raise PlateLayoutError(f"{file!r} is no {root} file: its root element is {element.tag!r}")
            yield element
    except PlateLayoutError as error:
        junk = errors.codes[errors.XML_ERROR_JUNK_AFTER_DOC_ELEMENT]
        if getattr(error.__context__, "code", None) != junk or not _tail(path).endswith(b">>"):
            raise


def _tail(path):
    """The last bytes of a file, without white space at the end."""
    with open(path, "rb") as file:
        file.seek(max(path.stat().st_size - 64, 0))
        return file.read().rstrip()


def _count(element, name, where, default=None):
    """An attribute as a number counted from 1."""
    text = element.get(name)
    if not text and default is not None:
        return default
    if text is None or not NUMBER.fullmatch(text.strip()) or not int(text):
        raise PlateLayoutError(f"{where}: {name} is {text!r}, expected a number from 1 on")
    return int(text)


def _real(element, name, where):
    """An attribute as a finite number; None where it is missing or empty."""
    text = (element.get(name) or "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise PlateLayoutError(f"{where}: {name} is {text!r}, expected a number")
    return value


def _seconds(text):
    """Time since 1970 [s]; None where the text is no time. Without a zone it is taken as UTC."""
    try:
        when = datetime.fromisoformat((text or "").strip())
    except ValueError:
        return None
    return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - EPOCH).total_seconds()


def _shape_of(element, rows, columns):
    """Rows and columns of a plate; None where they are missing or of no plate."""
    found = [NUMBER.fullmatch((element.get(name) or "").strip()) for name in (rows, columns)]
    if not all(found):
        return None
    shape = tuple(int(match[0]) for match in found)
    return shape if 0 < shape[0] <= 32 and 0 < shape[1] <= 48 else None


def _read_detail(source, file, notes):
    """A .mrf file as a `Detail`."""
    read = _elements(source, file, "MeasurementChannel", "MeasurementSamplePlate", root="MeasurementDetail")
    facts = dict(next(read).attrib)
    plate, sizes, correction, camera = {}, {}, {}, {}
    for element in read:
        if element.tag == "MeasurementSamplePlate":
            plate = dict(element.attrib)
            continue
        where = f"a channel of {file!r}"
        channel = _count(element, "Ch", where)
        width, height = (_real(element, f"{side}PixelDimension", where) for side in ("Horizontal", "Vertical"))
        if width and width > 0:
            if height and abs(height - width) > 1e-3 * width:
                notes.append(
                    f"pixels of channel {channel} are {width} × {height} µm, not square: their size is left out"
                )
            else:
                sizes[channel] = width
        correction[channel] = element.get("ShadingCorrectionSource", "").replace("\\", "/").rpartition("/")[2]
        camera[channel] = (element.get("CameraNumber") or "").strip().lstrip("0")
    begin, end = _seconds(facts.get("BeginTime")), _seconds(facts.get("EndTime"))
    finished = end is not None and (begin is None or end > begin)
    if not finished:
        notes.append(f"{file!r} says no time at which the measurement ended: it still runs, or was stopped")
    return Detail(
        _shape_of(facts, "RowCount", "ColumnCount"),
        finished,
        facts.get("MeasurementSettingFileName", ""),
        plate.get("WellPlateFileName", ""),
        plate.get("WellPlateProductFileName", ""),
        sizes,
        correction,
        camera,
    )


def _read_settings(source, file, notes):
    """What a .mes file says of each channel: `name`, `color`, `band`, and `bottom` and `step` of its stack [µm]."""
    settings, slices = defaultdict(dict), defaultdict(list)
    if not file:
        return settings
    stacks = ("ActionAcquire3D", "ActionAcquireBF3D")
    try:
        for element in _elements(source, file, "ChannelList", *stacks, root="MeasurementSetting"):
            if element.tag in stacks:
                bottom, step = (_real(element, name, file) for name in ("BottomDistance", "SliceLength"))
                for child in element.iter("Ch"):
                    slices[(child.text or "").strip()].append((bottom, step))
            for channel in element.iter("Channel") if element.tag == "ChannelList" else ():
                facts = settings[_count(channel, "Ch", f"a channel of {file!r}")]
                facts["name"] = (channel.get("Target") or channel.get("Fluorophore") or "").strip()
                color = COLOR.fullmatch((channel.get("Color") or "").strip())
                facts["color"] = color[1].upper() if color else ""
                facts["band"] = channel.get("Acquisition") or ""
    except PlateLayoutError as error:
        notes.append(f"{error}; channels have no names")
        return defaultdict(dict)
    for channel, found in slices.items():
        if len(found) == 1 and None not in found[0] and NUMBER.fullmatch(channel):
            settings[int(channel)]["bottom"], settings[int(channel)]["step"] = found[0]
    return settings


def _plate_shape(source, files, folder, detail, notes):
    """Rows and columns as the .wpi or the .wpp file says them; None where neither does."""
    for name, suffix, root in (
        (detail.plate, ".wpi", "WellPlate"),
        (detail.product, ".wpp", "WellPlateProduct"),
    ):
        file = _beside(files, folder, name, suffix)
        try:
            for element in _elements(source, file, root=root) if file else ():
                if shape := _shape_of(element, "Rows", "Columns"):
                    return shape
        except PlateLayoutError as error:
            notes.append(str(error))
    return None


def _read_records(source, file, notes):
    """The image records of a .mlf file; `Record.file` is relative to the folder of that file."""
    records, others, wells, renamed, nameless = [], Counter(), {}, 0, 0
    failed, first_failed, failed_wells = 0, "", set()
    read = _elements(source, file, "MeasurementRecord", root="MeasurementData")
    next(read)
    for number, element in enumerate(read, 1):
        where = f"record {number} of {file!r}"
        kind = element.get("Type", "IMG")
        text = (element.text or "").strip()
        if kind == "ERR":
            failed += 1
            first_failed = first_failed or text[:80]
            if element.get("Row") and element.get("Column"):
                failed_wells.add(_record_well(element, where, wells))
            continue
        if kind != "IMG":
            others[kind[:40]] += 1
            continue
        if not text:
            nameless += 1
            continue
        well = _record_well(element, where, wells)
        name = text.replace("\\", "/")
        found = NAME.fullmatch(name.rpartition("/")[2])
        if found and (named := _well_of(found["well"], name)) != well:
            raise PlateLayoutError(f"{where} puts {name!r} into well {well}, its name says {named}; mend one of them")
        z_missing = found is not None and not found["z"]
        record = Record(
            well,
            _count(element, "FieldIndex", where),
            _count(element, "Ch", where),
            _count(element, "ZIndex", where, default=1),
            _count(element, "TimePoint", where, default=1),
            _count(element, "TimelineIndex", where, default=1),
            _count(element, "ActionIndex", where, default=1),
            _kind(element.get("ZImageProcessing"), z_missing),
            name,
            _upwards(_real(element, "Y", where)),
            _real(element, "X", where),
            _real(element, "Z", where),
            _seconds(element.get("Time")),
        )
        if found:
            says = (int(found["field"]), int(found["channel"]), int(found["z"] or record.z), int(found["t"]))
            renamed += says != record[1:5]
        records.append(record)
    if failed:
        places = f" in {len(failed_wells)} wells: {some_of(sorted(failed_wells))}" if failed_wells else ""
        notes.append(f"{failed} error records in {file!r}{places}: not taken (first: {first_failed!r})")
    for kind, count in sorted(others.items())[:3]:
        notes.append(f"{count} records of the unknown type {kind!r} in {file!r} are left out")
    if nameless:
        notes.append(f"{nameless} image records in {file!r} name no file")
    if renamed:
        notes.append(f"{renamed} files are named for another field, channel, z or t than {file!r} says, which counts")
    if not records:
        raise PlateLayoutError(f"{file!r} lists no image ({failed} error records); was anything measured?")
    return records


def _upwards(y):
    """Stage coordinates grow upwards, rows of an image downwards."""
    return None if y is None else 0.0 - y


def _kind(processing, z_missing):
    """`stack`, or the method of a projection."""
    processing = (processing or "").strip()
    if processing and processing.lower() != "none":
        return processing.capitalize()
    return "Maximum" if z_missing else "stack"


def _record_well(element, where, wells):
    """Well of a record; `wells` remembers those seen."""
    key = element.get("Row"), element.get("Column")
    if key not in wells:
        row, column = (_count(element, name, where) for name in ("Row", "Column"))
        if row > 32 or column > 48:
            raise PlateLayoutError(f"{where}: row {row}, column {column} lies outside a 1536-well plate")
        wells[key] = well_name(row - 1, column - 1)
    return wells[key]


def _well_of(text, file):
    """``A01`` of a well as a file's name spells it, also as `A01.a1`."""
    well = _spelled(text)
    return well if well else name_well(text, file)


@functools.lru_cache(4096)
def _spelled(text):
    """``A01`` of a well; None where it is none."""
    block, _, place = text.partition(".")
    try:
        row, column = parse_well(block)
    except ValueError:
        return None
    if place:
        row, column = 4 * row + "ABCD".index(place[0].upper()), 4 * column + int(place[1]) - 1
    return well_name(row, column) if row < 32 and column < 48 else None


def _read_names(files, corrections, notes):
    """The planes that file names say."""
    records, plates, others = [], Counter(), []
    for name in files:
        stem = name.rpartition("/")[2]
        found = NAME.fullmatch(stem)
        if not found:
            if name.lower().endswith(IMAGES) and name not in corrections:
                others.append(name)
            continue
        numbers = {key: int(found[key] or 1) for key in ("field", "channel", "z", "t", "timeline", "action")}
        records.append(Record(_well_of(found["well"], name), **numbers, kind=_kind("", not found["z"]), file=name))
        plates[found["plate"] or ""] += 1
    if not records:
        raise PlateLayoutError(
            "neither a MeasurementData.mlf nor an image named as PLATE_B03_T0001F001L01A01Z01C01.tif is there; is this "
            "the folder of a CellVoyager measurement?"
        )
    notes.append("no MeasurementData.mlf: wells, fields, channels, z and t are from file names; positions are unknown")
    if len(plates) > 1:
        notes.append(f"file names begin with {len(plates)} names of plates: {some_of(map(repr, sorted(plates)))}")
    if others:
        notes.append(f"{len(others)} image files are not named as planes and left out, such as {others[0]!r}")
    return records


def _corrections(files, detail):
    """Image files that are corrections."""
    sources = {name.lower() for name in detail.correction.values() if name}
    found = set()
    for name in files:
        stem = name.rpartition("/")[2]
        if stem.lower() in sources or (CORRECTION.fullmatch(stem) and not NAME.fullmatch(stem)):
            found.add(name)
    return found


def _locate(source, files, records_file, records, notes):
    """Pair records with their files (None where absent), and set `Record.file` relative to the source."""
    folder = records_file.rpartition("/")[0]
    inside, stems, located, moved = set(), None, [], []
    for i, record in enumerate(records):
        parent, _, stem = record.file.rpartition("/")
        if parent not in inside:
            inside.add(below(source, parent) if parent else parent)
        if stem in ("", ".", "..") or ":" in stem:
            below(source, record.file)
        name = f"{folder}/{record.file}" if folder else record.file
        if name not in files:
            if stems is None:
                stems = _by_stem(files)
            found = _elsewhere(stems, name, folder)
            if found:
                moved.append(found)
                name = found
        records[i] = record._replace(file=name)
        located.append((records[i], files.get(name)))
    if moved:
        notes.append(
            f"{len(moved)} images lie elsewhere or have another suffix than {records_file!r} says, such as {moved[0]!r}"
        )
    return located


def _by_stem(files):
    """Image files by their name without folder and suffix, in small letters."""
    stems = defaultdict(list)
    for name in files:
        if name.lower().endswith(IMAGES):
            stems[_stem(name)].append(name)
    return stems


def _stem(name):
    return name.rpartition("/")[2].rpartition(".")[0].lower()


def _elsewhere(stems, name, folder):
    """The file that a record means where it is not where the record says: moved, converted, or in other letters."""
    found = stems.get(_stem(name), [])
    found = [file for file in found if file.rpartition("/")[0] == folder] or found
    if len(found) > 1:
        raise PlateLayoutError(f"{found[0]!r} and {found[1]!r} could both be {name!r} of the metadata; remove one")
    return found[0] if found else None


def _choose(located, params, records_file, notes):
    """Decide which planes count, and how their channels are called.

    Returns
    -------
    list of (Record, (size [bytes], modified [ns]))
    dict of (channel, timeline, action) to str
    """
    present = [(record, _status(entry)) for record, entry in located]
    absent = [record.file for record, status in present if status is None]
    where = f"that {records_file!r} lists" if records_file else "in the folder"
    if len(absent) == len(present) and params.absent != "keep":
        raise PlateLayoutError(
            f"none of the {len(absent)} images {where} is there, such as {absent[0]!r}; with the parameter "
            "`absent: keep` the table comes out all the same (plateloom scan --set absent=keep)"
        )
    if absent:
        notes.append(f"{len(absent)} of {len(present)} images {where} are absent, such as {absent[0]!r}")
    chosen = _choose_kinds(present, params.z, notes)
    counted = [(record, status) for record, status in present if chosen[record.channel] == record.kind]
    channel_of = _call_channels([record for record, _ in counted], notes)
    kept, repeated = {}, 0
    for record, status in counted:
        if record.file in kept:
            if kept[record.file][0][:7] != record[:7]:
                raise PlateLayoutError(
                    f"{records_file!r} lists {record.file!r} for two planes; mend one of the records"
                )
            repeated += 1
        if status is not None or params.absent == "keep":
            kept[record.file] = record, status or (0, 0)
    if repeated:
        notes.append(f"{repeated} images are recorded again; the last record of each counts")
    used = {(record.channel, *record[5:7]) for record, _ in kept.values()}
    return list(kept.values()), {key: name for key, name in channel_of.items() if key in used}


def _choose_kinds(present, preferred, notes):
    """The kind of planes that counts in each channel: of those that have files, if any have."""
    kinds, declared = defaultdict(set), defaultdict(set)
    for record, status in present:
        declared[record.channel].add(record.kind)
        if status is not None:
            kinds[record.channel].add(record.kind)
    chosen = {}
    for channel in sorted(declared):
        found = kinds[channel] or declared[channel]
        chosen[channel] = min(
            found, key=lambda kind: (kind != preferred, KINDS.index(kind) if kind in KINDS else len(KINDS), kind)
        )
        if len(found) > 1:
            left = ", ".join(sorted(found - {chosen[channel]}))
            notes.append(f"channel {channel} has several kinds of planes: {chosen[channel]} counts, not {left}")
    return chosen


def _status(entry):
    """Size [bytes] and time [ns] of a file; None where it is absent, as the end of a dangling link."""
    try:
        status = entry.stat() if entry is not None else None
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if status else None


def _call_channels(records, notes):
    """Names of channels; one that several actions took in the same place is called by timeline and action, too."""
    first, shared = {}, set()
    for record in records:
        other = first.setdefault(record[:5], record)
        if other[5:7] != record[5:7]:
            shared.add(record.channel)
    channel_of = {
        (channel, timeline, action): f"{channel}-L{timeline}A{action}" if channel in shared else str(channel)
        for channel, timeline, action in {(record.channel, *record[5:7]) for record in records}
    }
    for channel in sorted(shared):
        names = sorted({name for key, name in channel_of.items() if key[0] == channel})
        notes.append(f"several actions took channel {channel}: it counts as {', '.join(names)}")
    return channel_of


def _slice_um(settings, record):
    """Height of a plane as the .mes file asked for it; None where it does not say."""
    if not settings or "step" not in settings or record.kind != "stack":
        return None
    return settings["bottom"] + (record.z - 1) * settings["step"]


def _wavelength(channel, settings, detail):
    """Center of the emission filter [nm], as the .mes file or the correction image's name says."""
    for text in (settings.get(channel, {}).get("band", ""), detail.correction.get(channel, "")):
        if found := BAND.search(text):
            return float(found[1])
    return None


def _note_others(files, known, notes):
    """Count the images that no record lists."""
    others = [name for name in files if name.lower().endswith(IMAGES) and name not in known]
    if others:
        notes.append(f"{len(others)} image files are in no record and left out, such as {others[0]!r}")


def _note_pixel_sizes(images, detail_file, notes):
    """Name the channels that the .mrf file says nothing of."""
    unknown = sorted({image.channel for image in images if image.pixel_size_um is None})
    if detail_file and unknown:
        notes.append(f"{detail_file!r} has no pixel size of {len(unknown)} channels: {some_of(unknown)}")


def _fitting(shape, images, notes):
    """The plate's shape; None where wells lie outside of it."""
    outside = sorted({image.well for image in images if shape and not _on_plate(image.well, shape)})
    if not outside:
        return shape
    notes.append(f"metadata say {shape[0]} × {shape[1]} wells; outside are {len(outside)} wells: {some_of(outside)}")
    return None


@functools.lru_cache(4096)
def _on_plate(well, shape):
    row, column = parse_well(well)
    return row < shape[0] and column < shape[1]


def _describe(files, channel_of, settings, detail):
    """`Source.channels`."""
    by_stem = {_stem(name): name for name in sorted(files, reverse=True) if name.lower().endswith(IMAGES)}
    dark = {found[1]: file for stem, file in by_stem.items() if (found := DARK.fullmatch(stem))}
    channels = {}
    for (channel, _, _), name in sorted(channel_of.items()):
        facts = {key: settings.get(channel, {}).get(key) for key in ("name", "color")}
        facts["correction"] = by_stem.get(_stem(detail.correction.get(channel, "")))
        facts["dark"] = dark.get(detail.camera.get(channel))
        channels[name] = {key: value for key, value in facts.items() if value}
    return channels
