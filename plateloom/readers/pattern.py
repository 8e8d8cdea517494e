r"""Folders whose file names say which plane they hold: a regular expression with named groups.

Names hold no position, no pixel size and no end marker: `y_um`, `x_um` and `Source.finished` stay None. Layouts known
by name (`KNOWN`), each with what it is called after; a letter's case never matters:

========== ============================================================ ==================================================
plateloom  ``A01_s1_w1.tif``                                            well, field, channel
bbbc013    ``Channel1-01-A-01.tif``, ``Channel 1-01-A-01-00.tif``       Vitra's naming: channel, running number, well, field
cytation   ``B7_01_1_3_DAPI_001.tif``, ``B3_02_1_1Z0_Bright Field_001`` Gen5: well, step, channel's number, field, z, channel, t
cytation_roi ``A1ROI2_01_1_1Z0_Confocal DAPI_001.tif``                  the same, each region of interest a field
gen5       ``P24_1_Bright Field_1_001_02.tif``                          Gen5 before version 3
harmony    ``r01c01f01p01-ch1sk1fk1fl1.tiff``, ``…-ch01t01.tiff``       Opera Phenix, Operetta: row, column, field, plane
metaxpress ``exp_A02_s2_w1{GUID}.TIF``                                  ImageXpress, so BBBC006, 021 and 022; no thumbnails
yokogawa   ``P_B03_T0001F001L01A01Z01C01.png``                          CV7000, CV8000
incell     ``A - 01(fld 01 wv DAPI - DAPI z 3 time 1 - 0 ms).tif``      InCell Analyzer
cellomics  ``AS_09125_050116030001_D03f00d0.tif``                       ArrayScan, CellInsight: field and dye from 0
kinetic    ``platei3t001A01f01d2.TIF``                                  the same, with time points
evos       ``scan_R_p2_z1_0_B03f01d0.tif``                              EVOS, raw images only
scanr      ``A1--W00001--P00001--Z00000--T00000--DAPI.tif``             scanR
generic    anything with a well, and a word or a site at its end        a guess
single     ``P1_A01.tif``, ``A01.tif``                                  a guess: one plane in each well
========== ============================================================ ==================================================
"""

import contextlib
import itertools
import os
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from plateloom.errors import PlateLayoutError
from plateloom.readers import Source, SourceImage
from plateloom.readers.folders import IMAGES, compile_expression, list_changes, list_files, name_well, sort_planes
from plateloom.readers.planes import load_plane as load
from plateloom.wells import row_name

__all__ = ["KNOWN", "Params", "group_number", "listing", "load", "matcher", "recognize", "said", "scan", "well_text"]

GROUPS = {"well", "row", "column", "field", "channel", "z", "t"}

