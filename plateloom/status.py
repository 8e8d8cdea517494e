"""What is done, running, failed, stale or missing: read from records and locks alone, true also while others work."""

import dataclasses
import functools
import json
import re
import statistics
from pathlib import Path

from plateloom.engine import locks
from plateloom.errors import INTERRUPTION, some_of
from plateloom.planning import STAGES, TOLD_OF_QUARANTINES, Screen, nearest_stages
from plateloom.store.provenance import digest

DONE, RUNNING, FAILED, INTERRUPTED = "done", "running", "failed", "interrupted"
QUARANTINED, DEFERRED, SKIPPED, STALE, MISSING = "quarantined", "deferred", "skipped", "stale", "missing"
ALARMS = frozenset({"normalization", "shift"})
UNSAID = "its process ended without an error: told to end, or killed for want of memory or time"
ENDED = re.compile(r"\w+ job \d+ \(.*\) has ended: .+")  # by profiles/slurm/status.sh
WORST = (FAILED, INTERRUPTED, RUNNING, STALE, MISSING, QUARANTINED, DEFERRED, SKIPPED, DONE)
LEFT = (FAILED, INTERRUPTED, RUNNING, STALE, MISSING)  # the same command has something to do here
FOLLOWS = (STALE, MISSING, SKIPPED)  # may be so only because of what lies above
SCREEN_STAGES = {name for name, stage in STAGES.items() if stage.scope == "screen"}
FOLLOWING = "what it is made from changes"
GONE = "its record is gone, though what was made from it is there"
UNREADABLE = "record cannot be read"
AGAIN = "; will be tried again, unless this was its last attempt"
SOME_WELLS = "only the wells concerned are made anew"
RECORDED = {"status": str, "reason": str, "settings": str, "code": str, "log": str, "seconds": int | float}
RECORDED |= {"artefacts": dict, "facts": dict, "failures": list}


@dataclasses.dataclass(frozen=True)
class State:
    """State of one stage of a plate, or of the screen.

    Attributes
    ----------
    state : str
        `done`, `running`, `failed` (infrastructure; will be tried again), `interrupted` (begun, and ended without an
        error), `quarantined` (the data are at fault), `deferred` (put off: the plate is still being written), `skipped`
        (what it is made from was not made), `stale` (done, but settings, code or what it was made from have changed) or
        `missing`.
    done, of : int
        Wells; `of` is all that there are, also those of parts that nobody has begun, as soon as one is.
    reason, log : str
    seconds : float
        [s] that its jobs took.
    failed : tuple of dict
        What could not be used of a plate that went on: `well`, `field`, `channel`, `reason`.
    warnings : tuple of str
        What a plate's page says before any number: of a plate that is done, and yet may not be used as it is.
    alarms : tuple of str
        Kinds of warnings that the exit code tells, too: `normalization` (no controls to compare with), `shift`.
    attempts : int
        Of its jobs, the highest number: how often one was begun until it ended, or so far.
    waits_for : str
        The stage above that it merely waits for, ``plate1 segmentation`` or, of the screen, ``map``; empty where the
        cause is its own.
    left : float
        Share of its work that is left, of parts alike; of what is stale, all.
    """

    state: str
    done: int = 0
    of: int = 0
    reason: str = ""
    log: str = ""
    seconds: float = 0.0
    failed: tuple = ()
    warnings: tuple = ()
    alarms: tuple = ()
    attempts: int = 0
    waits_for: str = ""
    left: float = 0.0


@dataclasses.dataclass
class Cause:
    """Why stages are not done: one cause, however many plates it concerns.

    Attributes
    ----------
    stage, state, reason : str
    plates : list of str
        Empty for a stage of the screen.
    done, of : int
        Wells of these plates.
    attempts : int
        The highest number.
    logs : list of str
    later : set of str
        Stages that wait for this.
    """

    stage: str
    state: str
    reason: str
    plates: list = dataclasses.field(default_factory=list)
    done: int = 0
    of: int = 0
    attempts: int = 0
    logs: list = dataclasses.field(default_factory=list)
    later: set = dataclasses.field(default_factory=set)


