"""The one loop that all stages share: lock, skip what is done, bounded tasks in flight, write last, record."""

import dataclasses
import logging
import os
import platform
import socket
import time
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path

from plateloom.engine import locks
from plateloom.engine.cluster import REMOTE, open_cluster, peak_memory_mb
from plateloom.engine.scratch import open_scratch
from plateloom.errors import INTERRUPTION, DataFault, DeferredError
from plateloom.store.layout import part_of
from plateloom.store.plate import finished_record, read_group, write_group
from plateloom.store.provenance import digest, read_json, remove_abandoned, write_json
from plateloom.store.tables import GROUP_ROWS, read_record, write_table

log = logging.getLogger(__name__)

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
PACKAGES = ("dask", "zarr", "numpy", "scipy", "numba", "scikit-image", "scikit-learn", "torch", "pandas", "umap-learn")


@dataclasses.dataclass
class Execution:
    """How this job runs: set by `start_job`, never part of a fingerprint.

    Attributes
    ----------
    threads : int
    attempt : int
        Of this job, as its lock counts them: how often it was begun without an end, and once more.
    memory_mb : int or None
        [MB].
    log : str
        Path of the log file.
    cluster : dict
        `kind`, `tasks_per_worker`, `address`, `slurm` for `open_cluster`.
    tile_px : int
        Side of a tile [px].
    device : str
        GPU policy: `require`, `prefer` or `cpu`.
    settle_minutes : float
        How old the newest file of a plate must be [min].
    end_marker : bool
        Whether to wait for the microscope's own mark that a plate is finished.
    scratch : str
        Folder on the node's own disk (see `open_scratch`); empty: none.
    """

    threads: int = 2
    attempt: int = 1
    memory_mb: int | None = None
    log: str = ""
    cluster: dict = dataclasses.field(default_factory=dict)
    tile_px: int = 2048
    device: str = "prefer"
    settle_minutes: float = 0.0
    end_marker: bool = True
    scratch: str = ""
    _private: Path | None = None

    def private_folder(self, beside):
        """Where a job keeps files that only its own tasks read: on the node's disk if it has a folder there.

        Parameters
        ----------
        beside : path
            Where they lie else: beside the results.

        Returns
        -------
        Path
            A name of its own for each `beside`; its owner makes it.
        """
        return Path(beside) if self._private is None else self._private / digest(str(beside))[:12]


EXECUTION = Execution()
SMALLER_FROM = 3  # attempt that makes tiles smaller
LEAST_TILE_PX = 512


