"""What became of a night: its facts from states and arrivals, its page and its line, and the command that is told."""

import os
import shlex
import subprocess
import time
from pathlib import Path

import pandas as pd

from plateloom import inbox
from plateloom.errors import ConfigError, some_of
from plateloom.report.night import NightReport, render_night
from plateloom.status import (
    DEFERRED,
    INTERRUPTED,
    MISSING,
    QUARANTINED,
    RUNNING,
    STALE,
    age,
    find_causes,
    find_failures,
    read_screen,
    screen_state,
)
from plateloom.store.layout import plate_folder, record_path, screen_folder
from plateloom.store.provenance import digest, read_json, write_bytes
from plateloom.store.tables import read_table

NIGHTS = Path("results/nights")
HOOK_SECONDS = 120  # that a hook may take [s]
PUT_OFF, LEFT = "put off", "left"
GOES_ON = (INTERRUPTED, RUNNING, STALE, MISSING, PUT_OFF, LEFT)  # that the next night does by itself
ENDINGS = {
    0: "Everything is complete.",
    1: "Work is left, which the next night does.",
    2: "The configuration is wrong; nothing was started.",
    3: "Finished, but data are at fault or not whole yet.",
}


def made_plates(folder, states):
    """Plates that are complete, each with a digest of what its profiles are made from: dict of str to str."""
    summed = screen_state(states)
    found = {}
    for plate in [*summed["complete"], *summed["with_failures"]]:
        record = read_json(Path(folder) / record_path(plate, "profiling")) or {}
        found[plate] = digest(record.get("artefacts", {}))
    return found


def describe_night(
    folder, config, *, arrivals, registered, told, known, code, over, began, took, hours=None, problems=(), options=()
):
    """Collect what the page of a night shows.

    Parameters
    ----------
    folder : path
        The screen's.
    config : Config
    arrivals, registered : sequence of Arrival
        Folders that are no plates yet, and those that became plates tonight.
    told : dict of str to str
        What `made_plates` said when the last summary was written.
    known : sequence of str
        Names of all plates then.
    code : int
        Exit code.
    over : bool
        Whether the time was over before the work was done.
    began : float
        [s since 1970].
    took, hours : float
        [s]; [h], None: no limit.
    problems : sequence of str
    options : sequence of str
        Of `plateloom run`.

    Returns
    -------
    report : NightReport
    told : dict of str to str
        What `made_plates` says now.
    known : list of str
    """
    folder = Path(folder)
    states, plates, problems = {"plates": {}, "screen": {}}, [], list(problems)
    try:
        plates = inbox.read_registered(folder, config)
        if plates:
            states = read_screen(folder)
    except ConfigError as error:
        problems = problems or error.problems
    summed = screen_state(states)
    made = made_plates(folder, states) if states["plates"] else told
    finished = [plate for plate in made if told.get(plate) != made[plate]]
    new = [plate for plate in plates if plate.plate not in known]
    odd = {one.name: one.reason for one in registered}
    paged = [plate for plate in states["plates"] if (folder / plate_folder(plate) / "report.html").exists()]
    screen_page = folder / screen_folder() / "report.html"
    name = folder.resolve().name
    waiting = [one for one in arrivals if one.state in (inbox.WAITING, inbox.SETTLING)]
    refused = [one for one in arrivals if one.state == inbox.REFUSED]
    ending = ENDINGS.get(code, f"Interrupted by signal {code - 128}; the next night goes on.")
    if over and code == 1:
        ending = f"The {hours:g} hours are over; the next night goes on."
    told_of = [*dict.fromkeys([*finished, *summed["alarmed"]])]  # an alarm holds until it is settled
    undone = pd.DataFrame(_list_undone(states, summed), columns=["plate", "status", "stage", "reason", "log"])
    goes_on = undone["status"].isin(GOES_ON)
    report = NightReport(
        screen=name,
        date=time.strftime("%Y-%m-%d", time.localtime(began)),
        code=code,
        ending=ending,
        summary=f"{summed['summary']}." if states["plates"] else "The screen has no plate yet." if not problems else "",
        began=_moment(began),
        took=age(took),
        budget=f"{hours:g} h" if hours else "",
        total=len(states["plates"]),
        complete=len(made) if states["plates"] else 0,
        hits=_count_hits(folder),
        problems=tuple(problems),
        new=pd.DataFrame(
            [(one.plate, one.source, one.reader, one.plate_map, one.batch, odd.get(one.plate, "")) for one in new],
            columns=["plate", "folder", "reader", "plate map", "batch", "note"],
        ),
        finished=pd.DataFrame(
            [_describe_finished(plate, states["plates"][plate]) for plate in finished],
            columns=["plate", "wells", "failed fields", "warnings", "job time"],
        ),
        attention=undone[~goes_on],
        left=undone[goes_on],
        waiting=_list_folders(waiting),
        refused=_list_folders(refused),
        warnings=pd.DataFrame(
            [(plate, text) for plate in told_of for text in summed["warnings"].get(plate, ())],
            columns=["plate", "warning"],
        ),
        alarmed=tuple(summed["alarmed"]),
        links={plate: f"../plates/{plate}/report.html" for plate in paged},
        report="../screen/report.html" if screen_page.exists() else "",
        reproduce=(
            f"plateloom status {shlex.quote(str(folder.resolve()))}   # every plate, every stage, every reason",
            f"{shlex.join(['plateloom', 'run', str(folder.resolve()), *options])}      # what the next night would do with the plates that are in the list, now",
        ),
    )
    return report, made, [*dict.fromkeys([*known, *(plate.plate for plate in plates)])]


