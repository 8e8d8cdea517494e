"""What a finished screen hands on, put together in one folder."""

import contextlib
import dataclasses
import datetime
import errno
import logging
import os
import shlex
import shutil
from importlib import metadata
from pathlib import Path

import yaml

from plateloom import __version__, acceptances, quarantines
from plateloom.config import read_config
from plateloom.driver import LOCK
from plateloom.engine import locks
from plateloom.engine.parts import versions
from plateloom.errors import ConfigError, CorruptStoreError, LockedError, did_you_mean
from plateloom.export import copies, fractal
from plateloom.export.crate import SHEET, Crate, Run, ref
from plateloom.export.redaction import Redaction, write_sheet
from plateloom.planning import STAGES, Screen
from plateloom.repair import PLATE_ARTEFACTS, SCREEN_ARTEFACTS, find_damage, results_folder
from plateloom.store import corrections
from plateloom.store.layout import plate_folder, plate_store, screen_folder
from plateloom.store.plate import (
    describe_image,
    field_path,
    group_version,
    list_labels,
    open_array,
    read_group,
    write_group,
)
from plateloom.store.provenance import digest, read_json, write_bytes, write_json
from plateloom.store.sheets import read_plate_map, read_sheet
from plateloom.store.verification import check_chunks, check_group, table_fault

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
IN_PLATE = {"conversion", "segmentation"}  # whose images and labels of the wells lie in plate.zarr
PER_CELL = "one row per cell; one file per well"
PER_FIELD = "one row per field and channel; one file per well"
# Tables of a plate in its folder of results, in the order in which they are made.
TABLES = {
    "fields": f"Fields: source file, status, reason; {PER_FIELD}.",
    "quality": f"Quality of the images: focus, saturation, intensity; {PER_FIELD}.",
    "qc.parquet": "Quality of the images with flags; one row per field and channel.",
    "segmentation": "Number of cells, status; one row per field; one file per well.",
    "features": "Features of cells by CellProfiler's names: lengths in pixels, angles in degrees, intensities as fractions of "
    f"the largest value of the pixel type; {PER_CELL}.",
    "aggregates.parquet": "Features of the wells' cells, summed up; one row per well.",
    "profiles.parquet": "Profiles, normalized to the controls; one row per well.",
    "latent": f"Latent features of cells, by the autoencoder; {PER_CELL}.",
    "latent_aggregates.parquet": "Latent features of the wells' cells, summed up; one row per well.",
    "latent_profiles.parquet": "Profiles of latent features, normalized to the controls; one row per well.",
    "maps": f"Place of cells on the map, principal components, and cluster (-1: none); {PER_CELL}.",
    "classes": f"Class of cells, probabilities, novelty; {PER_CELL}.",
    "class_shares.parquet": "Shares of classes with 95 % intervals that hold the classifier's errors; one row per well and class.",
}
SCREEN_TABLES = {
    "profiles.parquet": "Profiles of all plates, selected features; one row per well.",
    "wells.parquet": "Wells of all plates: treatment, number of cells, readout; one row per well.",
    "hits.parquet": "Hits; one row per treatment and dose.",
    "dose_response.parquet": "Dose responses; one row per treatment.",
}
COMPARISON_TABLES = {
    "corrected_profiles.parquet": "Profiles of features and of latent features, sphered by the negative controls where these suffice; "
    "one row per well.",
    "treatments.parquet": "The same, summed up; one row per treatment and dose.",
    "retrieval.parquet": "How well the wells of a treatment find each other; one row per treatment, dose, space and correction.",
}
REPORT_TABLES = {
    "enrichment.parquet": "Shares of novel cells and of classes, against negative controls; one row per treatment, dose and kind.",
    "clusters.parquet": "Shares of clusters of cells, against negative controls; one row per treatment, dose and cluster.",
}
# What people have decided, by the module that knows the table.
LEDGERS = {
    quarantines: "Plates and wells that people have taken out of all results, and put back: who, when, why.",
    acceptances: "Results of earlier code that people have kept though the code had changed: who, when, why.",
}
# What each stage is made from: names below a plate's folder, or the screen's; with some settings also `MADE_ALSO_FROM`
# (see `made_from`). What it makes: `made_by`.
MADE_FROM = {
    "training": "",
    "conversion": "source",
    "assembly": "fields",
    "illumination": "plate.zarr",
    "quality": "plate.zarr",
    "flagging": "quality",
    "segmentation": "plate.zarr illumination.zarr corrections screen/models/segmenter",
    "features": "plate.zarr segmentation illumination.zarr",
    "profiling": "features qc.parquet plate_map.tsv",
    "profiles": "profiles.parquet aggregates.parquet",
    "autoencoder": "plate.zarr segmentation illumination.zarr qc.parquet",
    "latent": "plate.zarr segmentation illumination.zarr screen/models/autoencoder",
    "latent_profiling": "latent aggregates.parquet qc.parquet",
    "comparison": "screen/profiles.parquet aggregates.parquet latent_aggregates.parquet latent_profiles.parquet",
    "map": "features qc.parquet",
    "maps": "features screen/models/map",
    "classifier": "features qc.parquet profiles.parquet labels.tsv",
    "classes": "features screen/models/classifier",
    "report": "plate.zarr qc.parquet profiles.parquet latent maps classes",
    "screen_report": "report.html " + " ".join(f"screen/{name}" for name in SCREEN_TABLES | COMPARISON_TABLES),
}
# What a map or a classifier is made from besides the tables of features, which say which cells there are, by its `inputs`.
MADE_ALSO_FROM = {"features": "", "latent": "latent", "crops": "plate.zarr illumination.zarr"}