def read_screen(folder, *, frozen=None, quick=False):
    """Read the state of a screen.

    Parameters
    ----------
    folder : path
    frozen : dict, optional
        What a run began with (`Screen.freeze`), to judge it by that; default: the folder's config as it is now.
    quick : bool
        Whether a source folder in which no file has come or gone since the last run is taken as it was: files that were
        rewritten in place are not noticed.

    Returns
    -------
    dict
        ``{"plates": {plate: {stage: State}}, "screen": {stage: State}, "after": {stage: tuple of str}}``; the last are the
        stages that each waits for.
    """
    from plateloom.config import read_config

    folder = Path(folder)
    if frozen is None:
        screen = Screen(read_config(folder).model_dump(mode="json"), folder, quick=quick)
    else:
        screen = Screen({}, folder, frozen=frozen)
    code, held = functools.cache(screen.codes), screen.quarantined_plates
    of_screen, plates = {}, {plate: {} for plate in screen.plates}
    for stage in screen.stages():
        if stage in SCREEN_STAGES:
            above = [(f"{plate} {name}", state) for plate in plates for name, state in plates[plate].items()]
            above += [(name, state) for name, state in of_screen.items() if name in screen.after(stage)]
            of_screen[stage] = _state(screen, stage, None, code, above)
        else:
            for plate, states in plates.items():
                if plate in held:
                    states[stage] = _held(plate, stage, held[plate])
                    continue
                above = [(f"{plate} {name}", state) for name, state in states.items()] + list(of_screen.items())
                states[stage] = _state(screen, stage, plate, code, above)
    ended = [
        (found, stage, state)
        for found in [*plates.values(), of_screen]
        for stage, state in found.items()
        if state.state in (FAILED, INTERRUPTED) and not state.reason.startswith(UNREADABLE)
    ]
    if ended and locks.is_held(folder / locks.RUN):
        for found, stage, state in ended:
            found[stage] = dataclasses.replace(state, reason=state.reason + AGAIN)
    return {"plates": plates, "screen": of_screen, "after": nearest_stages(screen.config)}


def _held(plate, stage, reason):
    """State of one stage of a plate that a person has taken out, whatever was made of it before."""
    first = next(name for name in STAGES if name not in SCREEN_STAGES)
    if stage == first:
        return State(QUARANTINED, reason=reason)
    return State(SKIPPED, reason=f"the plate is quarantined {reason}", waits_for=f"{plate} {first}")


def states_until(states, last):
    """Leave only some stages, and those that they are made from, of what `read_screen` gives."""
    wanted, waiting = set(), [*last]
    while waiting:
        stage = waiting.pop()
        wanted.add(stage)
        waiting += states["after"][stage]
    kept = lambda stages: {name: state for name, state in stages.items() if name in wanted}  # noqa: E731
    return {
        "plates": {plate: kept(stages) for plate, stages in states["plates"].items()},
        "screen": kept(states["screen"]),
        "after": states["after"],
    }


