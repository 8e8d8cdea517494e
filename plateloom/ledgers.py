"""Tables that only grow: who did what to a screen, when and why. People may write them by hand as well."""

import csv
import io
import os
from pathlib import Path

from plateloom.engine import locks
from plateloom.errors import ConfigError


def append_rows(path, columns, rows):
    """Add lines to a table, all or none of them, on the disk when this returns.

    Parameters
    ----------
    path : path
        Below the screen's folder. A table that is there is continued as it stands: its columns in their order, tabs or commas.
    columns : sequence of str
    rows : iterable of dict of str to str
        Cells by column; white space in them becomes single blanks.

    Raises
    ------
    ConfigError
        If the table that is there lacks a column.
    """
    path = Path(path)
    with locks.hold(path.parent / f".plateloom/{path.stem}.lock", wait=True):
        before = path.read_bytes() if path.exists() else b""
        given, delimiter = _header(path, before, columns)
        text = io.StringIO()
        text.write("\n" if before and not before.endswith(b"\n") else "")
        writer = csv.DictWriter(text, given, delimiter=delimiter, lineterminator="\n")
        if not before.strip():
            writer.writeheader()
        writer.writerows({name: " ".join(row[name].split()) for name in columns} for row in rows)
        with open(path, "ab") as file:
            file.write(text.getvalue().encode())
            file.flush()
            os.fsync(file.fileno())


def _header(path, data, columns):
    """Columns of a table that is there, as they stand, and its separator."""
    lines = [line for line in data.decode("utf-8-sig").splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        return columns, "\t"
    delimiter = "\t" if "\t" in lines[0] else ","
    given = [name.strip().lower() for name in next(csv.reader(lines[:1], delimiter=delimiter))]
    if lacking := [name for name in columns if name not in given]:
        raise ConfigError(f"{path}: no column {', '.join(map(repr, lacking))}; add it before lines are added")
    return given, delimiter


def describe(entry):
    """Who did something, when and why, in a few words.

    Examples
    --------
    >>> describe({"time": "2024-05-31T17:00:00", "reason": "a leaking well", "who": "Ada"})
    'by Ada on 2024-05-31: a leaking well'
    """
    by = f"by {entry['who']}" if entry["who"] else "by hand"
    on = f" on {entry['time'][:10]}" if entry["time"] else ""
    return f"{by}{on}" + (f": {entry['reason']}" if entry["reason"] else "")
