"""New code and old results: which results a run would make again because code has changed, and what that costs."""

import dataclasses

from plateloom.estimate import count_seconds
from plateloom.planning import STAGES, nearest_stages
from plateloom.status import later
from plateloom.store.provenance import read_json


@dataclasses.dataclass
class Changed:
    """A stage whose results would be made again because of code.

    Attributes
    ----------
    stage : str
    jobs : int
    plates : set of str
        Empty for a stage of the screen.
    core_seconds : float
        [s] that these jobs took, times their cores, and would have taken had they kept nothing of earlier ones.
    codes : set of str
        Digests of the stage's own code that made these results and is not the present one; empty where it merely follows.
    estimated : bool
        Whether some of these jobs kept wells, so that what all of them cost is an estimate.
    """

    stage: str
    jobs: int = 0
    plates: set = dataclasses.field(default_factory=set)
    core_seconds: float = 0.0
    codes: set = dataclasses.field(default_factory=set)
    estimated: bool = False


def find_changed(screen, last=()):
    """Find what a run would make again because of code, by the records alone.

    Parameters
    ----------
    screen : Screen
    last : collection of str, optional
        The stages that the run ends with.

    Returns
    -------
    list of Changed
        In the order of the stages; what nobody would make again is not among them.
    """
    found, made, hit, after = {}, {}, set(), nearest_stages(screen.config)
    for stage in screen.stages():
        if last and not {stage, *later(stage, after)} & set(last):
            continue
        for plate in [None] if STAGES[stage].scope == "screen" else screen.complete_plates:
            known = screen.codes(stage, plate)
            records = [read_json(screen.folder / path) for path in screen.records(stage, plate)]
            records = [record for record in records if record]
            own = [record for record in records if record.get("code", "") not in known]
            above = screen.after(stage)
            follows = any(name in above and (plate is None or of in (plate, None)) for of, name in hit)
            if not own and not (follows and records):
                continue
            hit.add((plate, stage))
            one = found.setdefault(stage, Changed(stage))
            again = records if follows else own
            one.jobs += len(again)
            one.plates |= {plate} if plate else set()
            one.codes |= {record.get("code", "") for record in own}
            made.setdefault(stage, []).extend(again)
    for stage, one in found.items():  # at once for all plates, whose jobs tell of each other
        one.core_seconds = sum(count_seconds(screen, stage, made[stage]))
        one.estimated = any(record.get("kept") for record in made[stage])
    return list(found.values())


def core_hours(changed):
    """What all of it took [core-hours]."""
    return sum(one.core_seconds for one in changed) / 3600


def describe(changed):
    """What would be made again, a line per stage, and the sum."""
    lines = []
    for one in changed:
        where = f"{len(one.plates)} plate{'s' * (len(one.plates) != 1)}, " if one.plates else ""
        why = "its code has changed" if one.codes else "follows"
        jobs = f"{one.jobs} job{'s' * (one.jobs != 1)}"
        lines.append(f"{one.stage}: {why}: {where}{jobs}, {one.core_seconds / 3600:.2g} core-hours")
    if any(one.estimated for one in changed):
        how = "about {}, by what these jobs took; what some of them kept of earlier ones is estimated"
    else:
        how = "at least {}, by what these jobs took"
    return [*lines, "in all " + how.format(f"{core_hours(changed):.2g} core-hours")]
