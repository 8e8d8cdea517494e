"""Where the results of a screen lie, and how wells are named. All paths are relative to the screen's folder."""

import re
from pathlib import Path

WELL = re.compile(r"([A-Za-z]{1,2})[-_]?0*([1-9][0-9]?)")
FORMATS = {6: (2, 3), 12: (3, 4), 24: (4, 6), 48: (6, 8), 96: (8, 12), 384: (16, 24), 1536: (32, 48)}


def row_name(row):
    """Letters of a row counted from 0: ``A`` … ``Z``, ``AA`` … ``AF``."""
    return chr(65 + row) if row < 26 else chr(64 + row // 26) + chr(65 + row % 26)


def row_index(name):
    """Row counted from 0 of its letters.

    >>> row_index("A"), row_index("AF"), row_name(31)
    (0, 31, 'AF')
    """
    index = 0
    for letter in name.upper():
        index = index * 26 + ord(letter) - 64
    return index - 1


def parse_well(text):
    """Read a well's name in any usual spelling.

    Parameters
    ----------
    text : str
        ``A1``, ``a01``, ``A-01``, ``AF48`` …

    Returns
    -------
    tuple of int
        Row and column counted from 0.

    Raises
    ------
    ValueError
        If it is no well.

    Examples
    --------
    >>> parse_well("A1"), parse_well("b-012")
    ((0, 0), (1, 11))
    """
    found = WELL.fullmatch(str(text).strip())
    if not found:
        raise ValueError(f"{text!r} is not a well; expected letters and a number such as 'B03'")
    row = row_index(found[1])
    if row >= 32 or int(found[2]) > 48:
        raise ValueError(f"{text!r} lies outside a 1536-well plate (A01 … AF48)")
    return row, int(found[2]) - 1


def well_name(row, column):
    """The one spelling of a well that tables, paths and records use: ``A01``."""
    return f"{row_name(row)}{column + 1:02d}"


def part_of(well, parts):
    """The part that works on a well: from its position alone, so that one more well moves no other.

    Diagonals, because plates are often filled by whole rows or whole columns only.
    """
    row, column = parse_well(well)
    return (row + column) % parts


def plate_format(wells):
    """Rows and columns of the smallest standard plate that holds all these wells."""
    rows, columns = zip(*(parse_well(well) for well in wells), strict=True) if wells else ((0,), (0,))
    for shape in FORMATS.values():
        if max(rows) < shape[0] and max(columns) < shape[1]:
            return shape
    raise ValueError(f"wells {sorted(wells)} fit no plate format")


def plate_folder(plate):
    return Path("results/plates") / plate


def plate_store(plate):
    return plate_folder(plate) / "plate.zarr"


def well_table(plate, kind, well):
    """A well's parquet file in one of the plate's datasets: fields, quality, segmentation, features, latent …"""
    return plate_folder(plate) / kind / f"{well}.parquet"


def record_path(plate, stage, part=0):
    return plate_folder(plate) / "records" / stage / f"part-{part}.json"


def screen_folder():
    return Path("results/screen")


def screen_record(stage):
    return screen_folder() / "records" / f"{stage}.json"


def model_folder(name):
    return screen_folder() / "models" / name
