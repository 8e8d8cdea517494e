"""OME-TIFF: one metadata file for all images (``*.companion.ome``, ``*.ome.xml``), or OME-XML inside of the TIFFs.

Wells and fields come from Plate, Well and WellSample where the metadata have them, else from names by a pattern. A field
is counted from 1 in the order of WellSample's Index within its well; `z` and `t` are TheZ and TheT, from 0; a channel is
called by its Name, else by its place from 0. Positions are those of the planes, else of the well's samples, else of the
stage label, in any unit of length. OME does not say which way a stage's axes point (see the parameter `mirror`), and
positions have no unit unless it is written (see `position_unit`). Times are the image's AcquisitionDate, in UTC unless it
says otherwise, and the plane's DeltaT. There is no end marker.

Without a metadata file the header of every TIFF has to be read that no other one describes: 0.2 to 0.5 ms each on a local
disk, some 5 ms over a network, and up to `headers` of them.
"""

import datetime
import errno
import io
import math
import posixpath
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from plateloom.errors import PlateLayoutError, some_of
from plateloom.readers import Source, SourceImage, pattern
from plateloom.readers.folders import below, compile_expression, list_changes, list_files, name_well, sort_planes
from plateloom.readers.markup import elements
from plateloom.readers.planes import load_plane as load
from plateloom.wells import parse_well, well_name

__all__ = ["Params", "distinct_names", "inside", "listing", "load", "recognize", "scan"]

COMPANIONS = (".companion.ome", ".ome.xml")
OME_TIFFS = (".ome.tif", ".ome.tiff", ".ome.btf", ".ome.tf2", ".ome.tf8")
TIFFS = (".tif", ".tiff", ".btf", ".tf2", ".tf8")
WANTED = ("Plate", "Image", "BinaryOnly")
HEADER_LIMIT = 1 << 26  # characters of XML in a TIFF
MOST_PLANES = 2_000_000
LENGTHS = {"pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25400.0}
# How a micrometer is written: the Greek letter, plain, and UTF-8 that was read as Latin-1.
LENGTHS |= dict.fromkeys(("μm", "um", "micron", "micrometer", "Âµm", "Î¼m"), 1.0)
TIMES = {"ns": 1e-9, "µs": 1e-6, "μs": 1e-6, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
# A well, and the number behind it.
_WELL = (
    r"(?:Well)?(?P<well>[A-P]\d{1,2})(?:[-_ ](?:f|s|field|site|fov|pos|point)?[-_ ]?(?P<field>\d+))?(?:[^A-Za-z0-9].*)?"
)
FIRST_WELL = r"(?:.*?[^A-Za-z0-9])??" + _WELL
# Patterns that `plateloom init` knows, for images without a Plate.
PATTERNS = {
    "Micro-Manager": r".*_MMStack_(?P<well>[A-P]\d{1,2})-Site_(?P<field>\d+)(?:_\d+)?\.ome\.tiff?",
    "first well in the names": FIRST_WELL,
    "last well in the names": r"(?:.*[^A-Za-z0-9])?" + _WELL,
}


class Params(BaseModel):
    """Where wells come from, what positions mean, and what is left out."""

    model_config = ConfigDict(extra="forbid")

    pattern: str = Field(
        "",
        description="Regular expression that a whole name must match, in small or large letters, for its planes to count; named groups "
        "`well` (or `row` and `column`), and if there are any `field`, `channel`, `z`, `t`. Default: wells and fields are those of the metadata's Plate.",
    )
    names: Literal["file", "image"] = Field(
        "file",
        description="What the pattern is matched with: names of files without folders, or the metadata's names of images.",
    )
    metadata: str = Field(
        "",
        description="Regular expression that the whole path of a metadata file (*.companion.ome, *.ome.xml) must match to be read; needed where "
        "several describe the same wells, as those of a CQ1's stack and its projection do. Default: all of them.",
    )
    plate: str = Field("", description="Name or ID of the plate to read, where the metadata hold several.")
    acquisition: str = Field("", description="Name or ID of the PlateAcquisition to read, where the plate has several.")
    position_unit: Literal["", "nm", "µm", "mm"] = Field(
        "", description="Unit of positions that are written without one; default: such positions are left out."
    )
    mirror: Literal["", "x", "y", "xy"] = Field(
        "", description="Axes along which positions grow the other way than the image's columns (x) or rows (y) do."
    )
    headers: int = Field(
        20_000, ge=1, description="TIFFs whose own metadata are read at most, where there is no metadata file for all."
    )

    @field_validator("pattern")
    @classmethod
    def _has_a_well(cls, text):
        return pattern.Params(pattern=text).pattern if text else text

    @field_validator("metadata")
    @classmethod
    def _compiles(cls, text):
        compile_expression(text)
        return text


class Block(NamedTuple):
    """A TiffData: where some planes of an image lie. `count` is None where it does not say how many."""

    start: tuple
    page: int
    count: int | None
    uuid: str
    file: str


class Picture(NamedTuple):
    """An Image: one field. Lengths are (value, unit); a place is those of y and x."""

    name: str
    order: str
    sizes: dict
    channels: list
    colored: bool
    pixel_size_um: float | None
    z_step_um: float | None
    seconds: float | None
    stage: tuple
    place: tuple
    blocks: list
    planes: dict


class Sample(NamedTuple):
    """A WellSample: one field of a well."""

    key: str
    well: str
    index: int | None
    picture: str
    place: tuple


class Plate(NamedTuple):
    """A Plate, as one sheet has it; `acquisitions`: name and keys of the samples by ID."""

    name: str
    key: str
    shape: tuple
    samples: list
    acquisitions: dict


class Sheet(NamedTuple):
    """One piece of OME-XML, with the file that it stands in; `elsewhere` is the file that a BinaryOnly points to."""

    file: str
    uuid: str
    pictures: dict
    plates: list
    elsewhere: str


class Spot(NamedTuple):
    """A picture and where it belongs; `said` is what a name says of all its planes, `place` the sample's."""

    well: str
    field: int
    said: dict
    sheet: Sheet
    picture: Picture
    place: tuple


class Folder:
    """The TIFFs of a plate's folder, found by the names that metadata have for them.

    Attributes
    ----------
    source : Path
    files : dict of str to os.DirEntry
        Paths below the source.
    companions : list of str
        Metadata files.
    """

    def __init__(self, source):
        self.source, self.files, self.companions = source, {}, []
        for name, entry in list_files(source, TIFFS + COMPANIONS):
            if name.lower().endswith(COMPANIONS):
                self.companions.append(inside(source, name) if entry.is_symlink() else name)
            else:
                self.files[name] = entry
        self.companions.sort()
        self._small = {name.lower(): name for name in self.files}
        self._status = {}

    def find(self, sheet, name):
        """Path of a TIFF that a sheet names, whatever the case of its letters; None where it is not there."""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(sheet.file), name.replace("\\", "/")))
        found = path if path in self.files else self._small.get(path.lower())
        return inside(self.source, found) if found and self.files[found].is_symlink() else found

    def status(self, file):
        """Size [bytes] and time [ns] of a TIFF."""
        if file not in self._status:
            status = self.files[file].stat()
            self._status[file] = status.st_size, status.st_mtime_ns
        return self._status[file]


