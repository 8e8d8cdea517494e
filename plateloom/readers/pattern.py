"""Folders whose file names say which plane they hold: a regular expression with named groups."""

import os
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from plateloom.errors import PlateLayoutError, UnreadableImageError
from plateloom.readers import SourceImage
from plateloom.store.provenance import file_digest
from plateloom.wells import parse_well, well_name

SUFFIXES = (".tif", ".tiff", ".png")
GROUPS = {"well", "row", "column", "field", "channel", "z", "t"}

# Layouts that `plateloom init` knows by name.
KNOWN = {
    "plateloom": r"(?P<well>[A-Z]{1,2}\d{2})_s(?P<field>\d+)_w(?P<channel>\d+)\.tiff?",
    "bbbc013": r"Channel(?P<channel>\d+)-\d+-(?P<row>[A-P])-(?P<column>\d+)\.tiff?",
    "cytation": r"(?P<well>[A-P]\d{1,2})_\d+_\d+_(?P<field>\d+)_(?P<channel>[^_]+)_\d+\.tiff?",
    "metaxpress": r".*_(?P<well>[A-P]\d{2})(?:_s(?P<field>\d+))?_w(?P<channel>\d)(?!.*thumb).*\.tiff?",
    "generic": r".*?(?P<well>[A-P]\d{1,2})(?:[-_](?:f|s|field|site)?(?P<field>\d+))?[-_](?P<channel>[A-Za-z][A-Za-z0-9]*)\.(?:tiff?|png)",
}