def describe_failure(folder, *, code, began, took, problems):
    """Collect what is known of a night where its facts cannot be told: a `NightReport` that says why."""
    folder, nothing = Path(folder), pd.DataFrame(columns=["plate", "status"])
    tables = ("new", "finished", "attention", "left", "waiting", "refused", "warnings")
    return NightReport(
        screen=folder.resolve().name,
        date=time.strftime("%Y-%m-%d", time.localtime(began)),
        code=code,
        ending="What became of the night cannot be told.",
        summary="",
        began=_moment(began),
        took=age(took),
        problems=tuple(problems),
        reproduce=(
            f"plateloom status {shlex.quote(str(folder.resolve()))}   # every plate, every stage, every reason",
        ),
        **dict.fromkeys(tables, nothing),
    )


def _describe_finished(plate, stages):
    """A row of the table of what was finished."""
    failed = len({(row["well"], row["field"]) for row in find_failures(stages)})
    warnings = sum(len(state.warnings) for state in stages.values())
    return plate, stages["conversion"].of, failed, warnings, age(sum(state.seconds for state in stages.values()))


def _list_undone(states, summed):
    """What is not done, a row per plate and cause; what only waits for something else is no cause."""
    rows, told = [], set()
    for cause in find_causes(states):
        word = "not made" if cause.state == QUARANTINED and not cause.plates else cause.state
        word = PUT_OFF if word == DEFERRED else word
        for plate in cause.plates or ["the screen"]:
            rows.append((plate, word, cause.stage, cause.reason, cause.logs[0] if cause.logs else ""))
            told.add(plate)
    rows += [(plate, LEFT, "", "not begun, or not finished", "") for plate in summed["open"] if plate not in told]
    return rows


def _list_folders(arrivals):
    """Table of folders that are no plates."""
    rows = [
        (str(one.source), one.name or one.source.name, one.files, _moment(one.since), one.reason) for one in arrivals
    ]
    return pd.DataFrame(rows, columns=["folder", "plate", "files", "since", "reason"])


def _moment(seconds):
    """``2026-11-21 22:00``, in local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _count_hits(folder):
    """Number of hits; None where they are not determined, since there is no readout or no treatment can be judged."""
    path = folder / screen_folder() / "hits.parquet"
    if not path.exists():
        return None
    hits = read_table(path, ["hit", "reason"])
    return int(hits["hit"].sum()) if (hits["reason"] == "").any() else None


def summary_line(report):
    """A night in one line, for mail and chat."""
    pieces = [
        f"finished {_some(report.finished)}",
        *([f"new {_some(report.new)}"] if len(report.new) else []),
        *([f"waiting {_some(report.waiting, 'plate')}"] if len(report.waiting) else []),
        *([f"not taken {_some(report.refused, 'plate')}"] if len(report.refused) else []),
    ]
    for status, rows in pd.concat([report.attention, report.left]).groupby("status", sort=True):
        pieces.append(f"{status} {_some(rows)}")
    if report.alarmed:
        pieces.append(f"alarmed {len(report.alarmed)} ({some_of(report.alarmed)})")
    if len(report.warnings):
        pieces.append(f"{len(report.warnings)} warnings")
    if report.hits is not None:
        pieces.append(f"{report.hits} hits")
    pieces += [*report.problems[:1], report.took, f"exit {report.code}"]
    line = f"{report.date} {report.screen}: {report.ending} {'; '.join(pieces)}"
    return " ".join(line.split())


def _some(frame, column="plate"):
    """How many plates, and the first of their names."""
    names = [str(name) for name in dict.fromkeys(frame[column])]
    return f"{len(names)} ({some_of(names)})" if names else "0"


def write_summary(folder, report):
    """Write a night's page and line; those of an earlier run on the same date stay.

    Returns
    -------
    html, txt : Path
    """
    folder = Path(folder) / NIGHTS
    number = 1
    while True:
        stem = folder / (report.date if number == 1 else f"{report.date}-{number}")
        html, txt = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("html", "txt"))
        if not html.exists() and not txt.exists():
            break
        number += 1
    write_bytes(html, render_night(report).encode())
    write_bytes(txt, (summary_line(report) + "\n").encode("utf-8", "replace"))
    return html, txt


def call_hook(command, *, folder, html, txt, code):
    """Give a night's line to a command on its standard input, and the paths in its environment.

    Parameters
    ----------
    command : str
        For a shell.
    folder, html, txt : path
    code : int

    Returns
    -------
    str
        What went wrong; empty if nothing did.
    """
    folder = Path(folder).resolve()
    said = {
        "PLATELOOM_SCREEN": str(folder),
        "PLATELOOM_SUMMARY_HTML": str(Path(html).resolve()),
        "PLATELOOM_SUMMARY_TXT": str(Path(txt).resolve()),
        "PLATELOOM_REPORT": str(folder / screen_folder() / "report.html"),
        "PLATELOOM_EXIT_CODE": str(code),
    }
    try:
        done = subprocess.run(
            ["sh", "-c", command],
            input=Path(txt).read_bytes(),
            env=os.environ | said,
            cwd=folder,
            timeout=HOOK_SECONDS,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return f"nightly.hook took longer than {HOOK_SECONDS} s and was ended: {command}"
    except OSError as error:
        return f"nightly.hook cannot be run: {error}"
    if done.returncode:
        words = done.stdout.decode(errors="replace").strip()[-500:]
        return f"nightly.hook ended with {done.returncode}: {command}" + (f": {words}" if words else "")
    return ""
