"""One folder per run in the screen: what it began with, and what it came to. Small files, for people and for programs."""

import csv
import getpass
import io
import os
import platform
import re
import shlex
import socket
import time
from importlib import metadata
from pathlib import Path

import yaml

from plateloom.engine import locks
from plateloom.engine.parts import versions
from plateloom.planning import STAGES
from plateloom.status import unrecorded
from plateloom.store.provenance import read_json, write_bytes, write_json

FOLDER = Path("runs")
BEGIN, END, JOBS = "begin.json", "end.json", "jobs.tsv"
COLUMNS = (
    *("stage", "plate", "part", "status", "wells", "computed", "kept", "failed", "host", "started", "seconds"),
    *("threads", "memory_mb", "attempts", "log", "reason"),
)
UNFINISHED = "unfinished"  # of a job that was begun, and left no record
SILENT = "ended without a word, as after a power cut or `kill -9`"


def begin(screen, command):
    """Begin a run's folder: the frozen config, versions, code, seeds, host and command.

    Runs before it that have no end yet get one that says so: whoever calls this holds the screen's lock, so they are over.

    Parameters
    ----------
    screen : Screen
    command : list of str

    Returns
    -------
    Path
        ``runs/{time}`` in the screen's folder.
    """
    base, now = screen.folder / FOLDER, time.time()
    for earlier in sorted(path.parent for path in base.glob(f"*/{BEGIN}")):
        if not (earlier / END).exists():
            end(earlier, None, reason=SILENT, told_by=_stamp(now))
    folder, number = base / _stamp(now), 1
    while folder.exists():
        number += 1
        folder = base / f"{_stamp(now)}-{number}"
    config = screen.config.model_dump(mode="json")
    head = "# Every setting that this run began with, defaults included.\n"
    write_bytes(folder / "config.yaml", (head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)).encode())
    write_bytes(folder / "packages.txt", "".join(f"{line}\n" for line in _packages()).encode())
    described = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now)),
        "began": now,
        "command": shlex.join(command),
        "folder": os.getcwd(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "process": os.getpid(),
        "user": _user(),
        "versions": versions(),
        "plates": screen.complete_plates,
        "quarantined": screen.quarantined_plates,
        "code": {stage: screen.code(stage) for stage in screen.stages()},
        "seeds": dict(_seeds(config)),
    }
    kept = {stage: sorted(screen.codes(stage) - {code}) for stage, code in described["code"].items()}
    described["adopted_code"] = {stage: codes for stage, codes in kept.items() if codes}
    write_json(folder / BEGIN, described)
    return folder


def _stamp(seconds):
    return time.strftime("%Y-%m-%dT%H-%M-%S", time.localtime(seconds))


def _packages():
    """Installed packages as ``name==version``."""
    # `importlib.metadata` parses all of a package's text anew for its name and for its version.
    heads = [(one.read_text("METADATA") or "").partition("\n\n")[0] for one in metadata.distributions()]
    found = [[re.search(rf"^{key}: *(\S+)", head, re.MULTILINE) for key in ("Name", "Version")] for head in heads]
    return sorted({f"{name[1]}=={version[1]}" for name, version in found if name and version}, key=str.lower)