def scan(source, params):
    """List the planes of a plate from its OME-XML.

    Parameters
    ----------
    source : path
    params : Params

    Returns
    -------
    Source
        Files that are named and absent, or there and not named, are notes. TIFFs whose header cannot be read, and whose
        names the pattern understands, have the planes of another one, so that loading them says why.

    Raises
    ------
    PlateLayoutError
        If there are no metadata, they are broken or point out of the folder, or a parameter has to choose.
    """
    folder, notes = Folder(Path(source)), []
    sheets, broken, strangers = _read_sheets(folder, params, notes)
    shape = None
    if params.pattern:
        spots = _match_images(sheets, params, notes)
    else:
        spots, shape = _join_wells(folder, sheets, params, notes)
    images, channels, left_out, absent = _list_planes(folder, spots, sheets, params, notes)
    images += _stand_ins(folder, broken, images, params, notes)
    images = _settle_positions(images, params, notes)
    _note_strangers(folder, sheets, images, {*broken, *strangers, *left_out}, notes)
    if shape and not all(row < shape[0] and column < shape[1] for row, column in {parse_well(i.well) for i in images}):
        shape = None
    return Source(sort_planes(images), shape=shape, channels=channels, notes=notes, absent=absent)


def listing(source, params):
    """See `plateloom.readers.folders.list_changes`. Only a pattern of file names tells a file's well from its name."""
    match = _matcher(params) if params.pattern and params.names == "file" else None

    def well_of(name):
        found = match(name.rpartition("/")[2]) if match and name.lower().endswith(TIFFS) else None
        return pattern.well_text(found) if found else ""

    return list_changes(source, TIFFS + COMPANIONS, well_of)