# Layouts that `plateloom init` knows by name; the first of several that match equally well is taken. They are those of
# TIFFs, and found of the other KINDS, too. One with a slash is of paths below the source.
KNOWN = {
    "plateloom": r"(?P<well>[A-Z]{1,2}\d{2})_s(?P<field>\d+)_w(?P<channel>\d+)\.tiff?",
    "bbbc013": r"Channel ?(?P<channel>\d+)-\d+-(?P<row>[A-P])-(?P<column>\d+)(?:-(?P<field>\d+))?\.tiff?",
    "cytation": r"(?P<well>[A-P]\d{1,2})_-?\d+_\d+_(?P<field>\d+)(?:Z(?P<z>\d+))?_(?P<channel>.+)_(?P<t>\d+)\.tiff?",
    "cytation_roi": r"(?P<well>[A-P]\d{1,2})ROI(?P<field>\d+)_-?\d+_\d+_1(?:Z(?P<z>\d+))?_(?P<channel>.+)_(?P<t>\d+)\.tiff?",
    "gen5": r"(?P<well>[A-P]\d{1,2})_(?P<field>\d+)(?:Z(?P<z>\d+))?_(?P<channel>[^_]*[A-Za-z].*)_\d+_(?P<t>\d+)_-?\d*\.tiff?",
    "harmony": r"r(?P<row>\d{2})c(?P<column>\d{2})f(?P<field>\d+)p(?P<z>\d+)(?:rc\d+)?-ch(?P<channel>\d+)(?:sk|t)(?P<t>\d+)(?:fk\d+fl\d+)?\.(?:tiff?|png)",
    "metaxpress": r".*_(?P<well>[A-P]\d{2})(?:_s(?P<field>\d+))?_w(?P<channel>\d)(?!.*thumb).*\.tiff?",
    "yokogawa": r".*_(?P<well>[A-P]\d{2})_T(?P<t>\d+)F(?P<field>\d+)L\d+A\d+Z(?P<z>\d+)C(?P<channel>\d+)\.(?:tiff?|png)",
    "incell": r"(?:.*_)?(?P<row>A[A-F]|[A-P]) - (?P<column>\d+)\((?:fld (?P<field>\d+))?(?: ?wv (?P<channel>.+?))?(?: wix \d+)?(?: z (?P<z>\d+))?(?: ?-? time (?P<t>\d+) - \d+ ?ms)?\)\.tiff?",
    "kinetic": r".*i3t(?P<t>\d{3})(?P<well>[A-P]\d{2})f(?P<field>\d{2,3})d(?P<channel>\d)\.(?:tiff?|png)",
    "evos": r".+_R_p(?P<t>\d+)_z(?P<z>\d+)_\d+_(?P<well>[A-P]\d{2})f(?P<field>\d{2})d(?P<channel>\d)\.(?:tiff?|png)",
    "cellomics": r"(?!.*_[RDM]_p\d+_z\d+_\d+_)(?:.*_)?(?P<well>[A-P]\d{2})f(?P<field>\d{2,3})d(?P<channel>\d)\.(?:tiff?|png)",
    "scanr": r"(?P<well>[A-P]\d{1,2})--W\d+--P(?P<field>\d+)--Z(?P<z>\d+)--T(?P<t>\d+)--(?P<channel>.+)\.tiff?",
    "bbbc_stack": r".*_z_(?P<z>\d+)/(?:.*_)?(?P<well>[A-P]\d{2})_s(?P<field>\d+)_w(?P<channel>\d)(?!.*thumb).*\.tiff?",
    # A site is no channel; a name that ends with one has a single channel.
    "generic": r"(?:.*?[^A-Za-z0-9])??(?P<well>[A-P]\d{1,2})(?=[-_](?:f|s|field|site)\d|.*[-_][A-Za-z][A-Za-z0-9]*\.)(?:[-_](?:f|s|field|site)?(?P<field>\d+))?(?:[-_](?!(?:f|s|field|site)\d+\.)(?P<channel>[A-Za-z][A-Za-z0-9]*))?\.(?:tiff?|png)",
    "single": r"(?:.*[^A-Za-z0-9])?(?P<well>(?:A[A-F]|[A-P])(?:0[1-9]|[1-3]\d|4[0-8]))\.(?:tiff?|png)",
}
GUESSES = ("generic", "single")

KINDS = {".png": r"\.png", ".jpg": r"\.jpe?g", ".jpeg": r"\.jpe?g"}
OWN_READER = {"harmony", "metaxpress", "yokogawa"}  # layouts that another reader knows better, metadata or not
VENDORS = ("index.idx.xml", "index.xml", "index.ref.xml", ".htd", ".mlf", ".mrf", ".xdce", ".companion.ome", ".ome.xml")
LESS_SURE = 0.99
LIKE_A_WELL = re.compile(r"[A-P]\d{2}", re.IGNORECASE).fullmatch