def export_screen(folder, out, *, plates=(), tables=True, link=None, license="", incomplete=False, say=log.info):
    """Hand a finished screen on, or some of its plates, as one folder.

    Parameters
    ----------
    folder : path
        The screen's.
    out : path
        The folder to be made; it is there whole, or not at all.
    plates : sequence of str
        Plates to take; all where none is named. Without all of them what speaks of the whole screen is left out: its
        tables and its page, not its models.
    tables : bool
        Add tables of ngio and Fractal to the plates.
    link : bool or None
        How pixels are taken over, see `copies.choose_way`.
    license : str
        URL of the license.
    incomplete : bool
        Take what is there of a screen that is not finished.
    say : callable(str)
        Is told of each plate, and of what was left out.

    Raises
    ------
    ConfigError
        If the screen is not finished, a plate is unknown, `out` is there or in the screen, or ngio is missing.
    LockedError
        If a run works on the screen.
    CorruptStoreError
        If something that a record vouches for is missing, or is not what was written.
    OSError
        If the disk is full: the message says what was needed, and nothing is left behind.
    """
    given, folder, out = folder, Path(folder).resolve(), Path(os.path.abspath(out))
    _refuse_place(folder, out)
    screen = Screen(read_config(folder).model_dump(mode="json"), folder)
    chosen = _choose_plates(screen, plates)
    if tables:
        fractal.require_ngio()
    with _undisturbed(folder):
        unfinished = find_unfinished(screen, chosen)
        if unfinished and not incomplete:
            shown = "\n".join(f"  {line}" for line in unfinished)
            raise ConfigError(
                f"the screen is not finished:\n{shown}\n`plateloom run {shlex.quote(str(given))}` finishes it; --incomplete "
                "exports what is there"
            )
        for line in unfinished:
            say(f"not finished: {line}")
        for plate, why in screen.quarantined_plates.items() if not plates else ():
            say(f"{plate}: left out, quarantined {why}")
        if not incomplete:
            _refuse_damaged(screen, chosen)
        ways = _choose_ways(screen, chosen, out, link)
        try:
            with copies.whole_or_not_at_all(out) as partial:
                taken = _Export(screen, ways, partial, tables, license, incomplete, say)
                taken.write()
        except OSError as error:
            if error.errno not in FULL:
                raise
            needed = _needed(screen, ways) / 1e6
            reason = f"{error.strerror}: about {needed:.0f} MB were needed; nothing was left behind"
            raise OSError(error.errno, reason, str(out)) from error
    return taken


def _refuse_place(folder, out):
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{str(out)!r} is there already; choose another folder")
    if Path(os.path.realpath(out)).is_relative_to(folder):
        raise ConfigError(f"{str(out)!r} lies in the screen's own folder; choose one outside of it")
    if not out.parent.is_dir():
        raise ConfigError(f"no folder {str(out.parent)!r} to make {out.name!r} in")