def recognize(source, names):
    """See `plateloom.readers.pattern.recognize`; metadata files are read, or the header of one TIFF."""
    images = [name for name in names if name.lower().endswith((*TIFFS, ".png", ".jpg", ".jpeg"))]
    tiffs = sorted(name for name in images if name.lower().endswith(OME_TIFFS))
    found = {"reader": "ome_tiff", "params": {}, "layout": "OME-TIFF", "share": 1.0}
    if not any(name.lower().endswith(TIFFS) for name in names):
        return None  # OME-Zarr that Bio-Formats wrote has such a metadata file as well
    for name in sorted(name for name in names if name.lower().endswith(COMPANIONS)):
        try:
            if parse_sheet(name, elements(Path(source, name), *WANTED, root=True)).plates:
                return found
        except PlateLayoutError:
            continue
    if not tiffs or len(tiffs) < len(images) / 2:
        return None
    try:
        sheet = read_header(Path(source), tiffs[0])
    except (PlateLayoutError, OSError):
        return None
    if sheet is None or sheet.plates:
        return found if sheet else None
    for names, listed in (
        ("file", [name.rpartition("/")[2] for name in tiffs]),
        ("image", [picture.name for picture in sheet.pictures.values()]),
    ):
        best = None
        for layout, text in PATTERNS.items():
            match = re.compile(text, re.IGNORECASE).fullmatch
            matching = [found for found in map(match, listed) if found]
            # The pattern that tells most of them apart: `P1` may be a well, or the plate's name.
            apart = len({(match["well"], match["field"]) for match in matching})
            if matching and len(matching) >= len(listed) / 2 and (best is None or apart > best[0]):
                share = len(matching) / len(listed) * len(tiffs) / len(images)
                params = {"pattern": text} | ({"names": names} if names == "image" else {})
                best = apart, found | {"params": params, "layout": f"OME-TIFF, {layout} of {names}s", "share": share}
        if best:
            return best[1]
    return None


def inside(source, name):
    """As `plateloom.readers.folders.below`, also of names that are no path at all."""
    try:
        return below(source, name)
    except PlateLayoutError:
        raise
    except (ValueError, RuntimeError):  # half a UTF-16 character; links in a circle
        raise PlateLayoutError(f"{name!r} in the metadata of {str(source)!r} is no path") from None


def distinct_names(names):
    """Names of channels as a source lists them, each once: its place from 0 where it has none, and behind one used before.

    >>> distinct_names(["DAPI", "", "DAPI"])
    ['DAPI', '1', 'DAPI (2)']
    """
    found = []
    for place, name in enumerate(names):
        name = name or str(place)
        while name in found:
            name += f" ({place})"
        found.append(name)
    return found


# Sheets


def _read_sheets(folder, params, notes):
    """All sheets that count; the TIFFs that cannot be read, with the reason; those that hold no OME-XML."""
    sheets, broken, strangers = [], {}, []
    chosen = [name for name in folder.companions if re.fullmatch(params.metadata or ".*", name, re.DOTALL)]
    if folder.companions and not chosen:
        raise PlateLayoutError(
            f"no metadata file matches the parameter `metadata`; there are {some_of(map(repr, folder.companions))}"
        )
    for name in chosen:
        sheets.append(parse_sheet(name, elements(folder.source / name, *WANTED, root=True)))
    if chosen:
        return sheets, broken, strangers
    tiffs = [name for name in folder.files if name.lower().endswith(OME_TIFFS)] or list(folder.files)
    if not tiffs:
        raise PlateLayoutError(
            f"no OME-TIFF and no metadata file (*.companion.ome, *.ome.xml) in {str(folder.source)!r}"
        )
    named = set()
    for read, name in enumerate(name for name in sorted(tiffs) if name not in named):
        if read == params.headers:
            raise PlateLayoutError(
                f"more than {read} TIFFs in {str(folder.source)!r} have metadata of their own; raise the reader's parameter "
                "`headers` (each costs up to a millisecond, over a network more), or write one metadata file for all"
            )
        try:
            sheet = read_header(folder.source, name)
        except PlateLayoutError as fault:
            broken[name] = str(fault)
            continue
        if sheet is None:
            strangers.append(name)
            continue
        if sheet.elsewhere and not sheet.pictures and folder.find(sheet, sheet.elsewhere) is None:
            raise PlateLayoutError(f"{name!r} says that its metadata are in {sheet.elsewhere!r}, which is not there")
        sheets.append(sheet)
        named |= {folder.find(sheet, block.file) for block in _blocks(sheet) if block.file}
    if not any(sheet.pictures for sheet in sheets):
        why = next(iter(broken.values()), f"{strangers[0]!r} holds none" if strangers else "no image is described")
        raise PlateLayoutError(f"no OME-XML in {str(folder.source)!r}: {why}")
    if strangers:
        notes.append(f"{len(strangers)} TIFFs hold no OME-XML and are left out, e.g. {strangers[0]!r}")
    return sheets, broken, strangers


