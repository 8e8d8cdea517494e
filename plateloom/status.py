"""What is done, running, failed, stale or missing: read from records and locks alone, true also while others work."""

import dataclasses
import functools
import statistics
from pathlib import Path

from plateloom.engine import locks
from plateloom.planning import STAGES, Screen
from plateloom.store.provenance import digest, read_json

DONE, RUNNING, FAILED, QUARANTINED, STALE, MISSING = "done", "running", "failed", "quarantined", "stale", "missing"
WORST = (FAILED, RUNNING, QUARANTINED, STALE, MISSING, DONE)


@dataclasses.dataclass(frozen=True)
class State:
    """State of one stage of a plate, or of the screen.

    Attributes
    ----------
    state : str
        `done`, `running`, `failed` (infrastructure; will be tried again), `quarantined` (the data are at fault),
        `stale` (done, but settings, code or what it was made from have changed) or `missing`.
    done, of : int
        Wells.
    reason, log : str
    seconds : float
        [s] that its jobs took.
    failures : int
        Fields that failed.
    """

    state: str
    done: int = 0
    of: int = 0
    reason: str = ""
    log: str = ""
    seconds: float = 0.0
    failures: int = 0


def read_screen(folder, *, frozen=None):
    """Read the state of a screen.

    Parameters
    ----------
    folder : path
    frozen : dict, optional
        What a run began with (`Screen.freeze`), to judge it by that; default: the folder's config as it is now.

    Returns
    -------
    dict
        ``{"plates": {plate: {stage: State}}, "screen": {stage: State}}``.
    """
    from plateloom.config import read_config

    folder = Path(folder)
    if frozen is None:
        screen = Screen(read_config(folder).model_dump(mode="json"), folder)
    else:
        screen = Screen({}, folder, frozen=frozen)
    code = functools.cache(screen.code)
    of_screen = {}
    plates = {plate: {} for plate in screen.plates}
    for stage in screen.stages():
        if STAGES[stage].scope == "screen":
            upstream = [
                plates[plate][after] for after in STAGES[stage].after for plate in plates if after in plates[plate]
            ]
            of_screen[stage] = _state(screen, stage, None, code, upstream)
        else:
            for plate, states in plates.items():
                upstream = [(states | of_screen).get(after) for after in STAGES[stage].after]
                states[stage] = _state(screen, stage, plate, code, [state for state in upstream if state])
    return {"plates": plates, "screen": of_screen}


def _state(screen, stage, plate, code, upstream):
    """State of a stage over all of its parts."""
    parts = [_part(screen, stage, plate, i, path, code) for i, path in enumerate(screen.records(stage, plate))]
    worst = min(parts, key=lambda part: WORST.index(part.state))
    state, reason = worst.state, worst.reason
    if state == DONE and any(above.state in (STALE, MISSING, FAILED, RUNNING) for above in upstream):
        state, reason = STALE, "what it is made from changes"
    return State(
        state,
        done=sum(part.done for part in parts),
        of=sum(part.of for part in parts),
        reason=reason,
        log=worst.log,
        seconds=sum(part.seconds for part in parts),
        failures=sum(part.failures for part in parts),
    )


def _part(screen, stage, plate, part, path, code):
    """State of one job from its record and its lock."""
    path = screen.folder / path
    lock = path.with_name(f".{path.stem}.lock")
    said = locks.read(lock)
    record = read_json(path)
    log = said.get("log", "")
    if said.get("attempts") and locks.is_held(lock):
        return State(RUNNING, said.get("done", 0), said.get("of", 0), f"by {locks.describe(said)}", log)
    if record is None:
        if said.get("attempts"):
            return State(
                FAILED, said.get("done", 0), said.get("of", 0), _last_error(screen.folder / log) if log else "", log
            )
        return State(MISSING)
    wells = len(record["artefacts"])
    found = {"log": record["log"], "seconds": record["seconds"], "failures": len(record["failures"])}
    if record["status"] != "done":
        return State(QUARANTINED, wells, wells, record["reason"], **found)
    if stage == "conversion" and record["facts"].get("listing") != screen.listing(plate, part):
        return State(STALE, wells, wells, "the source files have changed", **found)
    if STAGES[stage].scope == "part" and record["parts"] != screen.config.parts:
        return State(STALE, wells, wells, "the plate is cut into another number of parts", **found)
    if record["settings"] != digest(screen.recorded_settings(stage, plate)):
        return State(STALE, wells, wells, "settings have changed", **found)
    if record["code"] != code(stage):
        return State(STALE, wells, wells, "its code has changed", **found)
    return State(DONE, wells, wells, **found)


def _last_error(log):
    """Last line of a log that says what went wrong."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "ended without a word"
    return next((line.strip() for line in reversed(lines) if line.strip()), "ended without a word")


def screen_state(states):
    """Sum up a screen.

    Returns
    -------
    dict
        `summary` (one line), `quarantined` (plates with faults of the data), `open` (plates with work left), and
        `seconds_left`, the work that is left as far as what is done tells [s]; None where nothing tells.
    """
    plates = states["plates"]
    quarantined = [
        plate
        for plate, stages in plates.items()
        if any(state.state == QUARANTINED or state.failures for state in stages.values())
    ]
    left = [
        plate
        for plate, stages in plates.items()
        if any(state.state in (FAILED, STALE, MISSING, RUNNING) for state in stages.values())
    ]
    complete = len(plates) - len(set(left))
    whole = [plate for plate in quarantined if any(state.state == QUARANTINED for state in plates[plate].values())]
    summary = f"{complete} of {len(plates)} plates complete"
    if whole:
        summary += f"; quarantined: {', '.join(whole)}"
    if partly := [plate for plate in quarantined if plate not in whole]:
        number = sum(state.failures for plate in partly for state in plates[plate].values())
        summary += f"; {number} failures recorded on {', '.join(partly)}"
    return {"summary": summary, "quarantined": quarantined, "open": left, "seconds_left": _seconds_left(states)}


def _seconds_left(states):
    """Work left [s]: for every stage that is not done, what it took elsewhere, less what is done of it."""
    everything = [*states["plates"].values(), states["screen"]]
    took = {}
    for stages in everything:
        for stage, state in stages.items():
            if state.state == DONE:
                took.setdefault(stage, []).append(state.seconds)
    total, known = 0.0, False
    for stages in everything:
        for stage, state in stages.items():
            if state.state in (MISSING, RUNNING, STALE, FAILED) and stage in took:
                share = 1 - state.done / state.of if state.state in (RUNNING, FAILED) and state.of else 1
                total, known = total + statistics.median(took[stage]) * share, True
    return round(total) if known else None


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