class Params(BaseModel):
    """What the pattern reader needs to know."""

    model_config = ConfigDict(extra="forbid")

    pattern: str = Field(
        KNOWN["plateloom"],
        description="Regular expression that a whole file name must match, in small or large letters; named groups `well` (or `row` and `column`), "
        "`channel`, and if there are any `field`, `z`, `t`.",
    )
    folders: bool = Field(False, description="Match the path below the source folder instead of the file name alone.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, text):
        try:
            groups = set(re.compile(text).groupindex)
        except re.error as error:
            raise ValueError(f"{text!r} is no regular expression: {error}") from None
        if unknown := groups - GROUPS:
            raise ValueError(f"unknown groups {sorted(unknown)}; known: {', '.join(sorted(GROUPS))}")
        if "well" not in groups and not {"row", "column"} <= groups:
            raise ValueError("the pattern needs a group `well`, or `row` and `column`: (?P<well>[A-P][0-9]{2})")
        return text


def scan(source, params):
    """List the planes of a plate from names, sizes and times alone.

    Parameters
    ----------
    source : path
    params : Params

    Returns
    -------
    list of SourceImage
        In the order of well, field, channel, z, t. Files that do not match are left out.

    Raises
    ------
    PlateLayoutError
        If there is no such folder, or two files claim the same plane.
    """
    source = Path(source)
    if not source.is_dir():
        raise PlateLayoutError(f"no folder {str(source)!r}")
    match = re.compile(params.pattern, re.IGNORECASE).fullmatch
    wells, images = {}, []
    for name, entry in list_files(source):
        found = match(name if params.folders else name.rpartition("/")[2])
        if not found:
            continue
        groups = found.groupdict()
        text = _well_text(found)
        well = wells.get(text)
        if well is None:
            try:
                well = wells[text] = well_name(*parse_well(text))
            except ValueError as error:
                raise PlateLayoutError(f"{name!r}: {error}") from None
        status = entry.stat()
        images.append(
            SourceImage(
                well,
                int(groups.get("field") or 1),
                groups.get("channel") or "1",
                int(groups.get("z") or 0),
                int(groups.get("t") or 0),
                name,
                status.st_size,
                status.st_mtime_ns,
            )
        )
    images.sort()
    for one, two in zip(images, images[1:], strict=False):
        if one[:5] == two[:5]:
            raise PlateLayoutError(
                f"{one.file!r} and {two.file!r} claim the same plane (well {one.well}, field {one.field}, channel "
                f"{one.channel}); narrow the pattern, or remove one of them"
            )
    return images


def listing(source, params):
    """List what a plan depends on, faster than `scan`: it is called for every plate of a screen at every start.

    Yields
    ------
    well : str
        ``A01``.
    line : str
        Name, size [bytes] and time [ns] of a file.
    """
    match = re.compile(params.pattern, re.IGNORECASE).fullmatch
    wells = {}
    for name, entry in list_files(source):
        found = match(name if params.folders else name.rpartition("/")[2])
        if not found:
            continue
        text = _well_text(found)
        if text not in wells:
            try:
                wells[text] = well_name(*parse_well(text))
            except ValueError as error:
                raise PlateLayoutError(f"{name!r}: {error}") from None
        status = entry.stat()
        yield wells[text], f"{name}/{status.st_size}/{status.st_mtime_ns}"


def _well_text(found):
    """The well as a file's name spells it."""
    groups = found.re.groupindex
    return found["well"] if "well" in groups else f"{found['row']}{found['column']}"


def list_files(source):
    """Yield (path below the source with forward slashes, DirEntry) of each image file, without following links out."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(Path(source, folder)) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
                elif entry.name.lower().endswith(SUFFIXES):
                    yield name, entry


def load(source, image):
    """Read and decode one plane.

    Parameters
    ----------
    source : path
    image : SourceImage

    Returns
    -------
    plane : ndarray of uint8 or uint16, shape (Y, X)
    content : str
        Digest of the file's bytes.

    Raises
    ------
    UnreadableImageError
        If the file cannot be decoded, or holds anything but one gray plane of unsigned integers.
    """
    data = Path(source, image.file).read_bytes()
    return _decode(data, image), file_digest(data)


def recognise(source, names):
    """Find the layout of a folder from its file names.

    Parameters
    ----------
    source : path
    names : sequence of str
        Paths below the source.

    Returns
    -------
    dict or None
        `reader`, `params`, `layout` and `share`, the share of files that match; None where nothing matches.
    """
    stems = [name.rpartition("/")[2] for name in names if name.lower().endswith(SUFFIXES)]
    shares = {
        layout: sum(bool(re.fullmatch(pattern, stem, re.IGNORECASE)) for stem in stems) / len(stems)
        for layout, pattern in KNOWN.items()
        if stems
    }
    if not shares or max(shares.values()) < 0.5:
        return None
    layout = max(shares, key=shares.get)
    return {"reader": "pattern", "params": {"pattern": KNOWN[layout]}, "layout": layout, "share": shares[layout]}


def _decode(data, image):
    """Pixels of a file given as bytes."""
    import io

    import numpy as np

    try:
        if image.file.lower().endswith(".png"):
            from imagecodecs import png_decode

            plane = png_decode(data)
        else:
            from tifffile import TiffFile

            with TiffFile(io.BytesIO(data)) as tiff:
                page = tiff.pages[0]
                declared = int(np.prod(page.shape)) * page.dtype.itemsize if page.dtype else 0
                if declared > 1 << 30 or (page.compression == 1 and declared > len(data)):
                    raise ValueError(f"declares {declared} bytes of pixels, the file has {len(data)}")
                if len(tiff.pages) > 1:
                    raise ValueError(f"holds {len(tiff.pages)} pages, expected one")
                plane = page.asarray()
    except Exception as error:  # decoders raise whatever they like; any of it means that the file is bad
        raise UnreadableImageError(f"{image.file}: cannot be decoded ({error or type(error).__name__})") from None
    plane = np.squeeze(plane)
    if plane.ndim != 2 or plane.dtype not in (np.uint8, np.uint16):
        raise UnreadableImageError(
            f"{image.file}: {plane.dtype} {plane.shape} pixels, expected one plane of uint8 or uint16"
        )
    return plane
