"""Results of earlier code that a person keeps: a table that only grows, in the screen's folder."""

import re
import time
from pathlib import Path

from plateloom import __version__, ledgers
from plateloom.errors import ConfigError
from plateloom.store.sheets import read_sheet

TABLE = "accepted.tsv"
COLUMNS = ("time", "stage", "code", "keeps", "version", "reason", "who")


def read_accepted(folder, stages):
    """Read which results of earlier code a screen keeps.

    Parameters
    ----------
    folder : path
        The screen's. Its table `accepted.tsv` need not be there.
    stages : collection of str
        Names of stages.

    Returns
    -------
    list of dict
        `stage`; `code`, the digest of the code that was there then; `keeps`, that of the code that made the results;
        `time`, `version` of Plateloom, `reason`, `who`.

    Raises
    ------
    ConfigError
        Naming every wrong line.
    """
    path = Path(folder) / TABLE
    if not path.exists():
        return []
    rows, problems = read_sheet(path, {"stage", "code", "keeps"}, set(COLUMNS))
    for line, row in rows:
        if row["stage"] not in stages:
            problems.append(f"{path}:{line}: no stage {row['stage']!r}")
        problems += [
            f"{path}:{line}: {name} {row[name]!r} is no digest of code"
            for name in ("code", "keeps")
            if not re.fullmatch("[0-9a-f]{32}", row[name])
        ]
    if problems:
        raise ConfigError(problems)
    return [{name: row.get(name, "") for name in COLUMNS} for _, row in rows]


def append_rows(folder, accepted, *, reason, who):
    """Keep results of earlier code, on the disk when this returns.

    Parameters
    ----------
    folder : path
        The screen's.
    accepted : list of (str, str, str)
        Stage, digest of its code now, digest of the code that made the results.
    reason, who : str
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    rows = [dict(zip(COLUMNS, (now, *one, __version__, reason, who), strict=True)) for one in accepted]
    ledgers.append_rows(Path(folder) / TABLE, COLUMNS, rows)
