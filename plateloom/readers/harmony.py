"""Operetta and Opera Phenix: an index in XML names every plane, with its position and pixel size.

What Harmony 4 to 7 export, and Columbus as TIFF files::

    Plate 1__2022-12-19T10_18_51-Measurement 1/
        Images/Index.idx.xml                        Index.xml since Harmony 6; in either case of letters
        Images/r03c03f01p01-ch1sk1fk1fl1.tiff       row, column, field, plane, channel, time point
        FFC_Profile/FFC_Profile_Measurement 1.xml   flat-fields; read where the index has none
        Assaylayout/, Evaluation1/ …                not read

The index may also stand above the planes. Its ``Images/Image`` has State, URL (the file; empty where nothing was
recorded), Row, Col, FieldID, PlaneID, ChannelID (counted from 1), TimepointID (from 0, or from 1), AbsTime and the
positions. A channel's name, pixel size, wavelength and orientation stand in each ``Image``, or since Harmony 6 once, in
an ``Entry`` of one of the ``Maps``. Namespaces differ with the version and do not matter.

PositionX and PositionY [m] are a field's center against the well's, on the axes of the stage, y upwards. The left of
the OrientationMatrix turns the camera's axes (y as the rows grow) into those of the stage, with scale and tilt, so its
inverse gives places in pixels; without it, fields at 10× were seen to be off by 8 px from one to the next.
ImageResolutionX [m/px] is that of binned pixels. PositionZ [m] is the height against the focus that the autofocus
found, AbsPositionZ [m] that of the objective, and counts where PositionZ is not there. No file marks the end.
"""

import math
import posixpath
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from plateloom.errors import PlateLayoutError, some_of
from plateloom.readers import Source, SourceImage
from plateloom.readers.folders import below, list_changes, list_files, sort_planes
from plateloom.readers.markup import elements
from plateloom.readers.planes import load_plane as load
from plateloom.wells import well_name

__all__ = ["Params", "listing", "load", "recognize", "scan"]

# In the order of preference, where a folder has several.
INDEXES = ("index.idx.xml", "index.xml", "index.ref.xml", "imageindex.columbusidx.xml")
ROOT = "EvaluationInputData"
FLATFIELDS = ("ffc_profile", "flatfieldcorrection")  # folders
SUFFIXES = (".tif", ".tiff", ".xml")
NAME = re.compile(r"(?:^|_)r(\d\d)c(\d\d)f\d", re.IGNORECASE)
ROWS, COLUMNS, MOST = 32, 48, 999_999  # of a plate, and of whatever else is counted
MICROMETERS = {"m": 1e6, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3}
UPRIGHT = ((1.0, 0.0), (0.0, -1.0))  # stage to camera where nothing else is known: rows grow downwards
TEXT_LIMIT, DEPTH_LIMIT = 100_000, 16  # characters and nesting of a bracketed text
KEY = re.compile(r' ?"?(\w+)"? ?: ?')
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
IN_BRACES = re.compile(r'[^\[\]{}]*?(?= ?(?:, ?"?\w+"? ?:|[\[\]{}]|$))')  # may hold commas: up to the next name
IN_BRACKETS = re.compile(r"[^\[\]{},]*")


class Params(BaseModel):
    """What the Harmony reader needs to know."""

    model_config = ConfigDict(extra="forbid")

    channel: Literal["name", "number"] = Field(
        "name",
        description="What a channel is called: its ChannelName where no other channel of the plate has it and else its "
        "ChannelID; or always its ChannelID.",
    )
    orientation: bool = Field(
        True,
        description="Turn positions from the axes of the stage to those of the camera by the index's OrientationMatrix "
        "(scale and tilt); without it, and where there is none, y is flipped and nothing else.",
    )
    only: dict[str, list[str | int]] = Field(
        default_factory=dict,
        description="Images that count, by an element of the index and its values, such as `{SequenceID: [1]}`, where "
        "several images claim the same plane. `{State: [Ok]}` unless State stands here.",
    )


class _Optics(NamedTuple):
    """What an index says of a channel; None where it says nothing."""

    name: str | None
    pixel_um: float | None
    oblong: bool
    wavelength_nm: float | None
    axes: tuple | None  # stage to camera, by rows; empty where the matrix cannot be read
    color: str | None


