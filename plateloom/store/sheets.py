"""Tables that people write: plate lists, plate maps, labels. Read with every mistake named by its line."""

import csv
from pathlib import Path

from plateloom.errors import ConfigError, did_you_mean
from plateloom.wells import parse_well, well_name

MAP_COLUMNS = ("well", "treatment", "dose", "unit", "control")
CONTROLS = ("negative", "positive", "empty", "")


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
    rows, problems = read_sheet(path, {"well"}, None)
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
            problems.append(f"{path}:{line}: control {control!r}; expected negative, positive, empty or nothing")
        try:
            dose = float(row.get("dose") or "nan")
        except ValueError:
            problems.append(f"{path}:{line}: dose {row['dose']!r} is no number")
            dose = float("nan")
        if dose < 0 or dose == float("inf"):
            problems.append(f"{path}:{line}: dose {row['dose']}: expected a concentration, not its logarithm")
        defaults = dict.fromkeys(MAP_COLUMNS, "")
        wells.append(defaults | row | {"well": well, "control": control, "dose": dose})
    if not wells and not problems:
        problems.append(f"{path}: lists no well")
    if problems:
        raise ConfigError(problems)
    return wells


def read_sheet(path, required, known):
    """Read a table with tabs or commas, a header, and lines of comment that begin with ``#``.

    Parameters
    ----------
    path : path
    required : set of str
        Columns that must be there.
    known : set of str or None
        Columns that may be there; None: any.

    Returns
    -------
    rows : list of (int, dict)
        Line number and cells, blanks at their ends removed.
    problems : list of str
        What is wrong, with the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return [], [f"no {str(path)!r}"]
    except UnicodeDecodeError:
        return [], [f"{path}: not UTF-8 text; save it as UTF-8"]
    lines = text.splitlines()
    header = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    delimiter = "\t" if "\t" in header else ","
    names, rows, problems = None, [], []
    for number, cells in enumerate(csv.reader(lines, delimiter=delimiter), start=1):
        cells = [cell.strip() for cell in cells]
        if not any(cells) or cells[0].startswith("#"):
            continue
        if names is None:
            names = cells
            if missing := required - set(names):
                return [], [f"{path}:{number}: no column {', '.join(sorted(missing))}; found {', '.join(names)}"]
            unknown = [name for name in names if known and name not in known]
            problems += [f"{path}:{number}: unknown column {name!r}.{did_you_mean(name, known)}" for name in unknown]
            continue
        if len(cells) > len(names):
            problems.append(f"{path}:{number}: {len(cells)} cells under {len(names)} columns")
        rows.append((number, dict(zip(names, cells, strict=False))))
    return rows, problems