def _state(screen, stage, plate, code, above):
    """State of a stage over all of its parts, given the states of earlier stages by their names for `waits_for`."""
    parts = [_part(screen, stage, plate, i, path, code) for i, path in enumerate(screen.records(stage, plate))]
    worst = min(parts, key=lambda part: WORST.index(part.state))
    state, reason = worst.state, worst.reason
    alike = sum(part.state == state for part in parts)
    if state in (QUARANTINED, DEFERRED, STALE) and alike < len(parts):
        reason = f"{reason} (in {alike} of {len(parts)} parts)"
    nearest = [(name, found) for name, found in above if name.split(" ")[-1] in screen.after(stage)]
    waits_for = next((found.waits_for or name for name, found in nearest if found.state in LEFT), "")
    if state == DONE and waits_for:
        state, reason = STALE, FOLLOWING
    faults = [(name, found) for name, found in above if found.state in (QUARANTINED, DEFERRED)]
    repeats = any(found.reason and found.reason in reason for _, found in faults)
    nothing_left = faults and stage in SCREEN_STAGES and not any(found.state == DONE for _, found in nearest)
    if state == QUARANTINED and (repeats or nothing_left):
        state = SKIPPED
    if state == SKIPPED and not waits_for:
        waits_for = next((name for name, _ in faults), "")
        if not waits_for:
            state, reason = STALE, "what it is made from is there by now"
    of, begun = sum(part.of for part in parts), sum(part.of > 0 for part in parts)
    if 0 < begun < len(parts):
        of = max(of, screen.wells(plate, unknown=0) or round(of / begun * len(parts)))
    return State(
        state,
        done=sum(part.done for part in parts),
        of=of,
        reason=reason,
        log=worst.log,
        seconds=sum(part.seconds for part in parts),
        failed=tuple(failure for part in parts for failure in part.failed),
        warnings=tuple(warning for part in parts for warning in part.warnings),
        alarms=tuple(sorted({kind for part in parts for kind in part.alarms})),
        attempts=max(part.attempts for part in parts),
        waits_for=waits_for if state in FOLLOWS else "",
        left=sum(map(_left, parts)) / len(parts) if worst.state in LEFT else float(state in LEFT),
    )


def _left(part):
    """Share of the work of a part that is left."""
    if part.state in (RUNNING, FAILED, INTERRUPTED) and part.of:
        return 1 - part.done / part.of
    return float(part.state in LEFT)


def _part(screen, stage, plate, part, path, code):
    """State of one job from its record and its lock."""
    path = screen.folder / path
    lock = path.with_name(f".{path.stem}.lock")
    said = locks.read(lock)
    record, wrong = _read_record(path)
    if said.get("attempts") and locks.is_held(lock):
        begun = {"log": said.get("log", ""), "attempts": said["attempts"]}
        return State(RUNNING, said.get("done", 0), said.get("of", 0), f"by {locks.describe(said)}", **begun)
    if wrong:
        where = path.relative_to(screen.folder)
        advice = "`plateloom verify --repair` makes again what it stands for"
        return State(FAILED, reason=f"{UNREADABLE}: {str(where)!r}: {wrong}; {advice}")
    if record is None:
        return unrecorded(screen.folder, stage, plate, part, said)
    wells = len(record["artefacts"])
    found = {"log": record["log"], "seconds": record["seconds"], "failed": tuple(record["failures"])}
    found["attempts"] = record.get("attempts", 0)
    # Flagged fields that are left out are QC's daily work, and wells that a person has taken out known: no warning.
    notices = [
        notice for notice in record["facts"].get("notices", ()) if notice["kind"] not in ("flagged", "quarantined")
    ]
    found["warnings"] = tuple(notice["text"] for notice in notices)
    found["alarms"] = tuple(sorted(ALARMS & {notice["kind"] for notice in notices}))
    changed = _changed(screen, stage, plate, part, record, code)
    if record["status"] == "done":
        return State(STALE if changed else DONE, wells, wells, changed, **found)
    if changed:
        return State(STALE, wells, wells, f"{changed}; before: {record['reason']}", **found)
    if record["status"] == "skipped":
        return State(SKIPPED, wells, wells, record["reason"], **found)
    return State(
        DEFERRED if record["facts"].get("deferred") else QUARANTINED,
        wells,
        wells,
        record["reason"].removeprefix("deferred: "),
        **found,
    )