OPTICS = (
    "ChannelName",
    "ImageResolutionX",
    "ImageResolutionY",
    "MainEmissionWavelength",
    "OrientationMatrix",
    "ChannelColor",
)


class _Listed(NamedTuple):
    """One image as the index lists it; x and y on the axes of the stage."""

    well: str
    field: int
    channel: str
    z: int
    t: int
    url: str
    page: int
    x_um: float | None
    y_um: float | None
    z_um: float | None
    seconds: float | None
    optics: _Optics
    traits: tuple  # texts of the elements that decide whether it counts


class _Index(NamedTuple):
    """What is read from an index."""

    name: str
    listed: list
    profiles: dict  # texts of flat-fields by ChannelID
    shape: tuple | None
    selected: set  # wells that were to be imaged
    plate: str = ""  # its barcode, or what a person has typed in its place


def scan(source, params):
    """List the planes that the index names and the folder has.

    Parameters
    ----------
    source : path
        The measurement's folder, its ``Images``, or any folder with this one measurement in it.
    params : Params

    Returns
    -------
    Source
        `channels` has `name`, `color` (Columbus), and `flatfield`: the dict of `read_flatfield`.

    Raises
    ------
    PlateLayoutError
        If there is no index or more than one measurement, or the index is broken, or contradicts itself or the files.
    """
    files = dict(list_files(source, SUFFIXES))
    name, notes = _choose_index(source, files)
    wanted = params.only if "State" in params.only else params.only | {"State": ["Ok"]}
    index = _read_index(Path(source, name), name, tuple(wanted))
    counted, refused = _select(index, wanted, params.only)
    # A name does not change with what a file or a state lacks.
    named = counted + [listed for listed, tag, _ in refused if tag not in params.only]
    calls = _call_channels(named, params.channel)
    locate = _locator(source, name, files)
    images, absent = [], []
    for listed in counted:
        path = locate(listed)
        if path is None:
            absent.append(listed)
        else:
            images.append(_describe_plane(listed, calls[listed.channel], path, files[path].stat(), params.orientation))
    images = sort_planes(images)
    _refuse_shared_files(images, name)
    unlisted = {path for path in files if not path.lower().endswith(".xml")} - {image.file for image in images}
    unlisted -= {locate(listed) for listed, _, _ in refused}
    channels, unreadable = _describe_channels(source, files, index, counted, calls)
    notes += _note_absent(absent, images, index)
    notes += _note_refused(refused, name)
    if unlisted:
        notes.append(f"{len(unlisted)} TIFF files are not listed in {name!r} and left out ({_list_some(unlisted)})")
    if unreadable:
        notes.append(f"flat-fields that cannot be read: {_list_some(unreadable)}")
    notes += _note_optics(counted, calls, params)
    missing = sum(bool(listed.url) for listed in absent)
    return Source(images, index.shape, channels, None, notes, plate=index.plate, absent=missing)


def listing(source, params):
    """See `plateloom.readers.folders.list_changes`; wells are those of the files' names."""

    def well_of(name):
        if name.lower().endswith(".xml"):
            return "" if _is_index(name) or _is_flatfield(name) else None
        return _well_in(name) or ""

    return list_changes(source, SUFFIXES, well_of)


def recognize(source, names):
    """Find an index of Harmony below a folder.

    Parameters
    ----------
    source : path
    names : sequence of str
        Paths below the source, those of XML files among them.

    Returns
    -------
    dict or None
        `reader`, `params`, `layout` and `share`; None where there is no index, or its root element is another one.
    """
    if not any(_has_root(Path(source, name)) for name in names if _is_index(name)):
        return None
    return {"reader": "harmony", "params": {}, "layout": "harmony", "share": 1.0}


def read_flatfield(text):
    """Read the text of a FlatfieldProfile.

    Parameters
    ----------
    text : str

    Returns
    -------
    dict
        Of the Background: `character`; `mean` [counts]; where it is a polynomial, `coefficients` (one list of floats
        for each order n, of the terms x**(n-k) * y**k, with a mean of 1 over the image), and the `dims` [px], `origin`
        [px] and `scale` [1/px] of x and y; each only where the text has it. `foreground` has the same of the
        Foreground, where there is one.

    Raises
    ------
    ValueError
        If it is no such text, or what should be finite numbers is not.

    Examples
    --------
    >>> read_flatfield("{Background: {Character: Flat, Mean: 95.5, Profile: {Type: Identity}}, Channel: 1}")
    {'character': 'Flat', 'mean': 95.5}
    """
    parts = parse_braces(text)
    if not isinstance(parts, dict):
        raise ValueError("a flat-field begins with a brace")
    found = _read_profile(parts["Background"]) if "Background" in parts else {}
    return found | ({"foreground": _read_profile(parts["Foreground"])} if "Foreground" in parts else {})


