"""What lies in a screen's folder and serves nobody: half-written files, wells, records, caches, results of plates that are gone."""

import dataclasses
import os
import re
import shutil
from pathlib import Path

from plateloom.engine import locks
from plateloom.engine.parts import artefact_record
from plateloom.planning import STAGES
from plateloom.repair import PLATE_ARTEFACTS, SCREEN_ARTEFACTS
from plateloom.store import layout
from plateloom.store import plate as store
from plateloom.store.provenance import read_json
from plateloom.wells import parse_well, well_name

# Names that files have while they are written: ours, and zarr's.
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}|.+\.[0-9a-f]{32}\.partial")
KEPT_LOGS = 20  # of Snakemake, the newest ones
KINDS = {
    "temporary": "files that a killed job has left half-written",
    "wells": "images of wells that a killed conversion has left half-written",
    "records": "records of an earlier number of parts",
    "locks": "lock files of jobs that are done",
    "caches": "crops and checkpoints of trainings that are over",
    "snakemake": "scripts and old logs of Snakemake",
    "plate": "results of a plate that is not in the list of plates",
    "stage": "results of a stage that the config switches off",
}
ASKED = ("plate", "stage")  # kinds that are results, and go only by name


@dataclasses.dataclass(frozen=True)
class Leftover:
    """A file or folder that nothing current needs.

    Attributes
    ----------
    kind : str
        A key of `KINDS`.
    path : Path
        Below the screen's folder.
    name : str
        Of the plate or the stage, where the kind goes by name.
    files, size : int
        Number, and bytes.
    """

    kind: str
    path: Path
    name: str = ""
    files: int = 1
    size: int = 0


def find_leftovers(screen):
    """Find what may be removed. Nobody may work on the screen meanwhile.

    Parameters
    ----------
    screen : Screen

    Returns
    -------
    list of Leftover
    """
    folder = screen.folder
    found = [*_find_results(screen), *_find_wells(screen), *_find_caches(folder), *_find_snakemake(folder)]
    taken = {path for _, path, _ in found}
    found += [("temporary", path, "") for path in _find_temporary(folder, taken)]
    for stage in STAGES:
        for path in _records(folder, stage):
            lock = path.with_name(f".{path.stem}.lock")
            if STAGES[stage].scope == "part" and int(path.stem.split("-")[1]) >= screen.config.parts:
                found += [("records", folder / one, "") for one in (path, lock) if (folder / one).exists()]
            elif (
                (folder / path).exists() and (folder / lock).exists() and not locks.read(folder / lock).get("attempts")
            ):
                found.append(("locks", folder / lock, ""))
    found = [(kind, Path(os.path.relpath(path, folder)), name) for kind, path, name in found]
    inside = {path for kind, path, _ in found if kind in ASKED}
    kept = [one for one in found if one[0] in ASKED or not inside & set(one[1].parents) and one[1] not in inside]
    return [Leftover(kind, path, name, *_measure(folder / path)) for kind, path, name in kept]


def _records(folder, stage):
    """Places of a stage's records, those of which only the lock is there as well."""
    if STAGES[stage].scope == "screen":
        return [layout.screen_record(stage)]
    plates = sorted(path.name for path in (folder / "results/plates").glob("*"))
    found = []
    for plate in plates:
        base = layout.record_path(plate, stage).parent
        stems = {path.name.lstrip(".").split(".")[0] for path in (folder / base).glob("*part-*")}
        found += [base / f"{stem}.json" for stem in sorted(stems) if re.fullmatch(r"part-\d+", stem)]
    return found


def _find_results(screen):
    """Results of plates that are not in the list any more, and of stages that are switched off."""
    folder, there = screen.folder, sorted((screen.folder / "results/plates").glob("*"))
    for path in there:
        plate = path.name
        if plate not in screen.plates:
            yield from (
                ("plate", place, plate)
                for place in (path, *folder.glob(f"logs/*/{plate}"), *folder.glob(f"benchmarks/*/{plate}"))
            )
    for stage in STAGES:
        if stage in screen.stages():
            continue
        files = (SCREEN_ARTEFACTS if STAGES[stage].scope == "screen" else PLATE_ARTEFACTS).get(stage, ())
        bases = [folder / layout.screen_folder()] if STAGES[stage].scope == "screen" else there
        for base in bases:
            tops = {file.split("/{}")[0] if "{}" in file else os.path.dirname(file) or file for file in files}
            record = f"records/{stage}.json" if STAGES[stage].scope == "screen" else f"records/{stage}"
            yield from (("stage", base / top, stage) for top in sorted({*tops, record}) if (base / top).exists())


def _find_wells(screen):
    """Images of wells that are not whole and that no record vouches for."""
    for plate in screen.plates:
        images = screen.folder / layout.plate_store(plate)
        records = [read_json(screen.folder / path) or {} for path in screen.records("conversion", plate)]
        vouched = {well for record in records for well in record.get("artefacts", {})}
        for path in sorted(images.glob("[A-Z]*/[0-9]*")):
            well = well_name(*parse_well(f"{path.parent.name}{path.name}"))
            if path.is_dir() and well not in vouched and artefact_record(store.well_path(images, well)) is None:
                yield "wells", path, ""


def _find_caches(folder):
    """Work of trainings whose model is there, or that a later one has taken the place of."""
    for model in (folder / layout.screen_folder() / "models").glob("*"):
        made = (read_json(model / "model.json") or {}).get("plateloom", {}).get("fingerprint")
        works = sorted(model.glob(".work-*"), key=lambda path: path.stat().st_mtime)
        yield from (("caches", path, "") for path in works if path.name == f".work-{made}" or path != works[-1])


def _find_snakemake(folder):
    """What Snakemake leaves behind and never reads again; its metadata are no such thing."""
    base = folder / ".snakemake"
    for name in ("scripts", "shadow", "iocache"):
        yield from (("snakemake", path, "") for path in sorted((base / name).glob("*")))
    logs = sorted((base / "log").glob("*"), key=lambda path: path.stat().st_mtime)
    yield from (("snakemake", path, "") for path in logs[:-KEPT_LOGS])


def _find_temporary(folder, taken):
    """Files that have the name of one that is being written."""
    for base in (folder / "results", folder / ".plateloom", folder / "runs"):
        for place, folders, files in os.walk(base):
            folders[:] = sorted(name for name in folders if Path(place, name) not in taken)
            yield from (Path(place, name) for name in sorted(files) if TEMPORARY.fullmatch(name))


def _measure(path):
    """Number of files and their bytes."""
    if not path.is_dir() or path.is_symlink():
        return 1, path.lstat().st_size
    sizes = [os.lstat(os.path.join(place, name)).st_size for place, _, files in os.walk(path) for name in files]
    return len(sizes), sum(sizes)


def remove_leftovers(folder, leftovers):
    """Remove files and folders; the caller holds the screen's lock, from before it looked.

    Parameters
    ----------
    folder : path
        The screen's.
    leftovers : list of Leftover
    """
    for one in leftovers:
        path = Path(folder) / one.path
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def find_worker(folder):
    """Who still works on a screen though no run does: the holder of a job's lock, in words; empty where nobody does.

    Parameters
    ----------
    folder : path
        The screen's.
    """
    for stage in STAGES:
        for path in _records(Path(folder), stage):
            lock = Path(folder) / path.with_name(f".{path.stem}.lock")
            if lock.exists() and locks.is_held(lock):
                return f"{path}: {locks.describe(locks.read(lock))}"
    return ""