def _read_record(path):
    """A job's record, and what is wrong with it: None and nothing where there is none, None and words where it is none."""
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except OSError as error:
        return None, error.strerror or str(error)
    except ValueError:
        return None, "it is not whole"
    if not isinstance(record, dict):
        return None, "it is no record"
    for name, kind in RECORDED.items():
        if not isinstance(record.get(name), kind):
            return None, f"{name!r} is {'wrong' if name in record else 'missing'}"
    notices = record["facts"].get("notices", ())
    if not all(isinstance(one, dict) for one in record["failures"]) or not all(
        isinstance(one, dict) and {"kind", "text"} <= one.keys() for one in notices
    ):
        return None, "'failures' or 'notices' are wrong"
    return record, ""


def unrecorded(folder, stage, plate, part, said):
    """State of a job that holds no lock and has left no record, from its logs.

    Parameters
    ----------
    folder : Path
        The screen's.
    stage : str
    plate : str or None
    part : int
    said : dict
        What its lock says (`locks.read`).

    Returns
    -------
    State
        `failed`, `interrupted`, or `missing`: never begun.
    """
    log = said.get("log", "")
    batch = Path("logs", STAGES[stage].script, *([plate, f"part-{part}"] if plate else [])).with_suffix(".batch.log")
    ended = _said_by_scheduler(folder / batch)
    if not said.get("attempts"):  # killed before it had begun, as for want of memory
        return State(FAILED, reason=ended, log=str(batch)) if ended else State(MISSING)
    error = _last_error(folder / log) if log else ""
    reason = error or ended or UNSAID
    begun = {"log": str(batch) if ended and not error else log, "attempts": said["attempts"]}
    return State(FAILED if error else INTERRUPTED, said.get("done", 0), said.get("of", 0), reason, **begun)


def _changed(screen, stage, plate, part, record, code):
    """What has changed since a record was written; empty where nothing has."""
    if stage == "conversion" and record["facts"].get("listing", "") not in ("", screen.listing(plate, part)):
        return f"at least one source file has changed, come or gone; {SOME_WELLS}"
    if STAGES[stage].scope == "part" and record.get("parts") != screen.config.parts:
        return "the plate is cut into another number of parts"
    taken = record["facts"].get("corrections", {})
    if stage == "segmentation" and record["status"] == "done" and taken != screen.corrections(plate, part):
        return f"corrected labels have changed, come or gone; {SOME_WELLS}"
    if record["settings"] != digest(screen.recorded_settings(stage, plate)):
        return "settings or quarantines have changed" if stage in TOLD_OF_QUARANTINES else "settings have changed"
    if record["code"] not in (code(stage, plate) if stage == "conversion" else code(stage)):
        return "its code has changed"
    return ""