def _blocks(sheet):
    return (block for picture in sheet.pictures.values() for block in picture.blocks)


def read_header(source, name):
    """Read the OME-XML of a TIFF's first page.

    Parameters
    ----------
    source : path
    name : str
        Path below the source.

    Returns
    -------
    Sheet or None
        None where it holds no OME-XML.

    Raises
    ------
    PlateLayoutError
        If the file is no TIFF, or what it holds is no OME-XML.
    """
    from tifffile import TiffFile

    try:
        with TiffFile(Path(source, name)) as tiff:
            tag = tiff.pages.first.tags.get(270)
            text = tag.value if tag else ""
    except Exception as error:  # a broken file raises whatever it likes
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.ENOENT):
            raise
        raise PlateLayoutError(f"{name!r} is no TIFF: {' '.join(str(error).split()) or type(error).__name__}") from None
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    if not isinstance(text, str) or not re.search(r"<(?:[A-Za-z0-9]+:)?OME[\s>]", text[:4096]):
        return None
    return parse_sheet(name, _elements_of(text.strip("\0 \r\n\t\ufeff"), name))


def _elements_of(text, name):
    """As `plateloom.readers.markup.elements`, of XML that is in memory already."""
    if len(text) > HEADER_LIMIT:
        raise PlateLayoutError(f"{name!r} holds more than {HEADER_LIMIT >> 20} MiB of XML; no header does")
    if "<!DOCTYPE" in text:
        raise PlateLayoutError(f"{name!r} declares a document type; metadata of microscopes have none")
    root = None
    try:
        # As text, so that an encoding declared inside cannot hide anything.
        for event, element in ElementTree.iterparse(io.StringIO(text), ("start", "end")):
            element.tag = element.tag.rpartition("}")[2]
            if event == "start" and root is None:
                root = element
                yield root
            elif event == "end" and element.tag in WANTED:
                yield element
                element.clear()
    except (ElementTree.ParseError, ValueError) as error:
        if isinstance(error, PlateLayoutError):
            raise
        raise PlateLayoutError(f"{name!r} holds XML that is not well-formed: {error}") from None


def parse_sheet(file, found):
    """Understand OME-XML.

    Parameters
    ----------
    file : str
        Where it stands, for messages and as the place that names of files are relative to.
    found : iterator of xml.etree.ElementTree.Element
        The root, then every Plate, Image and BinaryOnly.

    Returns
    -------
    Sheet
    """
    root = next(found, None)
    if root is None or root.tag != "OME":
        raise PlateLayoutError(f"{file!r} is no OME-XML: its root is {'missing' if root is None else root.tag[:40]!r}")
    uuid, pictures, plates, elsewhere, planes = root.get("UUID", ""), {}, [], "", 0
    for element in found:
        if element.tag == "BinaryOnly":
            elsewhere = element.get("MetadataFile", "")
        elif element.tag == "Plate":
            plates.append(_parse_plate(file, element))
        elif (pixels := element.find("Pixels")) is not None:
            key = element.get("ID", "")
            if key in pictures:
                raise PlateLayoutError(f"{file!r} has two images with the ID {key!r}")
            pictures[key] = _parse_picture(file, element, pixels)
            planes += math.prod(pictures[key].sizes.values())
            if planes > MOST_PLANES:
                raise PlateLayoutError(f"{file!r} declares more than {MOST_PLANES} planes; no plate has so many")
    return Sheet(file, uuid, pictures, plates, elsewhere)


def _parse_plate(file, element):
    samples = []
    for well in element.iterfind("Well"):
        row, column = (_whole(file, well, name, None) for name in ("Row", "Column"))
        if row is None or column is None or row >= 32 or column >= 48:
            raise PlateLayoutError(
                f"{file!r}: a Well has Row {well.get('Row')!r} and Column {well.get('Column')!r}, from 0"
            )
        for sample in well.iterfind("WellSample"):
            reference = sample.find("ImageRef")
            samples.append(
                Sample(
                    sample.get("ID", ""),
                    well_name(row, column),
                    _whole(file, sample, "Index", None),
                    "" if reference is None else reference.get("ID", ""),
                    (_length(sample, "PositionY"), _length(sample, "PositionX")),
                )
            )
    acquisitions = {
        acquisition.get("ID", ""): (
            acquisition.get("Name", ""),
            {i.get("ID") for i in acquisition.iterfind("WellSampleRef")},
        )
        for acquisition in element.iterfind("PlateAcquisition")
    }
    shape = _whole(file, element, "Rows", 0), _whole(file, element, "Columns", 0)
    whole = 0 < shape[0] <= 32 and 0 < shape[1] <= 48
    return Plate(element.get("Name", ""), element.get("ID", ""), shape if whole else None, samples, acquisitions)