class Params(BaseModel):
    """What the pattern reader needs to know."""

    model_config = ConfigDict(extra="forbid")

    pattern: str = Field(
        KNOWN["plateloom"],
        description="Regular expression that a whole file name must match, in small or large letters; named groups `well` (or `row` and `column`; "
        "a row may be letters or a number), `channel`; and if there are any, the numbers `field`, `z`, `t`.",
    )
    folders: bool = Field(False, description="Match the path below the source folder instead of the file name alone.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, text):
        groups = set(compile_expression(text).groupindex)
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
        Files that do not match are left out, and counted in `notes`.

    Raises
    ------
    PlateLayoutError
        If there is no such folder, two files claim the same plane, or a name holds no number where there must be one.
    """
    match = matcher(params)
    wells, images, others = {}, [], []
    for name, entry in list_files(source):
        found = match(name)
        if not found:
            others.append(name)
            continue
        groups = found.groupdict()
        text = well_text(found)
        if text not in wells:
            wells[text] = name_well(text, name)
        status = entry.stat()
        images.append(
            SourceImage(
                wells[text],
                group_number(groups, "field", 1, name),
                groups.get("channel") or "1",
                group_number(groups, "z", 0, name),
                group_number(groups, "t", 0, name),
                name,
                status.st_size,
                status.st_mtime_ns,
            )
        )
    notes = []
    if others and images:
        notes.append(f"{len(others)} image files do not match the pattern and are left out, e.g. {min(others)!r}")
    return Source(sort_planes(images), notes=notes)


def listing(source, params):
    """See `plateloom.readers.folders.list_changes`."""
    match = matcher(params)

    def well_of(name):
        found = match(name)
        return well_text(found) if found else None

    return list_changes(source, IMAGES, well_of)


def recognize(source, names):
    """Find the layout of a folder from its file names: the most specific one that half of its images match.

    Parameters
    ----------
    source : path
    names : sequence of str
        Paths below the source.

    Returns
    -------
    dict or None
        `reader`, `params`, `layout` and `share`, the share of files that match, a little less where another reader may
        know better (a guess, or a vendor's metadata file); None where nothing matches.
    """
    paths = [name for name in names if name.lower().endswith(IMAGES)]
    stems = [name.rpartition("/")[2] for name in paths]
    kinds = {KINDS[kind] for kind in {os.path.splitext(stem)[1].lower() for stem in stems} & set(KINDS)}
    best = None
    for layout, known in KNOWN.items():
        for pattern in (known, *(_of_kind(known, kind) for kind in sorted(kinds))):
            match = re.compile(pattern, re.IGNORECASE).fullmatch
            found = [found for found in map(match, paths if "/" in pattern else stems) if found]
            share = len(found) / len(stems) if stems else 0.0
            if share < 0.5 or layout in GUESSES and best and best[3] not in GUESSES:
                continue
            # Of two layouts, the one that tells all files apart.
            apart = len(found) == len({match.groups() for match in found})
            if best is None or (apart, not _takes_wells_for_channels(found), share) > best[:3]:
                best = (apart, not _takes_wells_for_channels(found), share, layout, pattern)
    if best is None:
        return None
    _, _, share, layout, pattern = best
    sure = layout not in GUESSES and layout not in OWN_READER and not _has_vendor_metadata(source, names)
    return {
        "reader": "pattern",
        "params": {"pattern": pattern} | ({"folders": True} if "/" in pattern else {}),
        "layout": layout,
        "share": share if sure else share * LESS_SURE,
    }


def _takes_wells_for_channels(found):
    """Whether what matched is one well with channels that are called like wells: ``P1`` was the plate, not a well."""
    groups = [match.groupdict() for match in found]
    return len({one.get("well") for one in groups}) == 1 and all(
        LIKE_A_WELL(one.get("channel") or "") for one in groups
    )


def _of_kind(pattern, kind):
    """The pattern for files of another kind than TIFF."""
    return pattern.removesuffix(r"\.tiff?").removesuffix(r"\.(?:tiff?|png)") + kind


def _has_vendor_metadata(source, names):
    """Whether metadata of a vendor are among the names, in the images, beside the first of them or in a folder above it."""
    first = next((name for name in names if name.lower().endswith(IMAGES)), "")
    places = [parent for parent in Path(first).parents if str(parent) != "."] + [Path()]
    beside = []
    for place in places:
        with contextlib.suppress(OSError):
            beside += os.listdir(Path(source, place))
    return first.lower().endswith((".ome.tif", ".ome.tiff")) or any(
        name.lower().endswith(VENDORS) for name in itertools.chain(names, beside)
    )


def matcher(params):
    """A function of a file's path below the source: the match of the pattern, or None."""
    match = re.compile(params.pattern, re.IGNORECASE).fullmatch
    return match if params.folders else lambda name: match(name.rpartition("/")[2])


def well_text(found):
    """The well as a file's name spells it; a row that is a number in letters.

    >>> well_text(re.fullmatch(r"r(?P<row>\\d+)c(?P<column>\\d+)", "r02c03"))
    'B03'
    """
    if "well" in found.re.groupindex:
        return found["well"] or "?"
    row, column = found["row"] or "", found["column"] or ""
    if row.isdecimal() and 0 < int(row) <= 32:
        row = row_name(int(row) - 1)
    return row + column or "?"


def group_number(groups, group, default, name):
    """Number that a group of the pattern holds; the default where there is no such group or it is empty."""
    text = groups.get(group)
    try:
        return int(text) if text else default
    except ValueError:
        raise PlateLayoutError(
            f"{name!r}: the pattern's group `{group}` holds {text!r}, expected a number; correct the pattern"
        ) from None


def said(found, where):
    """What a name says beside the well: `field`, `channel`, `z` and `t`, those that the pattern has and that are not empty."""
    groups = {name: text for name, text in found.groupdict().items() if text}
    numbers = {name: group_number(groups, name, 0, where) for name in ("field", "z", "t") if name in groups}
    return numbers | ({"channel": groups["channel"]} if "channel" in groups else {})
