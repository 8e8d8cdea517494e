"""Folders whose file names say which plane they hold: a regular expression with named groups."""

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

from plateloom.readers import Source, SourceImage
from plateloom.readers.folders import IMAGES, list_changes, list_files, name_well, sort_planes
from plateloom.readers.planes import load_plane as load

__all__ = ["KNOWN", "Params", "listing", "load", "recognise", "scan"]

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
    Source
        Files that do not match are left out.

    Raises
    ------
    PlateLayoutError
        If there is no such folder, or two files claim the same plane.
    """
    match = re.compile(params.pattern, re.IGNORECASE).fullmatch
    wells, images = {}, []
    for name, entry in list_files(source):
        found = match(name if params.folders else name.rpartition("/")[2])
        if not found:
            continue
        groups = found.groupdict()
        text = _well_text(found)
        if text not in wells:
            wells[text] = name_well(text, name)
        status = entry.stat()
        images.append(
            SourceImage(
                wells[text],
                int(groups.get("field") or 1),
                groups.get("channel") or "1",
                int(groups.get("z") or 0),
                int(groups.get("t") or 0),
                name,
                status.st_size,
                status.st_mtime_ns,
            )
        )
    return Source(sort_planes(images))


def listing(source, params):
    """See `plateloom.readers.folders.list_changes`."""
    match = re.compile(params.pattern, re.IGNORECASE).fullmatch

    def well_of(name):
        found = match(name if params.folders else name.rpartition("/")[2])
        return _well_text(found) if found else None

    return list_changes(source, IMAGES, well_of)


def _well_text(found):
    """The well as a file's name spells it."""
    groups = found.re.groupindex
    return found["well"] if "well" in groups else f"{found['row']}{found['column']}"


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
    stems = [name.rpartition("/")[2] for name in names if name.lower().endswith(IMAGES)]
    shares = {
        layout: sum(bool(re.fullmatch(pattern, stem, re.IGNORECASE)) for stem in stems) / len(stems)
        for layout, pattern in KNOWN.items()
        if stems
    }
    if not shares or max(shares.values()) < 0.5:
        return None
    layout = max(shares, key=shares.get)
    return {"reader": "pattern", "params": {"pattern": KNOWN[layout]}, "layout": layout, "share": shares[layout]}
