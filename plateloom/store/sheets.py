"""Tables that people write: plate lists, plate maps, labels. Read with every mistake named by its line."""

import csv
import difflib
import math
import re
from pathlib import Path

from plateloom.errors import ConfigError, did_you_mean
from plateloom.wells import parse_well, well_name

MAP_COLUMNS = ("well", "treatment", "dose", "unit", "control")
DOSE_LIKE = r"(dose|conc|concentration|dosage)s?\b|(dose|conc|concentration)[ _(\[]"
CONTROLS = ("negative", "positive", "empty", "")
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how .xlsx and .xls begin


def read_plate_map(path):
    """Read and check a plate map.

    Parameters
    ----------
    path : path
        Table with a column `well`, and if there are any `treatment`, `dose`, `unit`, `control` and further columns;
        tabs or commas.

    Returns
    -------
    list of dict
        One row per well; `well` as ``A01``, `dose` a float or NaN, everything else text.

    Raises
    ------
    ConfigError
        Naming every wrong line.
    """
    rows, problems = read_sheet(path, {"well"}, None, usual=MAP_COLUMNS)
    wells, seen = [], {}
    for line, row in rows:
        try:
            well = well_name(*parse_well(row["well"]))
        except ValueError as error:
            problems.append(f"{path}:{line}: {error}")
            continue
        if well in seen:
            problems.append(f"{path}:{line}: well {well} stands there twice, first on line {seen[well]}")
        seen.setdefault(well, line)
        control = row.get("control", "").lower()
        if control not in CONTROLS:
            hint = did_you_mean(control, CONTROLS[:3])
            problems.append(f"{path}:{line}: control {control!r}.{hint} Expected negative, positive, empty or nothing")
        try:
            dose = float(row.get("dose") or "nan")
        except ValueError:
            comma = re.fullmatch(r"(-?\d*),(\d+)", row["dose"])
            hint = f"; did you mean {comma[1] or 0}.{comma[2]}?" if comma else ""
            problems.append(f"{path}:{line}: dose {row['dose']!r} is no number{hint}")
            dose = float("nan")
        if (
            row.get("dose")
            and not math.isfinite(dose)
            and row["dose"].lower().lstrip("+-") in ("nan", "inf", "infinity")
        ):
            problems.append(f"{path}:{line}: dose {row['dose']!r} is no number; leave it empty where there is none")
        elif dose < 0:
            problems.append(f"{path}:{line}: dose {row['dose']}: expected a concentration, not its logarithm")
        defaults = dict.fromkeys(MAP_COLUMNS, "")
        wells.append(defaults | row | {"well": well, "control": control, "dose": dose})
    if wells and not any(row["dose"] == row["dose"] for row in wells):  # all doses of a treatment would be pooled
        others = [name for name in wells[0] if name not in MAP_COLUMNS and re.match(DOSE_LIKE, name, re.IGNORECASE)]
        if others and any(row[others[0]] for row in wells):
            problems.append(f"{path}: column {others[0]!r}: name it `dose`, a number per well, with its unit in `unit`")
        elif any(row["unit"] for row in wells):
            problems.append(f"{path}: column `unit` without a dose: fill in `dose`, or leave `unit` empty")
    if not wells and not problems:
        problems.append(f"{path}: lists no well")
    if problems:
        raise ConfigError(problems)
    return wells


def read_sheet(path, required, known, usual=()):
    """Read a table with tabs or commas, a header, and lines of comment that begin with ``#``.

    Parameters
    ----------
    path : path
    required : set of str
        Columns that must be there.
    known : set of str or None
        Columns that may be there; None: any.
    usual : sequence of str
        Further columns that are known in whatever capitals, as the required and the known ones are.

    Returns
    -------
    rows : list of (int, dict)
        Line number and cells, blanks at their ends removed.
    problems : list of str
        What is wrong, with the line.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return [], [f"no {str(path)!r}"]
    except OSError as error:
        return [], [f"{path}: cannot be read: {error.strerror}"]
    if data.startswith(WORKBOOKS):
        return [], [f"{path}: is an Excel workbook; save it as CSV"]
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return [], [f"{path}: not UTF-8 text; save it as UTF-8"]
    header = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    delimiter = "\t" if "\t" in header else ","
    if delimiter not in header and ";" in header:
        return [], [f"{path}:{lines.index(header) + 1}: the separator is ';', expected tabs or commas"]
    standard = {*required, *(known or ()), *usual}
    if delimiter not in header and len(standard & set(header.lower().split())) > 1:
        return [], [f"{path}:{lines.index(header) + 1}: columns are parted by spaces, expected tabs or commas"]
    names, rows, problems = None, [], []
    for number, cells in enumerate(csv.reader(lines, delimiter=delimiter), start=1):
        cells = [cell.strip() for cell in cells]
        if not any(cells) or cells[0].startswith("#"):
            continue
        if names is None:
            names = [name.lower() if name.lower() in standard and name.lower() not in cells else name for name in cells]
            given = list(names)
            for missing in sorted(required - set(names)):
                near = difflib.get_close_matches(missing, set(names) - standard, n=1)
                hint = f" Did you mean {missing!r} by {near[0]!r}?" if near else ""
                problems.append(f"{path}:{number}: no column {missing!r}.{hint} Columns there: {', '.join(given)}")
                if near:  # read on as if it were spelt well, so that it hides no other mistake
                    names[names.index(near[0])] = missing
            if required - set(names):
                return [], problems
            twice = sorted({name for name in names if name and names.count(name) > 1})
            problems += [f"{path}:{number}: column {name!r} stands there twice: remove one of them" for name in twice]
            unknown = [name for name in names if known and name not in known]
            problems += [
                f"{path}:{number}: unknown column {name!r}.{did_you_mean(name, known)} Columns: {', '.join(sorted(known))}"
                for name in unknown
            ]
            continue
        if len(cells) > len(names):
            problems.append(f"{path}:{number}: {len(cells)} cells under {len(names)} columns")
        cells += [""] * (len(names) - len(cells))
        rows.append((number, dict(zip(names, cells, strict=False))))
    return rows, problems