def parse_braces(text):
    """Parse a bracketed text of Harmony: JSON, most of whose quotes may be left out.

    Parameters
    ----------
    text : str

    Returns
    -------
    dict, list or str
        Numbers too are texts.

    Raises
    ------
    ValueError
        If brackets do not match, a name is missing, or the text is too long or too deeply nested.

    Examples
    --------
    >>> parse_braces('{Name: Alexa 488, far, "Lists": [[1], [2, -3E-1]]}')
    {'Name': 'Alexa 488, far', 'Lists': [['1'], ['2', '-3E-1']]}
    """
    if len(text) > TEXT_LIMIT:
        raise ValueError(f"{len(text)} characters, expected {TEXT_LIMIT} at most")
    text = " ".join(text.split())
    value, end = _parse_value(text, 0, IN_BRACES, 0)
    if end != len(text):
        raise ValueError(f"expected nothing more at {text[end : end + 20]!r}")
    return value


def _parse_value(text, at, bare, depth):
    """The value that begins at a place of a text without double spaces, and the place behind it."""
    opening = text[at : at + 1]
    if opening == '"' and (quoted := QUOTED.match(text, at)):
        return quoted[1], _behind(text, quoted.end())
    if opening not in ("{", "["):
        plain = bare.match(text, at)
        return plain[0].strip(), _behind(text, plain.end())
    if depth == DEPTH_LIMIT:
        raise ValueError("nested too deeply")
    closing, names, values = ("}", [], []) if opening == "{" else ("]", None, [])
    at = _behind(text, at + 1)
    while text[at : at + 1] != closing:
        if names is not None:
            key = KEY.match(text, at)
            if not key:
                raise ValueError(f"expected a name at {text[at : at + 20]!r}")
            names.append(key[1])
            at = key.end()
        value, at = _parse_value(text, at, IN_BRACKETS if names is None else IN_BRACES, depth + 1)
        values.append(value)
        if text[at : at + 1] == ",":
            at = _behind(text, at + 1)
        elif text[at : at + 1] != closing:
            raise ValueError(f"expected {closing!r} at {text[at : at + 20]!r}")
    return values if names is None else dict(zip(names, values, strict=True)), _behind(text, at + 1)


def _behind(text, at):
    """The place itself, or the one behind the space that stands there."""
    return at + (text[at : at + 1] == " ")


def _read_profile(part):
    """Half of a flat-field, its numbers as numbers."""
    if not isinstance(part, dict) or not isinstance(part.get("Profile", {}), dict):
        raise ValueError("expected braces in a flat-field")
    profile, found = part.get("Profile", {}), {}
    if isinstance(part.get("Character"), str):
        found["character"] = part["Character"]
    if (mean := _number(part.get("Mean"))) is not None:
        found["mean"] = mean
    if "Coefficients" in profile:
        found["coefficients"] = [_read_numbers(row) for row in profile["Coefficients"]]
        for key in ("Origin", "Scale", "Dims"):
            if key in profile:
                found[key.lower()] = _read_numbers(profile[key])
        if "dims" in found:
            found["dims"] = [int(number) for number in found["dims"]]
    return found


def _read_numbers(texts):
    """Finite numbers of a list of texts."""
    numbers = [_number(text) for text in texts] if isinstance(texts, list) else [None]
    if None in numbers:
        raise ValueError(f"expected a list of numbers, found {str(texts)[:40]!r}")
    return numbers


def _number(text):
    """A finite number, or None."""
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _is_index(name):
    """Whether a file may be an index, by its name or by that of its folder."""
    *_, folder, base = ("", *name.lower().split("/"))
    return base in INDEXES or (folder == "index" and base.endswith(".xml"))


def _has_root(path):
    """Whether a file's root element is that of an index; the rest of it is not read."""
    try:
        return next(elements(path, root=True)).tag == ROOT
    except PlateLayoutError:
        return False