def _user():
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _seeds(settings, prefix=""):
    """Seeds in nested settings, by their place."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _seeds(value, f"{prefix}{name}.")
        elif name == "seed":
            yield f"{prefix}{name}", value


def end(folder, code, *, reason="", told_by=""):
    """Say what a run came to: its exit code, and every job that has left a record since it began, or ended without one.

    Parameters
    ----------
    folder : Path
        From `begin`.
    code : int or None
        Of the process; None where nobody knows.
    reason : str, optional
    told_by : str, optional
        The run that says so, of one that could not itself.

    Returns
    -------
    dict
        What end.json says.
    """
    folder, said = Path(folder), read_json(Path(folder) / BEGIN) or {}
    began, now = said.get("began", 0), time.time()
    jobs = [job for job in map(_job, sorted(_records(folder.parents[1], began))) if job]
    unfinished = list(_unfinished(folder.parents[1], began))
    text, order = io.StringIO(), list(STAGES)
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(jobs + unfinished, key=lambda job: (job["started"], order.index(job["stage"]))))
    write_bytes(folder / JOBS, text.getvalue().encode())
    known = not told_by
    found = {
        "ended": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now)) if known else None,
        "seconds": round(now - began, 1) if known else None,
        "exit_code": code,
        "reason": reason,
        "told_by": told_by,
        "jobs": {state: sum(job["status"] == state for job in jobs) for state in ("done", "failed", "skipped")}
        | {UNFINISHED: len(unfinished)},
        "wells_computed": sum(job["computed"] for job in jobs),
        "core_hours": round(sum(job["seconds"] * job["threads"] for job in jobs) / 3600, 4),
        "peak_memory_mb": max((job["memory_mb"] for job in jobs), default=0),
        "hosts": sorted({job["host"] for job in jobs + unfinished}),
    }
    write_json(folder / END, found)
    return found


def _records(screen, began):
    """Records that were written since a moment [s since 1970], whatever a network file system cuts off its times."""
    for pattern in ("plates/*/records/*/part-*.json", "screen/records/*.json"):
        for path in (screen / "results").glob(pattern):
            if path.stat().st_mtime >= int(began):
                yield path


def _job(path):
    """A row of the table of jobs; empty where a record cannot be read."""
    try:
        record = read_json(path)
    except OSError:
        return {}
    if not isinstance(record, dict) or record.get("stage") not in STAGES or "started" not in record:
        return {}
    counted = {
        "wells": len(record.get("artefacts", {})),
        "computed": len(record.get("computed", ())),
        "kept": len(record.get("kept", ())),
        "failed": len(record.get("failures", ())),
        "memory_mb": round(recorded_memory(record), 1),
        "reason": " ".join(str(record.get("reason", "")).split()),
    }
    texts = {name: record.get(name) if record.get(name) is not None else "" for name in COLUMNS}
    return texts | counted


def _unfinished(screen, began):
    """Rows of jobs that were begun since a moment [s since 1970], and have ended without a record, as by their locks."""
    for pattern in ("plates/*/records/*/.part-*.lock", "screen/records/.*.lock"):
        for path in sorted((screen / "results").glob(pattern)):
            said, name = locks.read(path), path.stem.removeprefix(".")
            of_plate = pattern.startswith("plates")
            stage, plate = (path.parts[-2], path.parts[-4]) if of_plate else (name, None)
            part = name.removeprefix("part-") if of_plate else "0"
            begun = said.get("attempts") and "since" in said and path.stat().st_mtime >= int(began)
            if not begun or stage not in STAGES or not part.isdecimal():
                continue
            if path.with_name(f"{name}.json").exists() or locks.is_held(path):
                continue
            state = unrecorded(screen, stage, plate, int(part), said)
            row = dict.fromkeys(COLUMNS, "") | {"stage": stage, "plate": plate or "", "status": UNFINISHED}
            row |= {"part": part if of_plate else "", "wells": state.of or "", "host": said.get("host", "")}
            row |= {"started": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(said["since"]))}
            row |= {"attempts": state.attempts, "log": state.log, "reason": " ".join(state.reason.split())}
            yield row


def recorded_memory(record):
    """Memory that a job and its workers had at most, each at its own peak [MB]."""
    cluster = record.get("cluster", {})
    workers = 0 if cluster.get("kind") == "threads" else max(1, len(cluster.get("workers", ())))
    return (record.get("memory_mb") or 0) + workers * (cluster.get("worker_peak_mb") or 0)


def note_exit(folder, code, *, since):
    """Say of the newest run what `plateloom run` ended with, which knows more than Snakemake does.

    Parameters
    ----------
    folder : path
        The screen's.
    code : int
    since : float
        When the command began [s since 1970]: a run that began before is not its own.
    """
    newest = max((path.parent for path in (Path(folder) / FOLDER).glob(f"*/{BEGIN}")), default=None)
    if newest is None or (read_json(newest / BEGIN) or {}).get("began", 0) < since:
        return
    found = read_json(newest / END)
    if found is None:  # Snakemake was killed
        end(newest, code)
    else:
        write_json(newest / END, found | {"exit_code": code})


def find_run(folder, started):
    """The run that a job belongs to, by the time that it began; empty where none is known.

    Parameters
    ----------
    folder : path
        The screen's.
    started : str
        ``2024-05-31T17:00:00``, as records say.

    Returns
    -------
    str
        ``runs/2024-05-31T16-59-58``
    """
    stamp = started.replace(":", "-")
    names = sorted(path.parent.name for path in (Path(folder) / FOLDER).glob(f"*/{BEGIN}"))
    before = [name for name in names if name[: len(stamp)] <= stamp]
    if not before:
        return ""
    ended = (read_json(Path(folder) / FOLDER / before[-1] / END) or {}).get("ended")
    return str(FOLDER / before[-1]) if not ended or started <= ended else ""
