"""Tables of labels: which wells or cells are of which class, who said so and when. Ours only grows.

A cell's number means something with the segmentation that gave it only. So a label carries the fingerprint of the labels
that it was given on and where the cell's nucleus lies; `plateloom.stages.cell_labels` finds the cell again.
"""

import csv
import io
import os
from pathlib import Path

from plateloom.errors import ConfigError
from plateloom.store.sheets import read_sheet
from plateloom.wells import parse_well, well_name

TABLE = "annotations.tsv"  # in the screen's folder
COLUMNS = (
    *("plate", "well", "field", "object", "class", "who", "when", "round", "why"),
    *("y", "x", "segmentation"),  # center of the nucleus [px], and the fingerprint of the well's labels
)


def read_cell_labels(path):
    """Read a table of labels.

    Parameters
    ----------
    path : path
        Columns `plate, well, class`, for single cells also `field, object`, and if there are any the others of `COLUMNS`.

    Returns
    -------
    rows : list of dict
        Of all `COLUMNS`: `field`, `object` int or None (a whole field or well), `y`, `x` float or None, `well` as ``A01``,
        everything else text. Of several rows of a cell the last holds; an empty class withdraws.
    problems : list of str
        What is wrong, with the line.
    """
    found, problems = read_sheet(path, {"plate", "well", "class"}, None, usual=COLUMNS)
    rows = []
    for line, row in found:
        row = {name: row.get(name, "") for name in COLUMNS}
        try:
            row["well"] = well_name(*parse_well(row["well"]))
            for name in ("field", "object"):
                row[name] = int(row[name]) if row[name] else None
            for name in ("y", "x"):
                row[name] = float(row[name]) if row[name] and row["segmentation"] else None
        except ValueError as error:
            problems.append(f"{path}:{line}: {error}")
            continue
        if row["segmentation"] and None in (row["field"], row["object"], row["y"], row["x"]):
            problems.append(f"{path}:{line}: a label of a segmentation needs field, object, y and x")
            continue
        rows.append(row)
    return rows, problems


def list_labeled_plates(path):
    """Sorted names of the plates that a table of labels names, but for those whose labels are all withdrawn."""
    last = {tuple(row[name] for name in COLUMNS[:4]): row["class"] for row in read_cell_labels(path)[0]}
    return sorted({plate for (plate, *_), name in last.items() if name})


def append_cell_labels(path, rows):
    """Add rows to the end of a table, on the disk when this returns; the caller holds a lock.

    Parameters
    ----------
    path : path
        Made, with a header, where it is not there.
    rows : list of dict
        As `read_cell_labels` gives them.
    """
    path = Path(path)
    before = path.read_bytes() if path.exists() else b""
    text = io.StringIO()
    text.write("\n" if before and not before.endswith(b"\n") else "")
    columns = _header(path, before) if before.strip() else COLUMNS
    writer = csv.DictWriter(text, columns, delimiter="\t", lineterminator="\n", extrasaction="ignore")
    if not before.strip():
        writer.writeheader()
    writer.writerows({name: _cell(row.get(name)) for name in COLUMNS} for row in rows)
    with open(path, "ab") as file:
        file.write(text.getvalue().encode())
        file.flush()
        os.fsync(file.fileno())


def _cell(value):
    """A value as it stands in the table: no tab and no line break."""
    if isinstance(value, float):
        return f"{value:.2f}"
    return "" if value is None else " ".join(str(value).split())


def _header(path, data):
    """Columns of a table that is there; it must have ours, whatever their order."""
    lines = [line for line in data.decode("utf-8-sig").splitlines() if line.strip() and not line.startswith("#")]
    columns = [name.strip() for name in lines[0].split("\t")] if lines else list(COLUMNS)
    if lacking := [name for name in COLUMNS if name not in columns]:
        raise ConfigError(f"{path}: no column {', '.join(map(repr, lacking))}; labels cannot be added to it")
    return columns