def _is_flatfield(name):
    """Whether a file may hold flat-fields beside the index."""
    *_, folder, base = ("", *name.lower().split("/"))
    return folder in FLATFIELDS and base.endswith(".xml")


def _well_in(name):
    """The well in a plane's file name, or None."""
    found = NAME.search(posixpath.basename(name))
    if not found or not (1 <= int(found[1]) <= ROWS and 1 <= int(found[2]) <= COLUMNS):
        return None
    return well_name(int(found[1]) - 1, int(found[2]) - 1)


def _choose_index(source, files):
    """The one index below a folder, and a note where its folder has others."""
    candidates = sorted(filter(_is_index, files))
    named = [name for name in candidates if posixpath.basename(name).lower() in INDEXES]
    candidates = named or candidates
    if not candidates:
        raise PlateLayoutError(
            f"no Index.idx.xml or Index.xml in {str(source)!r} or below it; a Harmony export has one beside its images"
        )
    if len({posixpath.dirname(name) for name in candidates}) > 1:
        candidates = [name for name in candidates if _has_root(Path(source, name))] or candidates
    folders = {posixpath.dirname(name) for name in candidates}
    if len(folders) > 1:
        raise PlateLayoutError(
            f"{str(source)!r} holds {len(folders)} measurements ({_list_some(candidates)}); give one of their folders"
        )
    rank = {name: number for number, name in enumerate(INDEXES)}
    first, *others = sorted(candidates, key=lambda name: (rank.get(posixpath.basename(name).lower(), 9), name))
    return first, [f"{first!r} is read, {_list_some(others)} beside it is not"] if others else []


def _read_index(path, name, wanted):
    """Read an index; `wanted` are the elements whose texts decide whether an image counts."""
    rows, selected, shape, start, plate = [], set(), None, None, ""
    # Facts of a channel may stand in several maps, before or behind the images; elements go before bracketed texts.
    entries, bracketed, profiles = {}, {}, {}
    found = elements(path, "Plate", "Entry", "Image", root=True)
    root = next(found)
    if root.tag != ROOT:
        raise PlateLayoutError(f"{name!r} is no index of Harmony: its root element is {root.tag[:40]!r}")
    for element in found:
        facts = {child.tag: ((child.text or "").strip(), child.get("Unit", "")) for child in element}
        if element.tag == "Image":
            if facts:  # else it is a reference in a list of a well's images
                rows.append(_read_image(element, facts, start, wanted, name))
        elif element.tag == "Entry":
            _read_entry(element.get("ChannelID", "").strip(), facts, entries, bracketed, profiles)
        else:
            shape = shape or _read_shape(facts)
            plate = plate or facts.get("PlateID", ("",))[0]
            start = start or _moment(facts.get("MeasurementStartTime", ("",))[0])
            selected |= {well for well in map(_well_of_id, element.iterfind("Well")) if well}
    listed = _complete(rows, entries, bracketed, wanted)
    if shape:
        _refuse_wells_outside(listed, shape, name)
    return _Index(name, listed, profiles, shape, selected, plate)


def _read_image(element, facts, start, wanted, name):
    """One image, its optics as raw texts for now."""
    label = f"{name!r}, image {facts.get('id', ('',))[0][:40]!r}"
    row, column = _whole(facts, "Row", label, 1, ROWS), _whole(facts, "Col", label, 1, COLUMNS)
    url = element.find("URL")
    page = "" if url is None else url.get("BufferNo", "").strip()
    if page and not (page.isascii() and page.isdigit() and len(page) < 7):
        raise PlateLayoutError(f"{label}: BufferNo is {page[:40]!r}, expected a whole number")
    x_um, y_um = _micrometers(facts.get("PositionX")), _micrometers(facts.get("PositionY"))
    if x_um is None or y_um is None:
        x_um = y_um = None
    z_um = _micrometers(facts.get("PositionZ"))
    seconds = _moment(facts.get("AbsTime", ("",))[0])
    offset = _number(facts.get("MeasurementTimeOffset", ("",))[0])
    if seconds is None and start is not None and offset is not None and 0 <= offset < 1e9:
        seconds = start + offset
    return _Listed(
        well_name(row - 1, column - 1),
        _whole(facts, "FieldID", label),
        str(_whole(facts, "ChannelID", label)),
        _whole(facts, "PlaneID", label, default=0),
        _whole(facts, "TimepointID", label, default=0),
        facts.get("URL", ("",))[0],
        int(page) if page else -1,
        x_um,
        y_um,
        _micrometers(facts.get("AbsPositionZ")) if z_um is None else z_um,
        seconds,
        tuple(facts.get(tag) for tag in OPTICS),
        tuple(facts.get(tag, ("",))[0] for tag in wanted),
    )


