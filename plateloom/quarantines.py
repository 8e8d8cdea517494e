"""Plates and wells that a person has taken out of a screen, and put back: a table that only grows, in the screen's folder."""

import datetime
import time
from pathlib import Path

from plateloom import ledgers
from plateloom.errors import ConfigError, did_you_mean
from plateloom.store.sheets import read_sheet
from plateloom.wells import parse_well, well_name

TABLE = "quarantine.tsv"
COLUMNS = ("time", "plate", "well", "action", "reason", "who")
QUARANTINE, LIFT = "quarantine", "lift"


def list_quarantined(folder, plates):
    """Read what is quarantined by hand in a screen, wrong lines and all.

    Parameters
    ----------
    folder : path
        The screen's. Its table `quarantine.tsv` need not be there. Of a plate and well, the last line holds; without a
        well, a line speaks of the whole plate.
    plates : collection of str
        The screen's plates.

    Returns
    -------
    found : dict of str to dict of str to dict
        Plate -> well (``""``: the whole plate) -> `time`, `reason`, `who`.
    problems : list of str
        One line each, with the number of the line.
    """
    path = Path(folder) / TABLE
    if not path.exists():
        return {}, []
    rows, problems = read_sheet(path, {"plate", "action"}, set(COLUMNS))
    found, lines = {}, {}
    for line, row in rows:
        row = {name: row.get(name, "") for name in COLUMNS}
        mistakes = [f"{path}:{line}: {mistake}" for mistake in _mistakes(row)]
        problems += mistakes
        if mistakes:
            continue
        plate, well = row["plate"], _well(row["well"])
        lines[plate] = line
        if row["action"] == QUARANTINE:
            found.setdefault(plate, {})[well] = {name: row[name] for name in ("time", "reason", "who")}
        else:
            found.get(plate, {}).pop(well, None)
    found = {plate: dict(sorted(wells.items())) for plate, wells in found.items() if wells}
    for plate in found.keys() - set(plates):
        hint = did_you_mean(plate, plates)
        problems.append(
            f"{path}:{lines[plate]}: no plate {plate!r} in the list of plates.{hint} Mend or remove its lines"
        )
    return found, problems


def read_quarantined(folder, plates):
    """As `list_quarantined`, the first alone; raises `ConfigError` naming every wrong line."""
    found, problems = list_quarantined(folder, plates)
    if problems:
        raise ConfigError(problems)
    return found


def _mistakes(row):
    """What is wrong with a row of the table."""
    if row["action"] not in (QUARANTINE, LIFT):
        yield f"action {row['action']!r}: expected {QUARANTINE} or {LIFT}"
    elif row["action"] == QUARANTINE and not row["reason"]:
        yield "no reason"
    if not row["plate"]:
        yield "no plate"
    try:
        _well(row["well"])
    except ValueError as error:
        yield f"{error}; without a well, a line speaks of the whole plate"
    try:
        datetime.datetime.fromisoformat(row["time"] or "2000-01-01")
    except ValueError:
        yield f"time {row['time']!r}: expected e.g. 2024-05-31T17:00:00, or nothing"


def _well(text):
    """A well's name as it is used everywhere; empty for the whole plate."""
    return well_name(*parse_well(text)) if text else ""


def append_rows(folder, targets, *, action, reason, who):
    """Add lines to a screen's table, all or none of them, on the disk when this returns.

    Parameters
    ----------
    folder : path
        The screen's.
    targets : list of (str, str)
        Plates and wells; an empty well means the whole plate.
    action : {'quarantine', 'lift'}
    reason, who : str
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    rows = [dict(zip(COLUMNS, (now, plate, well, action, reason, who), strict=True)) for plate, well in targets]
    ledgers.append_rows(Path(folder) / TABLE, COLUMNS, rows)