def _said_by_scheduler(log):
    """How a scheduler has ended the last attempt of a job, by the last line of its log; empty where it has not."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    last = next((line for line in reversed(lines) if line.strip()), "")
    return last if ENDED.fullmatch(last) else ""


def _last_error(log):
    """What a job's log says went wrong; empty where it holds no error, as after a signal.

    Only what was logged as an error, and what Python writes when it crashes, is one.
    """
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    begins = [
        i for i, line in enumerate(lines) if re.match(r"\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ |Fatal Python error", line)
    ]
    errors = [i for i in begins if re.match(r"\S+ \S+ (ERROR|CRITICAL) |Fatal", lines[i])]
    if not errors or any(lines[i].endswith(INTERRUPTION) for i in begins):
        return ""
    told = lines[errors[-1] : next((i for i in begins if i > errors[-1]), len(lines))]
    frames = [i for i, line in enumerate(told) if line.startswith("  File ")]
    if frames and not told[0].startswith("Fatal"):  # what was raised stands behind the traceback
        told = [line for line in told[frames[-1] :] if line.strip() and not line.startswith(" ")] or told
    message = re.sub(r"^\S+ \S+ (ERROR|CRITICAL) ", "", told[0]).strip()
    return "" if message.startswith(("KeyboardInterrupt", "SystemExit")) else message


def find_causes(states, *, unbegun=False):
    """Why stages are not done, each cause once.

    Parameters
    ----------
    states : dict
        From `read_screen`.
    unbegun : bool
        Whether that nobody has begun yet is a cause as well.

    Returns
    -------
    list of Cause
        In the order of the stages. What is done, or merely waits, is no cause.
    """
    causes = {}
    for where, stage, state in _walk(states):
        plates, following = [where] if where else list(states["plates"]), later(stage, states["after"])
        if state.state == MISSING and not state.waits_for and _was_there(states, plates, following):
            state = dataclasses.replace(state, reason=GONE)
        elif state.state == DONE or state.waits_for or (state.state == MISSING and not unbegun):
            continue
        waiting = {
            name
            for found in [*(states["plates"][plate] for plate in plates), states["screen"]]
            for name in following & found.keys()
            if found[name].state in FOLLOWS
        }
        key = (stage, state.state, state.reason)
        cause = causes.setdefault(key, Cause(*key))
        cause.later |= waiting
        cause.plates += [where] if where else []
        cause.done, cause.of = cause.done + state.done, cause.of + state.of
        cause.attempts = max(cause.attempts, state.attempts)
        cause.logs += [state.log] if state.log else []
    order = list(STAGES)
    return sorted(causes.values(), key=lambda cause: order.index(cause.stage))


def _was_there(states, plates, following):
    """Whether something was made before of what is missing now, by the stages that follow."""
    found = [states["plates"][plate] for plate in plates] + [states["screen"]]
    return any(stages[name].state == STALE for stages in found for name in following & stages.keys())


def later(stage, after):
    """Names of all stages that a stage's result goes into, by those that each waits for (see `nearest_stages`)."""
    found, waiting = set(), {stage}
    while waiting:
        waiting = {name for name, above in after.items() if waiting & set(above)} - found
        found |= waiting
    return found


def _walk(states):
    """Plate (None for the screen), stage and state, one after the other."""
    for plate, stages in states["plates"].items():
        yield from ((plate, stage, state) for stage, state in stages.items())
    yield from ((None, stage, state) for stage, state in states["screen"].items())


def find_failures(stages):
    """What could not be used of a plate, each failure once.

    Parameters
    ----------
    stages : dict of str to State

    Returns
    -------
    list of dict
        `stage`, `well`, `field`, `channel`, `reason`.
    """
    seen = {}
    for stage, state in stages.items():
        for failure in state.failed:
            row = {name: failure.get(name, "") for name in ("well", "field", "channel", "reason")}
            seen.setdefault(tuple(row.values()), {"stage": stage} | row)
    return list(seen.values())