def _parse_picture(file, element, pixels):
    sizes = {axis: _whole(file, pixels, f"Size{axis}", 1) for axis in "ZCT"}
    order = pixels.get("DimensionOrder", "XYZCT")
    if sorted(order) != sorted("XYZCT") or order[:2] != "XY":
        raise PlateLayoutError(f"{file!r}: DimensionOrder {order[:20]!r}, expected XY and then Z, C and T")
    listed = pixels.findall("Channel")
    samples = [_whole(file, channel, "SamplesPerPixel", 1) for channel in listed]
    colored = any(count > 1 for count in samples)
    if not all(sizes.values()) or 0 in samples:
        raise PlateLayoutError(f"{file!r}: an image of {sizes['Z']} × {sizes['C']} × {sizes['T']} planes")
    if math.prod(sizes.values()) > MOST_PLANES:
        raise PlateLayoutError(f"{file!r}: {math.prod(sizes.values())} planes in one image; no field has so many")
    channels = [_parse_channel(channel) for channel in listed[: sizes["C"]]]
    channels += [("", None, None)] * (sizes["C"] - len(channels))
    x, y, z = (_micrometers(_length(pixels, f"PhysicalSize{axis}", "µm")) for axis in "XYZ")
    y = x if y is None else y
    square = x is not None and x > 0 and abs(x - y) <= 1e-3 * x
    stage = element.find("StageLabel")
    planes = {}
    for plane in pixels.iterfind("Plane"):
        at = tuple(_whole(file, plane, f"The{axis}", 0) for axis in "ZCT")
        place = (_length(plane, "PositionY"), _length(plane, "PositionX"))
        planes[at] = (place, _length(plane, "PositionZ"), _seconds(plane))
    return Picture(
        element.get("Name", ""),
        order[2:],
        sizes,
        channels,
        colored,
        math.sqrt(x * y) if square else None,
        z,
        _parse_date(element.findtext("AcquisitionDate") or element.findtext("AcquiredDate") or ""),
        (None, None) if stage is None else (_length(stage, "Y"), _length(stage, "X")),
        next((place for place, _, _ in planes.values() if None not in place), (None, None)),
        [_parse_block(file, block, sizes) for block in pixels.iterfind("TiffData")],
        planes,
    )


def _parse_channel(channel):
    """Name, color RRGGBB and wavelength of the emission [nm]."""
    color = None
    if re.fullmatch(r"-?[0-9]{1,10}", channel.get("Color", "")):
        color = f"{(int(channel.get('Color')) & 0xFFFFFFFF) >> 8:06X}"  # OME's color is RGBA in a signed number
    wavelength = _micrometers(_length(channel, "EmissionWavelength", "nm"))
    return channel.get("Name", "").strip(), color, wavelength * 1e3 if wavelength and wavelength > 0 else None


def _parse_block(file, block, sizes):
    start = tuple(_whole(file, block, f"First{axis}", 0) for axis in "ZCT")
    if any(first >= sizes[axis] for first, axis in zip(start, "ZCT", strict=True)):
        raise PlateLayoutError(f"{file!r}: a TiffData begins at Z {start[0]}, C {start[1]}, T {start[2]} of {sizes}")
    uuid = block.find("UUID")
    return Block(
        start,
        _whole(file, block, "IFD", 0),
        _whole(file, block, "PlaneCount", 1 if "IFD" in block.attrib else None),
        "" if uuid is None else (uuid.text or "").strip(),
        "" if uuid is None else uuid.get("FileName", ""),
    )


def _parse_date(text):
    """Seconds since 1970 of an ISO date, in UTC where it names no zone; None where it is none."""
    try:
        date = datetime.datetime.fromisoformat(text.strip())
        return (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _whole(file, element, name, default):
    """A whole number from 0 of an attribute; the default where there is no such attribute."""
    text = element.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text):
        raise PlateLayoutError(f"{file!r}: {element.tag} {name} {text[:40]!r}, expected a whole number from 0")
    return int(text)