def _read_entry(number, facts, entries, bracketed, profiles):
    """Add what a map says of one channel."""
    if not (number.isascii() and number.isdigit() and len(number) < 7):
        return
    channel = str(int(number))
    if text := facts.get("FlatfieldProfile", ("",))[0]:
        profiles.setdefault(channel, text)
    known, spare = entries.setdefault(channel, {}), bracketed.setdefault(channel, {})
    for tag, fact in facts.items():
        if fact[0]:
            known.setdefault(tag, fact)
        if fact[0].startswith("{"):
            try:
                inner = parse_braces(fact[0])
            except ValueError:
                continue
            for key, value in inner.items():
                if isinstance(value, str):
                    spare.setdefault(key, (value, ""))


def _complete(rows, entries, bracketed, wanted):
    """Fill in what stands once for a channel, and turn texts into optics; equal ones only once."""
    optics, traits, listed = {}, {}, []
    for row in rows:
        own, trait = (row.channel, row.optics), (row.channel, row.traits)
        if own not in optics or trait not in traits:
            facts = bracketed.get(row.channel, {}) | entries.get(row.channel, {})
            texts = (fact if fact and fact[0] else facts.get(tag) for tag, fact in zip(OPTICS, row.optics, strict=True))
            optics[own] = _read_optics(*(fact or ("", "") for fact in texts))
            traits[trait] = tuple(
                text or facts.get(tag, ("",))[0] for tag, text in zip(wanted, row.traits, strict=True)
            )
        listed.append(row._replace(optics=optics[own], traits=traits[trait]))
    return listed


def _read_optics(name, width, height, wavelength, matrix, color):
    """Optics from texts and their units; what cannot be read is not there."""
    pixel_um, height_um, emission = _micrometers(width), _micrometers(height), _number(wavelength[0])
    pixel_um = pixel_um if pixel_um and pixel_um > 0 else None
    oblong = bool(pixel_um and height_um) and not math.isclose(pixel_um, height_um, rel_tol=1e-3)
    shade = color[0] if color[0].isascii() and color[0].isdigit() and len(color[0]) <= 10 else None
    return _Optics(
        " ".join(name[0].split()) or None,
        None if oblong else pixel_um,
        oblong,
        emission if emission and emission > 0 else None,
        _invert(matrix[0]) if matrix[0] else None,
        f"{int(shade) & 0xFFFFFF:06X}" if shade else None,
    )


def _invert(text):
    """Stage to camera, by rows, from the text of an OrientationMatrix; empty where that is none.

    >>> _invert("[[2,0,0,-35.6],[0,-0.5,0,67.3],[0,0,1.33,-15.125]]")
    ((0.5, 0.0), (0.0, -2.0))
    """
    try:
        rows = parse_braces(text)
        (a, b, *_), (c, d, *_) = (_read_numbers(row) for row in (rows[:2] if isinstance(rows, list) else ()))
    except ValueError:
        return ()
    determinant = a * d - b * c
    # A camera is mounted nearly as large as nominal; a matrix that is not so would only scatter the fields.
    if not 0.25 < abs(determinant) < 4:
        return ()
    return tuple(tuple(value / determinant + 0.0 for value in row) for row in ((d, -b), (-c, a)))


def _micrometers(fact):
    """A length [µm] from its text and unit (m where there is none), or None; no stage moves by a kilometer."""
    if not fact:
        return None
    number, factor = _number(fact[0]), MICROMETERS.get(fact[1] or "m")
    return None if number is None or factor is None or abs(number * factor) > 1e9 else number * factor