def _choose_plates(screen, names):
    unknown = [name for name in names if name not in screen.plates]
    if unknown:
        raise ConfigError(
            [
                f"--plate: no plate {name!r}.{did_you_mean(name, screen.plates)} Plates: {', '.join(screen.plates)}"
                for name in unknown
            ]
        )
    held = screen.quarantined_plates
    if out := [f"--plate: {name!r} is quarantined {held[name]}" for name in names if name in held]:
        raise ConfigError(out)
    chosen = [name for name in screen.plates if name in names or (not names and name not in held)]
    if clash := [name for name in chosen if f"{name}.zarr" in chosen]:
        raise ConfigError(
            f"the images of {clash[0]!r} and the tables of '{clash[0]}.zarr' would share a folder; export one"
        )
    return chosen


@contextlib.contextmanager
def _undisturbed(folder):
    """Hold the screen's lock, so that no run changes what is being read; nobody can run in a folder that is read-only."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.hold(folder / LOCK, wait=False))
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
        yield


def find_unfinished(screen, plates):
    """Say what is missing of a screen, one line per plate and one for the screen; empty where it is finished.

    A data fault is a result: a plate that failed is finished. Changed code is not told: the records say which made what.
    Without all plates, of the screen's stages only those count that make models.

    Raises
    ------
    LockedError
        If a job is at work.
    """
    lines, whole = [], is_whole(screen, plates)
    for plate in [*plates, None]:
        found = {}
        for stage in screen.stages():
            if (STAGES[stage].scope == "screen") != (plate is None) or not (whole or plate or makes_model(stage)):
                continue
            if state := _unfinished(screen, stage, plate):
                found.setdefault(state, []).append(stage)
        if found:
            told = "; ".join(f"{', '.join(stages)} {state}" for state, stages in found.items())
            lines.append(f"{plate or 'the screen'}: {told}")
    return lines


def is_whole(screen, plates):
    """Whether these are all plates of a screen that nobody has taken out."""
    return set(plates) >= screen.plates.keys() - screen.quarantined_plates.keys()


def _refuse_damaged(screen, plates):
    """Refuse what records vouch for and is not there or not whole; chunks and pages are checked when they are taken."""
    whole = is_whole(screen, plates)
    found = [
        one
        for plate in [*plates, ""]
        for one in find_damage(screen.folder, plate, deep=not plate)
        if not one.stray and one.stage in screen.stages() and (plate or whole or makes_model(one.stage))
        if not one.file.startswith(".")  # what conversion keeps of the source is not exported
    ]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise CorruptStoreError(results_folder(screen.folder, found[0].plate) / found[0].file, found[0].reason + more)


def makes_model(stage):
    """Whether a stage of the screen makes a model, which tables of single plates are made with."""
    return made_by(stage).startswith("screen/models/")


def made_from(stage, config):
    """Names of what a stage is made from with a config, as in `MADE_FROM`."""
    more = ""
    if stage in ("map", "maps"):
        more = MADE_ALSO_FROM[config.latent.maps.inputs]
    elif stage in ("classifier", "classes"):
        more = MADE_ALSO_FROM[config.classification.inputs]
    elif stage in ("profiling", "latent_profiling") and config.profiling.exclude_badly_restored:
        more = "latent screen/models/autoencoder"
    return " ".join(dict.fromkeys(f"{MADE_FROM[stage]} {more}".split()))


def made_by(stage):
    """Names of what a stage makes, as in `MADE_FROM`: tables of the wells and models by their folders."""
    if stage in SCREEN_ARTEFACTS:
        files = [f"screen/{file}" for file in SCREEN_ARTEFACTS[stage]]
    else:
        files = [*["plate.zarr"] * (stage in IN_PLATE), *PLATE_ARTEFACTS[stage]]
    folders = [file.rpartition("/")[0] if "{}" in file or "models/" in file else file for file in files]
    return " ".join(dict.fromkeys(folders))


def _unfinished(screen, stage, plate):
    """What keeps a stage from being finished, in a word or two; empty where nothing does."""
    paths = [screen.folder / path for path in screen.records(stage, plate)]
    for path in paths:
        lock = path.with_name(f".{path.stem}.lock")
        if lock.exists() and locks.is_held(lock):
            raise LockedError(f"{stage} of {plate or 'the screen'} is at work: {locks.describe(locks.read(lock))}")
    records = [read_json(path) for path in paths]
    if None in records:
        return "missing"
    if any(record.get("facts", {}).get("deferred") for record in records):
        return "put off, since files were still on their way"
    if STAGES[stage].scope == "part" and any(record.get("parts") != screen.config.parts for record in records):
        return "cut into another number of parts"
    wanted = digest(screen.recorded_settings(stage, plate))
    return "made with other settings" if any(record.get("settings") != wanted for record in records) else ""


def _choose_ways(screen, plates, out, link):
    """How the pixels of each plate are taken over, since plates may lie on several disks; refused where there is no room."""
    ways = {}
    for plate in plates:
        samples = [screen.folder / plate_store(plate) / name for name in ("zarr.json", ".zattrs")]
        sample = next((path for path in samples if path.exists()), screen.folder / "config.yaml")
        ways[plate] = copies.choose_way(sample, out.parent, link)
    if copies.COPY in ways.values():
        needed, free = _needed(screen, ways), shutil.disk_usage(out.parent).free
        if needed > free:
            reason = (
                f"{os.strerror(errno.ENOSPC)}: about {needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free"
            )
            raise OSError(errno.ENOSPC, f"{reason}; nothing was written", str(out))
    return ways


def _needed(screen, ways):
    """Bytes that an export takes, tables of ngio not counted."""
    folders = [screen.folder / plate_folder(plate) for plate in ways] + [screen.folder / screen_folder()]
    shared = [screen.folder / plate_store(plate) for plate, way in ways.items() if way != copies.COPY]
    return sum(map(copies.measure_tree, folders)) - sum(map(copies.measure_tree, shared))


@dataclasses.dataclass
class _Export:
    """An export under way; `things` are references to what was described, by plate and name."""

    screen: Screen
    ways: dict
    root: Path
    tables: bool
    license: str
    incomplete: bool
    say: object
    things: dict = dataclasses.field(default_factory=dict)
    size: int = 0

    def __post_init__(self):
        self.folder, self.begun, self.plates = self.screen.folder, datetime.datetime.now(), list(self.ways)
        self.whole = is_whole(self.screen, self.plates)
        self.redaction = Redaction(self.folder, [self.screen.plates[plate].source for plate in self.screen.plates])
        self.channels = list(self.screen.config.channels)
        self.runs = {
            (stage, plate): run
            for stage in self.screen.stages()
            for plate in ([None] if STAGES[stage].scope == "screen" else self.plates)
            if (run := self._read_run(stage, plate))
        }
        some = "" if self.whole else f" {len(self.plates)} of the {len(self.screen.plates)} plates of"
        self.crate = Crate(
            self.root,
            name=self.folder.name,
            description=f"Results of{some} a high-content screen: {', '.join(self.plates)}. Images and label images as OME-Zarr, "
            "tables as parquet, reports, models, settings, and the record of every stage.",
            license=self.license,
            now=self.begun,
        )

    def write(self):
        """Write everything; the crate last."""
        self._write_lists()
        self._write_screen()
        for plate in self.plates:
            self._write_plate(plate)
        self._describe_runs()
        self.crate.write()

    def _read_run(self, stage, plate):
        """What the records say of a stage; None where there is none."""
        records = [read_json(self.folder / path) for path in self.screen.records(stage, plate)]
        records = [self.redaction.record(record) for record in records if record]
        if not records:
            return None
        settings = self.screen.recorded_settings(stage, plate)
        known = all(record.get("settings") == digest(settings) for record in records)
        shown = {"report": settings["report"]} if STAGES[stage].script.startswith("report") else settings
        return Run(stage, plate, records, self.redaction.setting(shown) if known else None)

    def _settings(self):
        """The whole config, without what only this site needs, and with paths that hold in the export."""
        config = self.screen.config.model_dump(mode="json", exclude={"engine", "complete_only"})
        config["plates"] = "plates.tsv"
        if config["classification"]["labels"] not in ("", "controls"):
            config["classification"]["labels"] = "labels.tsv"
        return self.redaction.setting(config)

    def _write_lists(self):
        """Settings, plates and labels."""
        head = "# Every setting of the screen that can change a result, defaults included.\n"
        text = yaml.safe_dump(self._settings(), sort_keys=False, allow_unicode=True)
        write_bytes(self.root / "config.yaml", (head + text).encode())
        self.things[None, "config.yaml"] = self.crate.add_file(
            "config.yaml", "Settings of the screen.", "application/yaml"
        )
        rows = []
        for plate in self.plates:
            row = dataclasses.asdict(self.screen.plates[plate])
            of_map = f"plates/{plate}/plate_map.tsv" if row["plate_map"] else ""
            rows.append(row | {"source": Path(row["source"]).name, "plate_map": of_map})
        write_sheet(self.root / "plates.tsv", ["plate", "source", "reader", "plate_map", "batch"], rows)
        self.crate.add_file("plates.tsv", "The plates: source folder, reader, plate map, batch.", SHEET)
        for module, told in LEDGERS.items():
            if not (self.folder / module.TABLE).is_file():
                continue
            found = [row for _, row in read_sheet(self.folder / module.TABLE, set(), set(module.COLUMNS))[0]]
            chosen = [row for row in found if self.whole or row.get("plate", self.plates[0]) in self.plates]
            rows = [row | {"reason": self.redaction.sentence(row.get("reason", ""))} for row in chosen]
            write_sheet(self.root / module.TABLE, module.COLUMNS, rows)
            self.things[None, module.TABLE] = self.crate.add_file(module.TABLE, told, SHEET)
        labels = self.screen.config.classification.labels
        if labels not in ("", "controls") and (self.folder / labels).is_file():
            sheet = read_sheet(self.folder / labels, {"plate", "well", "class"}, None, usual=("field", "object"))
            found = [row for _, row in sheet[0]]
            columns = list(dict.fromkeys(name for row in found for name in row))
            chosen = [row for row in found if row.get("plate") in self.plates]
            people = list(dict.fromkeys(row["who"] for row in chosen if row.get("who")))
            hidden = [
                row | {"who": f"person {people.index(row['who']) + 1}"} if row.get("who") else row for row in chosen
            ]
            write_sheet(self.root / "labels.tsv", columns, hidden)
            self.things[None, "labels.tsv"] = self.crate.add_file(
                "labels.tsv", "Labels that the classifier learned from.", SHEET
            )

    def _write_screen(self):
        """What all plates share: models, and of a whole screen tables and page."""
        source, target = self.folder / screen_folder(), self.root / "screen"
        if not source.is_dir():
            return
        target.mkdir()
        within = self.crate.add_folder("screen", "What all plates of the screen share.")
        for model in sorted(path for path in (source / "models").glob("[!.]*") if path.is_dir()):
            size = copies.take_tree(model, target / "models" / model.name, copies.COPY)
            self.size += size
            told = f"Model: {model.name}, weights and the record of how it was made."
            self.things[None, f"screen/models/{model.name}"] = self.crate.add_folder(
                f"screen/models/{model.name}", told, size=size, within=within
            )
        if self.whole:
            for name, told in (SCREEN_TABLES | COMPARISON_TABLES | REPORT_TABLES).items():
                kind = f"screen-{Path(name).stem}"
                self._take_table(source / name, f"screen/{name}", kind, told, within, copies.COPY)
            self._take_page(source / "report.html", "screen/report.html", "The page of the screen.", within)
        else:
            self.say("the screen's tables and page are left out, since they speak of plates that are not taken")
        stages = [stage for stage, plate in self.runs if plate is None and (self.whole or makes_model(stage))]
        self._write_records("screen/records", [self.runs[stage, None] for stage in stages], within)

    def _write_plate(self, plate):
        """One plate: images, tables, page, map and records."""
        source = self.folder / plate_folder(plate)
        (self.root / "plates" / plate).mkdir(parents=True)
        row = self.screen.plates[plate]
        runs = {stage: run for (stage, of), run in self.runs.items() if of in (plate, None)}
        listings = runs["conversion"].listings if "conversion" in runs else []
        name = Path(row.source).name
        self.things[plate, "source"] = self.crate.add_source(plate, name, row.reader, listings)
        within = self.crate.add_folder(f"plates/{plate}", f"Tables, page, plate map and records of the plate {plate}.")
        rows = self._write_map(plate, within)
        for name, told in TABLES.items():
            kind = Path(name).stem
            self._take_table(source / name, f"plates/{plate}/{name}", kind, told, within, self.ways[plate])
        self._take_page(
            source / "report.html", f"plates/{plate}/report.html", f"The page of the plate {plate}.", within
        )
        if group_version(source / "illumination.zarr"):
            check_chunks(source / "illumination.zarr", read_group(source / "illumination.zarr"))
            size = copies.take_tree(
                source / "illumination.zarr", self.root / f"plates/{plate}/illumination.zarr", self.ways[plate]
            )
            self.size += size
            self.things[plate, "illumination.zarr"] = self.crate.add_folder(
                f"plates/{plate}/illumination.zarr", "Flat-field of each channel, as Zarr.", size=size, within=within
            )
        if (corrected := self.folder / corrections.FOLDER / plate).is_dir():
            size = copies.take_tree(corrected, self.root / f"plates/{plate}/corrections", copies.COPY)
            self.size += size
            told = "Labels that a person has corrected, as TIFF: the label images hold them where `Corrected` says so."
            self.things[plate, "corrections"] = self.crate.add_folder(
                f"plates/{plate}/corrections", told, size=size, within=within
            )
        of_plate = [run for run in runs.values() if run.plate]
        self._write_records(f"plates/{plate}/records", of_plate, within)
        self._write_images(plate, rows, runs)

    def _write_map(self, plate, within):
        """The plate's map as a file of its own; returns its rows."""
        path = self.screen.plates[plate].plate_map
        if not path:
            return []
        rows = read_plate_map(self.folder / path)
        write_sheet(
            self.root / f"plates/{plate}/plate_map.tsv", list(dict.fromkeys(key for row in rows for key in row)), rows
        )
        self.things[plate, "plate_map.tsv"] = self.crate.add_file(
            f"plates/{plate}/plate_map.tsv", f"Plate map of {plate}: what is in each well.", SHEET, within=within
        )
        return rows

    def _take_table(self, source, path, kind, told, within, way):
        """Take over a parquet file, or a folder of them, without the places that their reasons name."""
        files = sorted(source.glob("[!.]*.parquet")) if source.is_dir() else [source] * source.is_file()
        if not files:
            return
        target, taken = self.root / path, []
        (target if source.is_dir() else target.parent).mkdir(parents=True, exist_ok=True)
        for file in files:
            if reason := table_fault(file, deep=True):
                raise CorruptStoreError(file, reason)
            taken.append(target / file.name if source.is_dir() else target)
            if not self.redaction.table(file, taken[-1]):
                copies.take_file(file, taken[-1], way)
            self.size += taken[-1].stat().st_size
        reference = self.crate.add_table(path, kind, told, taken, within=within, channels=self.channels)
        self._remember(path, reference)

    def _take_page(self, source, path, told, within):
        if source.is_file():
            write_bytes(self.root / path, self.redaction.page(source.read_bytes()))
            self._remember(path, self.crate.add_file(path, told, "text/html", within=within))

    def _remember(self, path, reference):
        """Keep a reference under the names of `MADE_FROM` and `made_by`."""
        first, _, rest = path.partition("/")
        plate, _, name = rest.partition("/")
        self.things[(plate, name) if first == "plates" else (None, path)] = reference

    def _write_records(self, path, runs, within):
        """The jobs' records, without what tells of the machines."""
        for run in runs:
            for number, record in enumerate(run.records):
                part = f"{run.stage}/part-{record.get('part') or number}" if run.plate else run.stage
                write_json(self.root / path / f"{part}.json", record)
        if runs:
            told = "Records of the jobs: status, reasons, artefacts with their fingerprints, versions."
            self.crate.add_folder(path, told, within=within)

    def _write_images(self, plate, rows, runs):
        """The plate's images, with map and provenance in them, so that they can be handed on alone."""
        source, target = self.folder / plate_store(plate), self.root / f"plates/{plate}.zarr"
        if not (read_group(source) or {}).get("ome", {}).get("plate"):
            made = runs.get("assembly")
            why = f"plate was not assembled{f': {made.reason}' if made and made.reason else ''}"
            self.say(
                f"{plate}: no images, since the {'list of its wells is gone' if made and made.status == 'done' else why}"
            )
            return
        copied = copies.take_plate(source.resolve(), target, self.ways[plate], incomplete=self.incomplete)
        if problems := check_group(target):
            first = problems[0]
            raise CorruptStoreError(source / os.path.relpath(first.file, target), first.reason)
        self.size += copied.size
        told = {stage: run.summary() for stage, run in runs.items() if self.whole or run.plate or makes_model(stage)}
        row = self.screen.plates[plate]
        about = {"name": plate, "batch": row.batch, "source": Path(row.source).name, "reader": row.reader}
        write_inside(target, about=about, plate_map=rows, config=self._settings(), provenance=told)
        number = 0
        if self.tables:
            features = self.root / f"plates/{plate}/features"
            number = fractal.add_tables(
                target, copied.fields, plate_map=rows, features=lambda well: features / f"{well}.parquet"
            )
        fields = sum(map(len, copied.fields.values()))
        missing = f"; not finished and left out: {', '.join(copied.left_out)}" if copied.left_out else ""
        self.say(
            f"{plate}: {len(copied.fields)} wells, {fields} fields, {number} tables; pixels as {self.ways[plate]}{missing}"
        )
        self.things[plate, "plate.zarr"] = self.crate.add_plate(
            f"plates/{plate}.zarr",
            plate,
            ngff=group_version(target),
            size=copies.measure_tree(target),
            facts=describe_plate(target, copied.fields),
        )

    def _describe_runs(self):
        """Which stage made what from what, as far as it is here."""
        for (stage, plate), run in self.runs.items():
            sources, made = (
                self._find(names, plate) for names in (made_from(stage, self.screen.config), made_by(stage))
            )
            if run.status == "skipped" or (run.status == "done" and not made):
                continue
            if run.parameters is not None:
                sources = [*sources, self.things[None, "config.yaml"]]
            self.crate.add_run(run, made_from=sources, made=made)
        used = versions() | ({"ngio": metadata.version("ngio")} if self.tables else {})
        stores = [self.things[plate, "plate.zarr"] for plate in self.plates if (plate, "plate.zarr") in self.things]
        self.crate.add_export(self.begun, used, stores, [ref("./")])

    def _find(self, names, plate):
        """References to what is here of several names; a name of plates means all of them to a stage of the screen."""
        plates = [plate] if plate else self.plates
        keys = [(of, name) for name in names.split() for of in (plates if "screen/" not in name else [None])]
        keys += [(None, name) for name in names.split() if name == "labels.tsv"]
        return [self.things[key] for key in keys if key in self.things]