def _length(element, name, unit=""):
    """(value, unit) of an attribute; None where it is no number."""
    try:
        value = float(element.get(name, ""))
    except ValueError:
        return None
    return (value, element.get(f"{name}Unit", unit).strip()) if math.isfinite(value) else None


def _micrometers(length, unit=""):
    """A length [µm]; `unit` is that of lengths without one. None where there is none."""
    if length is None:
        return None
    factor = LENGTHS.get(unit if length[1] in ("", "reference frame") else length[1])
    return None if factor is None else length[0] * factor


def _seconds(plane):
    """DeltaT of a plane [s]; None where it has none."""
    length = _length(plane, "DeltaT", "s")
    factor = TIMES.get(length[1]) if length else None
    return None if factor is None else length[0] * factor


# Wells and fields


def _join_wells(folder, sheets, params, notes):
    """Spots, and the plate's shape, from Plate, Well and WellSample."""
    plates = {}
    for number, sheet in enumerate(sheets):
        for plate in sheet.plates:
            plates.setdefault(plate.name or plate.key, []).append((number, plate))
    if not plates:
        raise PlateLayoutError(
            f"the metadata of {str(folder.source)!r} have no Plate; give the reader's parameter `pattern`, with a group `well`"
        )
    shown = ", ".join(map(repr, sorted(plates)))
    if params.plate:
        plates = {name: parts for name, parts in plates.items() if params.plate in (name, *(p.key for _, p in parts))}
    if len(plates) != 1:
        raise PlateLayoutError(f"the metadata hold the plates {shown}; choose one with the parameter `plate`")
    (parts,) = plates.values()
    chosen = _choose_acquisition([plate for _, plate in parts], params)
    wells = {}
    for number, plate in parts:
        members = {key for name in chosen for key in plate.acquisitions.get(name, ("", ()))[1]}
        samples = [sample for sample in plate.samples if sample.key in members] if chosen else plate.samples
        for place, sample in enumerate(_distrust_indexes(samples)):
            order = (1, number, place) if sample.index is None else (0, sample.index, 0)
            wells.setdefault(sample.well, {}).setdefault(order, []).append((number, sample))
    spots, empty, used = [], 0, set()
    for well in sorted(wells, key=parse_well):
        for field, order in enumerate(sorted(wells[well]), start=1):
            there = [(n, sample) for n, sample in wells[well][order] if sample.picture in sheets[n].pictures]
            empty += not there
            for number, sample in there:
                used.add((number, sample.picture))
                spots.append(
                    Spot(well, field, {}, sheets[number], sheets[number].pictures[sample.picture], sample.place)
                )
    if empty:
        notes.append(f"{empty} fields of the plate have no image")
    if unused := sum(len(sheet.pictures) for sheet in sheets) - len(used):
        notes.append(f"{unused} images belong to no well, or to none of the chosen plate and acquisition")
    return spots, next((plate.shape for _, plate in parts if plate.shape), None)


def _choose_acquisition(plates, params):
    """IDs of the acquisition that counts; empty where all samples do."""
    names = {}
    for plate in plates:
        names |= {key: name for key, (name, members) in plate.acquisitions.items() if members}
    shown = ", ".join(f"{key!r} ({name})" if name else repr(key) for key, name in sorted(names.items())) or "none"
    if not params.acquisition:
        if len(names) > 1:
            raise PlateLayoutError(
                f"the plate has the acquisitions {shown}; choose one with the parameter `acquisition`"
            )
        return set()
    chosen = {key for key, name in names.items() if params.acquisition in (key, name)}
    if len(chosen) != 1:
        raise PlateLayoutError(f"acquisition {params.acquisition!r}: the plate has the acquisitions {shown}")
    return chosen


def _distrust_indexes(samples):
    """The samples without the indexes that a well has twice; then their order counts."""
    seen, twice = set(), set()
    for sample in samples:
        if (sample.well, sample.index) in seen:
            twice.add(sample.well)
        seen.add((sample.well, sample.index))
    return [sample._replace(index=None) if sample.well in twice else sample for sample in samples]


def _matcher(params):
    """A function of a name: the match of the pattern, or None."""
    return pattern.matcher(pattern.Params(pattern=params.pattern, folders=True))


def _match_images(sheets, params, notes):
    """Spots of all images: with the well that their own name says, or none where the file's name has to say it."""
    match, spots, others, counts = _matcher(params), [], [], {}
    for sheet in sheets:
        for picture in sheet.pictures.values():
            well, said = "", {}
            if params.names == "image":
                found = match(picture.name)
                if not found:
                    others.append(picture.name)
                    continue
                where = f"image {picture.name} of {sheet.file}"
                well, said = name_well(pattern.well_text(found), where), pattern.said(found, where)
            counts[well] = counts.get(well, 0) + 1
            spots.append(Spot(well, counts[well], said, sheet, picture, (None, None)))
    if others:
        notes.append(f"{len(others)} images do not match the pattern and are left out, e.g. {others[0]!r}")
    return spots