def screen_state(states):
    """Sum up a screen. Every plate is in one of `complete`, `with_failures`, `quarantined`, `deferred` and `open`.

    Parameters
    ----------
    states : dict
        From `read_screen`.

    Returns
    -------
    dict
        `complete`: plates whose every stage is done, or waits only for a step of the screen that had nothing to work on;
        `with_failures`: likewise, but fields of them could not be used;
        `quarantined`: plates with a stage that their data do not allow, and all others done or skipped;
        `deferred`: plates that are still being written;
        `open`: plates with work left, which the same command does;
        `alarmed`: plates that shift away from the others, or are not normalized where others are;
        `not_made`: steps of the screen that had nothing to work on, each with its reason;
        `warnings`: what a plate's page warns of, by plate;
        `summary` (one line);
        `seconds_left`: job time that is left (the sum of what `time_left` knows) [s], None where nothing tells;
        `untold`: stages that have work left of which nothing tells how long it takes;
        `some_wells`: whether less may be left, since of what is stale only some wells are made anew.
    """
    sorts = {name: [] for name in ("complete", "with_failures", "quarantined", "deferred", "open")}
    for plate, stages in states["plates"].items():
        sorts[_sort(plate, stages)].append(plate)
    not_made = {stage: state.reason for stage, state in states["screen"].items() if state.state == QUARANTINED}
    complete = len(sorts["complete"]) + len(sorts["with_failures"])
    summary = f"{complete} of {len(states['plates'])} plates complete"
    if partly := sorts["with_failures"]:
        summary += f", {len(partly)} of them with failed fields ({some_of(partly)})"
    for name, word in (("quarantined", "quarantined"), ("deferred", "put off"), ("open", "open")):
        if sorts[name]:
            summary += f"; {word}: {some_of(sorts[name])}"
    if not_made:
        summary += f"; not made: {', '.join(not_made)}"
    warnings = {
        plate: [text for state in stages.values() for text in state.warnings]
        for plate, stages in states["plates"].items()
    }
    alarms = {
        plate: {kind for state in stages.values() for kind in state.alarms}
        for plate, stages in states["plates"].items()
    }
    counted = ALARMS - ({"normalization"} if all("normalization" in found for found in alarms.values()) else set())
    times = [(stage, time) for stages in time_left(states).values() for stage, time in stages.items() if time != 0]
    known = [time for _, time in times if time is not None]
    return sorts | {
        "alarmed": [plate for plate, found in alarms.items() if found & counted],
        "not_made": not_made,
        "warnings": {plate: texts for plate, texts in warnings.items() if texts},
        "summary": summary,
        "seconds_left": sum(known) if known else None,
        "untold": list(dict.fromkeys(stage for stage, time in times if time is None)),
        "some_wells": any(state.state == STALE and SOME_WELLS in state.reason for _, _, state in _walk(states)),
    }


def _sort(plate, stages):
    """Which sort of plate this is: a key of `screen_state`."""
    # A stage that is done, and follows other plates only, is made anew with them: that is no work left of this plate.
    kinds = {
        state.state
        for state in stages.values()
        if state.reason != FOLLOWING or state.waits_for.split(" ")[0] == plate or " " not in state.waits_for
    }
    if kinds & set(LEFT):
        return "open"
    if QUARANTINED in kinds:
        return "quarantined"
    if DEFERRED in kinds:
        return "deferred"
    return "with_failures" if find_failures(stages) else "complete"


def warning_lines(summed, most=5):
    """What `screen_state` found that a person should know of plates that are done, a line each.

    Examples
    --------
    >>> warning_lines({"warnings": {"P1": ["Not normalized."], "P2": ["Not normalized."]}}, most=1)
    ['warning: P1: Not normalized.', 'and 1 more plate with warnings on its page']
    """
    plates = list(summed["warnings"])
    lines = [f"warning: {plate}: {text}" for plate in plates[:most] for text in summed["warnings"][plate]]
    more = len(plates) - most
    if more > 0:
        lines.append(
            f"and {more} more plate{'s' * (more > 1)} with warnings on {'their pages' if more > 1 else 'its page'}"
        )
    return lines


def time_left(states):
    """Job time that is left: what a stage took elsewhere, or took itself before it was stale, for the share that is left.

    Parameters
    ----------
    states : dict
        From `read_screen`.

    Returns
    -------
    dict
        [s] by plate (None: the screen) and stage; None where nothing tells, 0 where nothing is left.
    """
    took, before = {}, {}
    for _, stage, state in _walk(states):
        if state.state == DONE:
            took.setdefault(stage, []).append(state.seconds)
        elif state.state == STALE and state.seconds:
            before.setdefault(stage, []).append(state.seconds)
    usual = {stage: statistics.median(seconds) for stage, seconds in (before | took).items()}
    found = {plate: {} for plate in [*states["plates"], None]}
    for plate, stage, state in _walk(states):
        told = stage in usual or not state.left
        found[plate][stage] = round(usual.get(stage, 0) * state.left) if told else None
    return found


def age(seconds):
    """`3 h 20 min`, for people."""
    minutes = int(seconds // 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min"
        if minutes
        else f"{int(seconds)} s"
    )