def _moment(text):
    """Seconds since 1970 of an ISO time (UTC where it names no zone), or None."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return seconds if seconds > 0 else None


def _whole(facts, tag, label, least=0, most=MOST, default=None):
    """A whole number of an image."""
    text = facts.get(tag, ("",))[0]
    if not text and default is not None:
        return default
    if text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most:
        return int(text)
    raise PlateLayoutError(f"{label}: {tag} is {text[:40]!r}, expected a whole number from {least} to {most}")


def _read_shape(facts):
    """Rows and columns of the plate, or None where they are not said or not possible."""
    texts = [facts.get(tag, ("",))[0] for tag in ("PlateRows", "PlateColumns")]
    if not all(text.isascii() and text.isdigit() and len(text) < 3 for text in texts):
        return None
    rows, columns = map(int, texts)
    return (rows, columns) if 1 <= rows <= ROWS and 1 <= columns <= COLUMNS else None


def _well_of_id(element):
    """The well of ``<Well id="0303" />``, or None."""
    text = element.get("id", "")
    if not re.fullmatch("[0-9]{4}", text) or not (1 <= int(text[:2]) <= ROWS and 1 <= int(text[2:]) <= COLUMNS):
        return None
    return well_name(int(text[:2]) - 1, int(text[2:]) - 1)


def _refuse_wells_outside(listed, shape, name):
    """The wells of a plate lie on it."""
    inside = {well_name(row, column) for row in range(shape[0]) for column in range(shape[1])}
    if outside := {item.well for item in listed} - inside:
        raise PlateLayoutError(
            f"{name!r} lists well {min(outside)}, which is not on its plate of {shape[0]} × {shape[1]} wells; "
            "export the measurement again"
        )


def _select(index, wanted, asked):
    """The images that count, and the others with the element and the text that decide it."""
    counted, refused = [], []
    values = [{str(value).casefold() for value in wanted[tag]} for tag in wanted]
    for i, tag in enumerate(wanted):
        if tag in asked and index.listed and not any(listed.traits[i] for listed in index.listed):
            raise PlateLayoutError(
                f"no image in {index.name!r} has a {tag!r}; change `only` of the reader's parameters"
            )
    for listed in index.listed:
        texts = zip(wanted, listed.traits, values, strict=True)
        tag, text = next(((tag, text) for tag, text, own in texts if text and text.casefold() not in own), (None, ""))
        if tag is None:
            counted.append(listed)
        else:
            refused.append((listed, tag, text))
    return counted, refused


def _call_channels(listed, how):
    """What each ChannelID is called."""
    names = {}
    for item in listed:
        names.setdefault(item.channel, set()).add(item.optics.name)
    own = {channel: found.pop() for channel, found in names.items() if len(found) == 1}
    uses = Counter(own.values())
    calls = {
        channel: own[channel] if own.get(channel) and uses[own[channel]] == 1 and how == "name" else channel
        for channel in names
    }
    return calls if len(set(calls.values())) == len(calls) else {channel: channel for channel in names}


def _locator(source, name, files):
    """A function that finds the file of an image, None where there is none."""
    folder = posixpath.dirname(name)
    planes, by_base = {path for path in files if not path.lower().endswith(".xml")}, {}
    for path in planes:
        by_base.setdefault(posixpath.basename(path).lower(), []).append(path)

    def locate(listed):
        url = listed.url.replace("\\", "/")
        path = posixpath.normpath(posixpath.join(folder, url))
        if path not in planes:
            if path.startswith(("/", "../")) or re.match("[A-Za-z]:", url):
                below(source, url)
            # Archives keep the planes in a folder per well, and copies may have been moved up or down.
            found = by_base.get(posixpath.basename(url).lower(), [None])
            if len(found) > 1:
                raise PlateLayoutError(f"{listed.url!r} of {name!r} may be {_list_some(found)}; remove all but one")
            path = found[0]
        if path and _well_in(path) not in (None, listed.well):
            raise PlateLayoutError(f"{name!r} says that {path!r} shows well {listed.well}, its name says otherwise")
        return path

    return locate


def _describe_plane(listed, call, path, status, turn):
    """The row of a plane whose file is there."""
    x_um = y_um = None
    if listed.x_um is not None:
        across, down = (listed.optics.axes if turn else None) or UPRIGHT
        x_um, y_um = (row[0] * listed.x_um + row[1] * listed.y_um + 0.0 for row in (across, down))
    return SourceImage(
        listed.well,
        listed.field,
        call,
        listed.z,
        listed.t,
        path,
        status.st_size,
        status.st_mtime_ns,
        listed.page,
        y_um,
        x_um,
        listed.z_um,
        listed.optics.pixel_um,
        listed.seconds,
        listed.optics.wavelength_nm,
    )


def _refuse_shared_files(images, name):
    """Two planes are not one file, unless they are pages of it."""
    seen = {}
    for image in images:
        other = seen.setdefault((image.file, image.page), image)
        if other is not image:
            raise PlateLayoutError(
                f"{name!r} names {image.file!r} for two planes (field {other.field}, channel {other.channel}, z "
                f"{other.z}, t {other.t}, and field {image.field}, channel {image.channel}, z {image.z}, t {image.t})"
            )


def _describe_channels(source, files, index, counted, calls):
    """What is known of each channel, and the flat-fields that could not be read."""
    channels, optics = {}, {}
    for listed in counted:
        optics.setdefault(listed.channel, listed.optics)
    for channel in sorted(optics, key=int):
        known = {"name": optics[channel].name, "color": optics[channel].color}
        channels[calls[channel]] = {key: value for key, value in known.items() if value}
    profiles, unreadable = (index.profiles, []) if index.profiles else _read_profiles_beside(source, files)
    for channel, text in profiles.items():
        if channel not in optics:
            continue
        try:
            channels[calls[channel]] |= {"flatfield": found} if (found := read_flatfield(text)) else {}
        except ValueError:
            unreadable.append(f"channel {channel}")
    return channels, unreadable


def _read_profiles_beside(source, files):
    """Texts of the flat-fields that stand in a file of their own, and that file where it cannot be read."""
    names, profiles = sorted(filter(_is_flatfield, files)), {}
    if len(names) != 1:
        return {}, names
    try:
        for element in elements(Path(source, names[0]), "Entry"):
            facts = {child.tag: ((child.text or "").strip(), "") for child in element}
            _read_entry(element.get("ChannelID", "").strip(), facts, {}, {}, profiles)
    except PlateLayoutError:
        return {}, names
    return profiles, []


def _note_absent(absent, images, index):
    """What the index names and the folder has not."""
    if not index.listed:
        return [f"{index.name!r} lists no images"]
    notes, listed = [], {item.well for item in index.listed}
    if unlisted := index.selected - listed:
        notes.append(f"{len(unlisted)} wells were selected and have no image listed ({_list_some(unlisted)})")
    if not absent:
        return notes
    wells = {item.well for item in absent} - {image.well for image in images}
    fields = {(item.well, item.field) for item in absent if item.well not in wells}
    fields -= {(image.well, image.field) for image in images}
    text = f"{len(absent)} of {len(absent) + len(images)} images listed in {index.name!r} are not there"
    if unrecorded := sum(not item.url for item in absent):
        text += f", {unrecorded} of them never recorded"
    if wells:
        text += f"; nothing of {len(wells)} wells ({_list_some(wells)})"
    if fields:
        text += f"; nothing of {len(fields)} fields ({_list_some(f'{well} field {field}' for well, field in fields)})"
    return [*notes, text]


def _note_refused(refused, name):
    """What the index lists and does not count, by its state or the reader's parameters."""
    if not refused:
        return []
    counts = Counter(f"{tag} {text[:40]!r}" for _, tag, text in refused)
    kinds = _list_some(f"{kind}: {count}" for kind, count in counts.items())
    return [f"{len(refused)} images listed in {name!r} do not count ({kinds})"]


def _note_optics(counted, calls, params):
    """What is odd about channels."""
    notes = []
    if oblong := sum(listed.optics.oblong for listed in counted):
        notes.append(f"pixels of {oblong} images are not square, so their size is left out")
    if params.orientation and (crooked := sum(listed.optics.axes == () for listed in counted)):
        notes.append(f"OrientationMatrix of {crooked} images cannot be read; their positions are not turned")
    shared = {item.channel for item in counted if item.optics.name not in (None, calls[item.channel])}
    if params.channel == "name" and shared:
        notes.append(f"names of channels {_list_some(shared)} are not their own; they are called by their numbers")
    return notes


def _list_some(texts, most=5):
    """The first of some texts, for a person."""
    some = some_of(sorted(map(str, texts)), most)
    return "".join(letter if letter.isprintable() else "?" for letter in some)