# Planes


def _list_planes(folder, spots, sheets, params, notes):
    """Planes that lie in files that are there, facts of the channels, files that the pattern leaves out, and how many
    files are named and absent."""
    uuids = {sheet.uuid: sheet.file for sheet in sheets if sheet.uuid and sheet.file in folder.files}
    match = _matcher(params) if params.pattern and params.names == "file" else None
    kind = _kind_of_place(spots, params, notes)
    images, channels, pages, absent, known, places, steps = [], {}, {}, {}, {}, {}, 0
    for spot in spots:
        if spot.picture.colored:
            continue
        names = distinct_names([name for name, _, _ in spot.picture.channels])
        for name, (own, color, _) in zip(names, spot.picture.channels, strict=True):
            facts = {"name": own, "color": color}
            channels.setdefault(spot.said.get("channel", name), {key: value for key, value in facts.items() if value})
        for at, block, file, page in _spread(spot, folder, pages, uuids):
            steps += 1
            if steps > MOST_PLANES:
                raise PlateLayoutError(f"{str(folder.source)!r} declares more than {MOST_PLANES} planes")
            if file is None:
                absent.setdefault(block.file or block.uuid, spot.sheet.file)
                continue
            if match:
                if file not in known:
                    found = match(file.rpartition("/")[2])
                    known[file] = found and (name_well(pattern.well_text(found), file), pattern.said(found, file))
                if not known[file]:
                    continue
                # Without a group `field`, its place among the images of the TIFF.
                place = places.setdefault(file, {}).setdefault(spot.field, len(places[file]) + 1)
                images.append(
                    _image(folder, spot, names, at, file, page, kind, params)._replace(
                        well=known[file][0], **({"field": place} | known[file][1])
                    )
                )
                continue
            images.append(_image(folder, spot, names, at, file, page, kind, params))
    if absent:
        name, sheet = next(iter(absent.items()))
        notes.append(f"{len(absent)} files that metadata name are not there, e.g. {name!r} of {sheet!r}")
    if colored := sum(spot.picture.colored for spot in spots):
        notes.append(f"{colored} images have several samples per pixel (colors) and are left out")
    left_out = [file for file, found in known.items() if not found]
    if left_out:
        notes.append(f"{len(left_out)} files do not match the pattern and are left out, e.g. {min(left_out)!r}")
    return images, channels, left_out, len(absent)


def _spread(spot, folder, pages, uuids):
    """(z, c, t), block, file and page of every plane; `pages` are the next free ones of TIFFs that do not say where planes lie."""
    picture, own = spot.picture, spot.sheet.file
    total = math.prod(picture.sizes.values())
    blocks = [(_place(block.start, picture), block) for block in picture.blocks]
    if own in folder.files and not any(_blocks(spot.sheet)):
        blocks = [(0, Block((0, 0, 0), pages.get(own, 0), None, "", ""))]
        pages[own] = pages.get(own, 0) + total
    starts = sorted({start for start, _ in blocks})
    # A block that does not say how many planes it has reaches to the next one.
    ends = dict(zip(starts, [*starts[1:], total], strict=False))
    for start, block in blocks:
        count = ends[start] - start if block.count is None else min(block.count, total - start)
        file = _file_of(folder, spot.sheet, block, uuids)
        for step in range(count):
            yield _unravel(start + step, picture), block, file, block.page + step


def _place(at, picture):
    """Number of a plane in the order of dimensions; the first of them changes fastest."""
    place, stride = 0, 1
    for axis in picture.order:
        place += at["ZCT".index(axis)] * stride
        stride *= picture.sizes[axis]
    return place


def _unravel(place, picture):
    """(z, c, t) of a plane's number."""
    at = {}
    for axis in picture.order:
        place, at[axis] = divmod(place, picture.sizes[axis])
    return at["Z"], at["C"], at["T"]


def _file_of(folder, sheet, block, uuids):
    """Path of the TIFF that a block lies in; None where it is not there."""
    if block.file and (found := folder.find(sheet, block.file)):
        return found
    if sheet.file in folder.files and (block.uuid == sheet.uuid if block.uuid else not block.file):
        return sheet.file  # also where it was renamed: its UUID is still its own
    if block.uuid in uuids:
        return uuids[block.uuid]
    if block.file:  # absent, or outside
        inside(folder.source, posixpath.join(posixpath.dirname(sheet.file), block.file))
    return None