def write_inside(store, *, about, plate_map, config, provenance):
    """Write what a plate should know of itself as attributes of a group `plateloom` in it; nothing that is sealed changes.

    Parameters
    ----------
    store : Path
    about : dict
        Name, batch, name of the source folder, reader.
    plate_map : list of dict
        Rows of `read_plate_map`; a dose that is NaN becomes null.
    config : dict
    provenance : dict of str to dict
        `Run.summary` by stage.
    """
    rows = [{key: None if cell != cell else cell for key, cell in row.items()} for row in plate_map]
    attributes = {"about": about, "plate_map": rows, "config": config, "provenance": provenance}
    ngff, record = group_version(store), {"stage": "export", "version": __version__}
    write_group(store / "plateloom", {"ome": {"version": ngff}, "plateloom": record} | attributes, ngff=ngff)


def describe_plate(store, fields):
    """What a plate holds, by name: values, or pairs of a value and its unit."""
    facts = {"wells": len(fields), "fields": sum(map(len, fields.values()))}
    first = next(((well, numbers[0]) for well, numbers in fields.items() if numbers), None)
    if first is None:
        return facts
    path = field_path(store, *first)
    described, attributes = describe_image(path), read_group(path)
    level = attributes["ome"]["multiscales"][0]["datasets"][0]["path"]
    return facts | {
        "channels": ", ".join(described["channels"]),
        "axes": described["axes"],
        "shape of the first image": (", ".join(map(str, described["shape"])), "px"),
        "pixel size": (described["pixel_size_um"], "micrometer"),
        "levels": described["levels"],
        "data type": str(open_array(path, attributes, level).dtype),
        "label images": ", ".join(list_labels(path)) or "none",
    }
