"""Names of wells, and the plates that they lie on."""

import re
from collections import Counter

from plateloom.errors import counted, some_of

WELL = re.compile(r"([A-Za-z]{1,2})[-_]?0*([1-9][0-9]?)")
QUARANTINED = "quarantined"  # what qc.parquet says of a field whose well a person has taken out of the results
AGAIN = re.compile(r"(.+)-acquisition([1-9][0-9]*)")  # a plate that was imaged again
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


def read_wells(text):
    """Read names of wells with commas or blanks between them.

    Returns
    -------
    found : list of str
    problems : list of str
        A line for each that is none.

    Examples
    --------
    >>> read_wells("b2, C-03")
    (['B02', 'C03'], [])
    """
    found, problems = [], []
    for word in filter(None, re.split(r"[,\s]+", text)):
        try:
            found.append(well_name(*parse_well(word)))
        except ValueError as error:
            problems.append(str(error))
    return found, problems


def well_name(row, column):
    """The one spelling of a well that tables, paths and records use: ``A01``."""
    return f"{row_name(row)}{column + 1:02d}"


def acquisition_of(plate):
    """Number of a plate's acquisition, from its name; 0 where it was imaged once.

    >>> acquisition_of("P1-acquisition2"), acquisition_of("P1")
    (2, 0)
    """
    found = AGAIN.fullmatch(plate)
    return int(found[2]) if found else 0


def plate_format(wells):
    """Rows and columns of the smallest standard plate that holds all these wells."""
    rows, columns = zip(*(parse_well(well) for well in wells), strict=True) if wells else ((0,), (0,))
    for shape in FORMATS.values():
        if max(rows) < shape[0] and max(columns) < shape[1]:
            return shape
    raise ValueError(f"wells {sorted(wells)} fit no plate format")


def explain_holes(fields, wells):
    """Say which fields some wells lack though more than half of the plate's wells have them.

    Parameters
    ----------
    fields : iterable of (str, int)
        Well and field of what is there, of the whole plate.
    wells : collection of str
        Wells to speak of.

    Returns
    -------
    str
        Empty where there is no such hole.

    Examples
    --------
    >>> explain_holes([("A01", 1), ("A02", 1), ("A02", 2), ("A03", 2), ("A03", 1)], ["A01", "A02"])
    '1 field that most wells have is not there: A01 field 2'
    """
    imaged = {}
    for well, field in fields:
        imaged.setdefault(well, set()).add(field)
    counts = Counter(field for found in imaged.values() for field in found)
    usual = sorted(field for field, count in counts.items() if 2 * count > len(imaged))
    holes = [
        f"{well} field {field}" for well in sorted(wells) for field in usual if field not in imaged.get(well, {field})
    ]
    verb = "is" if len(holes) == 1 else "are"
    return f"{counted(len(holes), 'field')} that most wells have {verb} not there: {some_of(holes)}" if holes else ""