def _image(folder, spot, names, at, file, page, kind, params):
    """One plane with all that is known of it."""
    picture, said, (z, c, t) = spot.picture, spot.said, at
    place, height, delta = picture.planes.get(at, ((None, None), None, None))
    if None in place:  # often given for the first plane of a field alone
        place = picture.place
    y, x = (
        _micrometers(length, params.position_unit)
        for length in {"plane": place, "sample": spot.place}.get(kind, picture.stage)
    )
    z_um = _micrometers(height, params.position_unit)
    if z_um is None and picture.z_step_um is not None and picture.sizes["Z"] > 1:
        z_um = z * picture.z_step_um
    return SourceImage(
        spot.well,
        said.get("field", spot.field),
        said.get("channel", names[c]),
        said.get("z", z),
        said.get("t", t),
        file,
        *folder.status(file),
        page,
        y_um=y if None not in (y, x) else None,
        x_um=x if None not in (y, x) else None,
        z_um=z_um,
        pixel_size_um=picture.pixel_size_um,
        seconds=None if picture.seconds is None else picture.seconds + (delta or 0.0),
        wavelength_nm=picture.channels[c][2],
    )


def _kind_of_place(spots, params, notes):
    """Which positions count for all fields: those of planes, samples or stage labels, the first that there are."""
    without = False
    for kind in ("plane", "sample", "stage"):
        for spot in spots:
            place = {"plane": spot.picture.place, "sample": spot.place}.get(kind, spot.picture.stage)
            if None in place:
                continue
            if all(_micrometers(length, params.position_unit) is not None for length in place):
                return kind
            without = True
    if without:
        notes.append("positions have no unit of length and are left out; give it with the parameter `position_unit`")
    return None


def _stand_ins(folder, broken, images, params, notes):
    """Planes for TIFFs that cannot be read: those of the first file that can, in the well and field that the name says."""
    match = _matcher(params) if params.pattern and params.names == "file" else None
    found, unknown = [], []
    template = [image for image in images if image.file == images[0].file]
    for name in broken:
        said = match(name.rpartition("/")[2]) if match else None
        if not said:
            unknown.append(name)
            continue
        well, facts = name_well(pattern.well_text(said), name), pattern.said(said, name)
        for image in template:
            found.append(
                SourceImage(
                    well,
                    facts.get("field", image.field),
                    facts.get("channel", image.channel),
                    facts.get("z", image.z),
                    facts.get("t", image.t),
                    name,
                    *folder.status(name),
                    image.page,
                )
            )
    if broken:
        left = f", {len(unknown)} of them without a well in their name: left out" if unknown else ""
        notes.append(f"{len(broken)} TIFFs cannot be read{left}; {next(iter(broken.values()))}")
    return found


def _settle_positions(images, params, notes):
    """Mirror positions as the parameters say, and drop those of wells whose fields would all lie on one spot."""
    wells = {}
    for image in images:
        wells.setdefault(image.well, {}).setdefault(image.field, (image.y_um, image.x_um))
    same = {well for well, fields in wells.items() if len(fields) > 1 and len(set(fields.values())) == 1}
    same = {well for well in same if (None, None) not in wells[well].values()}
    if same:
        notes.append(f"{len(same)} wells have one position for all fields, so none is used, e.g. {min(same)}")
    signs = [-1.0 if axis in params.mirror else 1.0 for axis in "yx"]
    settled = []
    for image in images:
        if image.y_um is not None:
            y, x = (None, None) if image.well in same else (image.y_um * signs[0], image.x_um * signs[1])
            image = image._replace(y_um=y, x_um=x)
        settled.append(image)
    return settled


def _note_strangers(folder, sheets, images, others, notes):
    """Note the TIFFs that no metadata mention, and fields whose pixels have no size."""
    known = {image.file for image in images} | others | {sheet.file for sheet in sheets}
    known |= {folder.find(sheet, block.file) for sheet in sheets for block in _blocks(sheet) if block.file}
    if strangers := sorted(set(folder.files) - known):
        notes.append(f"{len(strangers)} TIFFs are named by no metadata and are left out, e.g. {strangers[0]!r}")
    if unknown := {image[:2] for image in images if image.pixel_size_um is None and image.file not in others}:
        notes.append(f"{len(unknown)} fields have no size of pixels (no PhysicalSizeX, or X and Y differ)")