def start_job(snakemake):
    """Begin a script's job: log file, thread limits, and how it runs.

    Parameters
    ----------
    snakemake : snakemake.iocontainers.Snakemake
        The object that Snakemake gives to a script.
    """
    global EXECUTION
    import faulthandler
    import sys

    from threadpoolctl import threadpool_limits

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    threadpool_limits(1, user_api="blas")  # numpy is there already, with as many threads as Snakemake gave the job
    # Threads that spin while they wait for each other take the cores that the others need, wherever something else runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    handler = logging.FileHandler(snakemake.log[0], mode="w")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # Dask tells of connections that end, with their tracebacks, when all is well; its loggers have levels of their own.
    handler.addFilter(lambda record: record.levelno >= logging.ERROR or not record.name.startswith("distributed"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    faulthandler.enable(handler.stream)
    sys.excepthook = _log_end
    engine = snakemake.config.get("engine", {})
    names = ("kind", "tasks_per_worker", "address", "slurm")
    EXECUTION = Execution(
        threads=snakemake.threads,
        memory_mb=snakemake.resources.get("mem_mb"),
        log=snakemake.log[0],
        cluster={name: engine[name] for name in names if name in engine},
        tile_px=engine.get("tile_px", Execution.tile_px),
        device=engine.get("device", Execution.device),
        settle_minutes=engine.get("settle_minutes", Execution.settle_minutes),
        end_marker=engine.get("end_marker", Execution.end_marker),
        scratch=engine.get("scratch", Execution.scratch),
    )


def _log_end(kind, error, trace):
    """Log what ended a job; Ctrl-C is no fault of its own."""
    if issubclass(kind, KeyboardInterrupt):
        log.info(INTERRUPTION)
    else:
        log.critical("the job failed", exc_info=(kind, error, trace))


@dataclasses.dataclass
class Outcome:
    """What a unit's work ends with.

    Attributes
    ----------
    table : DataFrame or None
        Written to the unit's path with its recipe; None where the work has written its artefact itself.
    failures : list of dict
        Data faults: `well`, `field`, `channel`, `reason`.
    recipe : dict or None
        Where it was not known beforehand.
    facts : dict
        More for the job's record: device used, epochs …
    described : dict or None
        Metadata of the table's columns.
    group_rows : int
        Of its row groups, as of `write_table`.
    """

    table: object = None
    failures: list = dataclasses.field(default_factory=list)
    recipe: dict | None = None
    facts: dict = dataclasses.field(default_factory=dict)
    described: dict | None = None
    group_rows: int = GROUP_ROWS


@dataclasses.dataclass
class Unit:
    """One artefact of a job: a well's table, a plate's flat-fields, a model.

    Attributes
    ----------
    name : str
        The well (``A01``), or a word for an artefact of the whole plate or screen.
    path : Path
        The artefact whose record tells whether it is there: parquet, zarr group or JSON.
    recipe : dict or None
        What it would be made from; None where only its making tells.
    work : callable() -> generator
        Yields lists of tasks (see `Cluster.run`), returns an `Outcome`.
    current : bool or None
        Given where the recipe is None: whether the artefact there is up to date.
    beside : tuple of Path
        Other files that the same work makes, before that of `path`: without one of them nothing is there.
    """

    name: str
    path: Path
    recipe: dict | None
    work: Callable
    current: bool | None = None
    beside: tuple = ()

    def there(self):
        """Record of the artefact that is there and up to date; None where it must be made."""
        found = artefact_record(self.path) or {}
        if not all(path.exists() for path in self.beside):
            return None
        if self.recipe is None:
            return found if self.current else None
        return found if found.get("fingerprint") == self.recipe["fingerprint"] else None


def artefact_record(path):
    """The `plateloom` record of any artefact; None where it is missing, was not finished, or is damaged."""
    path = Path(path)
    if path.suffix == ".parquet":
        return read_record(path)
    if path.suffix == ".json":
        return (read_json(path) or {}).get("plateloom")
    return finished_record(path)


def run_job(
    stage,
    *,
    record,
    plan,
    code,
    settings=None,
    upstream=None,
    plate=None,
    part=None,
    parts=None,
    facts=None,
    remove=None,
    strict=True,
):
    """Run one job: a stage on a part of a plate, on a plate, or on the screen.

    Parameters
    ----------
    stage : str
    record : path
        The job's declared output, written last.
    plan : callable(dict of dict) -> list of Unit
        Is given the upstream records and says what the job is to make.
    code : str
        Digest of the stage's code; stands in the record, so that `plateloom status` can tell what is stale.
    settings : dict, optional
        What the stage was configured with; likewise.
    upstream : dict of str to (path or list of path), optional
        Records that the job depends on. Where one of them is not done, nothing is made and the record says
        `skipped` (a data fault travels down; it is not raised again).
    strict : bool
        Whether that holds. Steps of the screen leave out the plates that are not done, and say so: their plan judges.
    plate : str, optional
    part, parts : int, optional
    facts : dict, optional
        More for the record.
    remove : callable(set of str) -> list of str, optional
        Is given the names of the job's units, removes what is there beyond them, and returns those names.

    Returns
    -------
    dict
        The record.
    """
    record = Path(record)
    started = time.time()
    with locks.hold(record.with_name(f".{record.stem}.lock"), wait=True) as lock:
        attempts = lock.previous.get("attempts", 0) + 1
        lock.say(attempts=attempts, log=EXECUTION.log, stage=stage)
        EXECUTION.attempt, EXECUTION.tile_px = attempts, smaller_tile(EXECUTION.tile_px, attempts)
        told = _Told(stage, record, plate, part, attempts, started)
        told.say(code=code, settings=digest(settings or {}), parts=parts)
        inputs = _read_inputs(upstream or {})
        reasons = [reason for found in inputs.values() for reason in _not_done(found)]
        if strict and reasons:
            return told.write(lock, SKIPPED, reason="; ".join(dict.fromkeys(reasons)))
        try:
            units = plan(inputs)
        except DeferredError as fault:
            return told.write(lock, FAILED, reason=f"deferred: {fault}", facts=dict(facts or {}) | {"deferred": True})
        except DataFault as fault:
            return told.write(lock, FAILED, reason=str(fault), facts=dict(facts or {}))
        if attempts > 1:  # the lock says that nobody else writes these
            remove_abandoned([record, *(path for unit in units for path in (unit.path, *unit.beside))])
        removed = remove({unit.name for unit in units}) if remove else []
        there = {unit.name: unit.there() for unit in units}
        missing = [unit for unit in units if there[unit.name] is None]
        kept = {name: found for name, found in there.items() if found is not None}
        artefacts = {name: found["fingerprint"] for name, found in kept.items()}
        failures = [failure for found in kept.values() for failure in found.get("failures", [])]
        computed, seen, facts = [], {}, dict(facts or {})
        for found in kept.values():
            facts.update(found.get("facts", {}))
        told.say(kept=sorted(kept), removed=removed)

        def finished(unit, outcome):
            made = outcome.recipe or unit.recipe
            said = {name: value for name, value in (("failures", outcome.failures), ("facts", outcome.facts)) if value}
            if outcome.table is not None:
                options = {"described": outcome.described, "group_rows": outcome.group_rows}
                write_table(unit.path, outcome.table, made | said, **options)
            elif said:
                _attach(unit.path, said)
            artefacts[unit.name] = made["fingerprint"]
            computed.append(unit.name)
            failures.extend(outcome.failures)
            facts.update(outcome.facts)
            lock.say(attempts=attempts, log=EXECUTION.log, stage=stage, done=len(artefacts), of=len(units))
            log.info("%s: %s made, %d of %d", stage, unit.name, len(computed), len(missing))

        # Workers elsewhere do not see this node's disk.
        remote = EXECUTION.cluster.get("kind") in REMOTE
        try:
            if missing:
                with (
                    open_scratch("" if remote else EXECUTION.scratch, record) as EXECUTION._private,
                    open_cluster(
                        threads=EXECUTION.threads, memory_mb=EXECUTION.memory_mb, **EXECUTION.cluster
                    ) as cluster,
                ):
                    by_name = {unit.name: unit for unit in missing}
                    cluster.run(
                        ((unit.name, _begin(unit)) for unit in missing),
                        finished=lambda name, outcome: finished(by_name[name], outcome),
                    )
                    cluster.observe()
                seen = {
                    "kind": cluster.kind,
                    "workers": cluster.workers,
                    "tasks": cluster.tasks,
                    "peak_in_flight": cluster.peak_in_flight,
                    "worker_peak_mb": cluster.worker_peak_mb,
                }
        except DataFault as fault:
            found = {"computed": sorted(computed), "failures": failures, "facts": facts}
            return told.write(lock, FAILED, reason=str(fault), **found)
        order = lambda row: tuple(str(row.get(key, "")) for key in ("well", "field", "channel", "reason"))  # noqa: E731
        return told.write(
            lock,
            DONE,
            artefacts=artefacts,
            computed=sorted(computed),
            failures=sorted(failures, key=order),
            facts=facts,
            cluster=seen,
        )


def smaller_tile(tile_px, attempts):
    """Side of a tile [px] for an attempt: halved from the third on, since the second had more memory and did not end either.

    No result depends on it.

    Examples
    --------
    >>> [smaller_tile(2048, attempt) for attempt in (1, 2, 3, 4, 9)]
    [2048, 2048, 1024, 512, 512]
    """
    least = min(tile_px, LEAST_TILE_PX)
    return max(least, tile_px >> max(0, attempts - SMALLER_FROM + 1))


def _begin(unit):
    """Work on a unit, after its old artefact is gone: what is half remade must vouch for nothing."""
    if unit.path.is_file():
        unit.path.unlink()
    return (yield from unit.work())


def _attach(path, said):
    """Add what a unit has to say to the record of an artefact that is no table, so that a later run still knows it."""
    if path.suffix == ".json":
        described = read_json(path)
        write_json(path, described | {"plateloom": described["plateloom"] | said})
    elif path.suffix == ".zarr":
        attributes = read_group(path)
        write_group(path, attributes | {"plateloom": attributes["plateloom"] | said})


def wells_of_part(kind_folder, part, parts):
    """Wells of a part that have a table in a folder."""
    return {path.stem for path in Path(kind_folder).glob("*.parquet") if part_of(path.stem, parts) == part}


def remover(folder, *, part, parts, also=None):
    """Make the `remove` of a part job: tables of wells that the plan no longer knows, and what lies beside them.

    Parameters
    ----------
    folder : path
        Folder of the wells' tables.
    part, parts : int
    also : callable(str), optional
        Removes what else belongs to a well.
    """

    def remove(names):
        gone = sorted(wells_of_part(folder, part, parts) - names)
        for well in gone:
            Path(folder, f"{well}.parquet").unlink()
            if also:
                also(well)
        return gone

    return remove


class _Told:
    """What a record says about its job, from the beginning to the end."""

    def __init__(self, stage, path, plate, part, attempts, started):
        self.path, self.started = path, started
        self.value = {
            "stage": stage,
            "plate": plate,
            "part": part,
            "attempts": attempts,
            "reason": "",
            "artefacts": {},
            "computed": [],
            "kept": [],
            "removed": [],
            "failures": [],
            "facts": {},
            "cluster": {},
        }

    def say(self, **values):
        self.value.update(values)

    def write(self, lock, status, **values):
        self.value |= values | {
            "status": status,
            "host": socket.gethostname(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(self.started)),
            "seconds": round(time.time() - self.started, 2),
            "threads": EXECUTION.threads,
            "memory_mb": peak_memory_mb(),
            "log": EXECUTION.log,
            "versions": versions(),
        }
        write_json(self.path, self.value)
        lock.say(attempts=0)
        log.info(
            "%s %s: %d made, %d kept", self.value["stage"], status, len(self.value["computed"]), len(self.value["kept"])
        )
        return self.value


def versions():
    """Versions of Python, Plateloom and what computes."""
    from plateloom import __version__

    return {"python": platform.python_version(), "plateloom": __version__} | _installed()


@cache
def _installed():
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _read_inputs(upstream):
    """Upstream records by name; a list of paths gives a list of records."""
    read = lambda path: (read_json(path) or {"status": FAILED, "reason": f"{path} is missing"}) | {"path": str(path)}  # noqa: E731
    return {
        name: [read(path) for path in found] if isinstance(found, list | tuple) else read(found)
        for name, found in upstream.items()
    }


def _not_done(found):
    """Reasons why an input, or one of a list of inputs, is not done."""
    records = found if isinstance(found, list) else [found]
    return [
        entry["reason"] if entry["status"] == SKIPPED else f"{entry.get('stage', 'upstream')} failed: {entry['reason']}"
        for entry in records
        if entry["status"] != DONE
    ]
