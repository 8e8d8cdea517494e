"""What a screen costs before anything is submitted, and what its own jobs have taken: jobs, core-hours, memory, bytes, files."""

import csv
import dataclasses
import functools
import math
import os
import re
from pathlib import Path

from plateloom.errors import DataFault
from plateloom.planning import STAGES
from plateloom.readers import load_reader
from plateloom.runs import recorded_memory
from plateloom.segmentation import BYTES_PER_VOXEL, memory_of_volume
from plateloom.store import layout
from plateloom.store.plate import Format, count_files
from plateloom.store.provenance import PACKAGE, read_json

# Core-seconds of a job, and per gigapixel that it works on (of models: per thousand cells, of the autoencoder per thousand
# cells and epoch; of what reads wells rather than pixels, OF_WELLS: per thousand wells). Measured on the simulated demo screen
# (48 fields of 3 x 512 x 512 pixels a plate, 50 cells a field) on two shared cores without a GPU: good for the order of
# magnitude. Those per thousand wells are of benchmarks/screen.py on the same cores: 40 to 100 plates of 384 wells x 1,000 features, 8,000
# cells a well.
RATES = {
    "conversion": (4, 215),
    "assembly": (0.7, 1),
    "illumination": (6, 570),
    "quality": (5, 290),
    "flagging": (0.7, 2),
    "training": (60, 0),
    "segmentation": (6, 900),
    "features": (10, 2000),
    "profiling": (38, 300),
    "profiles": (14, 1.8),
    "autoencoder": (60, 3),
    "latent": (8, 330),
    "latent_profiling": (6, 10),
    "comparison": (5, 2.6),
    "map": (8, 20),
    "maps": (6, 440),
    "classifier": (30, 4.4),
    "classes": (38, 50),
    "report": (5, 80),
    "screen_report": (1.5, 1.4),
}
OF_WELLS = ("profiling", "latent_profiling", "profiles", "comparison", "screen_report")
FROM_CROPS = {"classifier": "autoencoder", "classes": "latent"}  # whose rates a network on crops goes by: it is smaller
CELLS = 500.0  # per megapixel of one channel, at most: a dense layer at 10x; that screen has 190
# Bytes per pixel of all channels, likewise; features depend on the number of cells and channels above all.
BYTES = {"plate.zarr": 1.64, "features": 3.25, "all else": 0.25}
WELL_TABLES = {"fields": "conversion", "quality": "quality", "segmentation": "segmentation", "features": "features"}
WELL_TABLES |= {"latent": "latent", "maps": "maps", "classes": "classes"}
COMPARTMENTS = 3  # Nuclei, Cells, Cytoplasm
LEAST_JOBS = 3  # of a stage, to learn from
JOB_SECONDS = 900  # that the longest job of a stage should take
SPARE = {"memory": 1.3, "time": 2.0}  # what is asked for, as a multiple of the most that was seen
SPARE_OF_RATES = 1.5  # a job's time limit, as a multiple of what the rates above tell


@dataclasses.dataclass(frozen=True)
class PlateSize:
    """How large a plate is.

    Attributes
    ----------
    wells, fields : int
    shape : tuple of int
        Height and width of a field [px].
    channels : int
    source_bytes : int
    planes : int
        That a field keeps.
    """

    wells: int
    fields: int
    shape: tuple
    channels: int
    source_bytes: int = 0
    planes: int = 1

    @property
    def gigapixels(self):
        return 1e-9 * self.fields * self.channels * self.planes * self.shape[0] * self.shape[1]


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What one stage costs on the whole screen.

    Attributes
    ----------
    stage : str
    jobs, threads : int
    core_hours, gpu_hours : float
    memory_mb : int
        That a job asks for [MB].
    longest_s : float
        Of one job [s].
    learned : int
        Jobs of this screen that it is estimated from; 0: by the rates that Plateloom comes with.
    """

    stage: str
    jobs: int
    threads: int
    core_hours: float
    gpu_hours: float
    memory_mb: int
    longest_s: float
    learned: int


def rule_of(stage, screen=None):
    """What a stage's rule says of its job: threads, and gigabytes of memory that it asks for at first, for a screen."""
    threads, gigabytes = _texts_of_rule(stage)
    # An expression of our own rules, in which a screen's size may stand.
    return int(threads), float(eval(gigabytes, {"__builtins__": {}, "len": len, "SCREEN": screen}))


@functools.cache
def _texts_of_rule(stage):
    for path in sorted((PACKAGE.parent / "rules").glob("*.smk")):
        for body in re.split(r"^rule ", path.read_text(), flags=re.M)[1:]:
            if body.startswith(f"{STAGES[stage].script}:"):
                return re.search(r"threads: (\d+)", body)[1], re.search(
                    r"memory_for\((.+?)(?:, volumes_of.*)?\),$", body, re.M
                )[1]
    raise LookupError(f"no rule {STAGES[stage].script!r}")


def time_limit(screen, stage, plate=None, part=0, *, threads=1, least=0):
    """Time limit of a job by what is known before it begins, and by the rates that Plateloom comes with.

    Parameters
    ----------
    screen : Screen
    stage : str
    plate : str or None
    part : int
    threads : int
    least : float
        It is no shorter [min]: what a plate holds is not known before it is assembled, conversion goes by its source's bytes.

    Returns
    -------
    float
        [min].
    """
    fixed, rate = _shipped_rates(screen, stage)
    if stage == "conversion":  # a byte a pixel: as many of each as if all files were compressed by half
        work = screen.source_gb(plate, part)
    else:
        _, gigapixels, fields = screen.size(plate)
        wells = sum(map(screen.wells, [plate] if plate else screen.plates))
        work = _count_work(screen, stage, gigapixels=gigapixels, fields=fields, wells=wells, cells=math.inf)
        work /= screen.config.parts if STAGES[stage].scope == "part" else 1
    return max(least, SPARE_OF_RATES * (fixed + rate * work) / threads / 60)


def measure_plate(screen, plate):
    """Find how large a plate is, from its listing and one of its images.

    Parameters
    ----------
    screen : Screen
    plate : str

    Returns
    -------
    PlateSize

    Raises
    ------
    DataFault
        If its folder is not what its reader expects, or none of a few of its images can be decoded.
    """
    row = screen.plates[plate]
    module = load_reader(row.reader)
    params = module.Params(**screen.settings("conversion", plate)["reader_params"])
    wanted = {channel.source for channel in screen.config.channels.values()}
    source = screen.folder / row.source
    images = [image for image in module.scan(source, params).images if image.channel in wanted]
    shape, fault = None, DataFault(f"{plate}: none of its files belongs to a channel of the config")
    for image in images[:: max(1, len(images) // 5)][:5]:
        try:
            shape = module.load(source, image)[0].shape
            break
        except DataFault as error:
            fault = error
    if shape is None:
        raise fault
    files = {image.file: image.size for image in images}
    kept = screen.config.conversion.z == "keep"
    return PlateSize(
        wells=len({image.well for image in images}),
        fields=len({(image.well, image.field) for image in images}),
        shape=tuple(shape),
        channels=len(screen.config.channels),
        source_bytes=sum(files.values()),
        planes=len({image.z for image in images}) if kept else 1,
    )


def estimate_screen(screen, sizes):
    """Estimate what every stage costs.

    Parameters
    ----------
    screen : Screen
    sizes : dict of str to PlateSize

    Returns
    -------
    list of StageCost
    """
    found, cells = [], _most_cells(sizes)
    for stage in screen.stages():
        threads, gigabytes = rule_of(stage, screen)
        scope = STAGES[stage].scope
        parts = screen.config.parts if scope == "part" else 1
        fixed, rate, learned = _learn(screen, stage, sizes)
        if scope == "screen":
            works = [_work(screen, stage, sizes.values(), cells)]
        else:
            works = [_work(screen, stage, [size], cells) / parts for size in sizes.values() for _ in range(parts)]
        seconds = [fixed + rate * work for work in works]
        field_mb = max((8e-6 * size.channels * size.shape[0] * size.shape[1] for size in sizes.values()), default=0)
        if screen.has_volumes and stage in BYTES_PER_VOXEL:
            field_mb += max(
                memory_of_volume(stage, (size.planes, *size.shape), size.channels) for size in sizes.values()
            )
        found.append(
            StageCost(
                stage=stage,
                jobs=len(works),
                threads=threads,
                core_hours=sum(seconds) / 3600,
                gpu_hours=sum(seconds) / threads / 3600 * screen.gpus(stage),
                memory_mb=int(1000 * gigabytes + (threads * field_mb if scope != "screen" else 0)),
                longest_s=max(seconds, default=0) / threads,
                learned=learned,
            )
        )
    return found


def _most_cells(sizes):
    """Cells that the images of all plates hold at most."""
    return 1e-6 * CELLS * sum(size.fields * size.shape[0] * size.shape[1] for size in sizes.values())


def _work(screen, stage, sizes, cells):
    """How much a stage has to do on plates, in the unit of its rate; no model learns from more cells than there are."""
    return _count_work(
        screen,
        stage,
        gigapixels=sum(size.gigapixels for size in sizes),
        fields=sum(size.fields for size in sizes),
        wells=sum(size.wells for size in sizes),
        cells=cells,
    )


def _count_work(screen, stage, *, gigapixels, fields, wells, cells):
    latent = screen.config.latent
    if stage == "illumination" and fields:
        return gigapixels * min(1, screen.config.illumination.fields / fields)
    if stage in OF_WELLS:
        return wells / 1000
    if stage == "autoencoder":
        return min(latent.autoencoder.cells, cells) / 1000 * latent.autoencoder.parameters.get("epochs", 1)
    if stage == "map":
        return min(latent.maps.cells, cells) / 1000
    if stage == "classifier":
        chosen = screen.config.classification
        return min(chosen.cells, cells) / 1000 * (chosen.parameters["epochs"] if chosen.inputs == "crops" else 1)
    return gigapixels


def _shipped_rates(screen, stage):
    """Core-seconds of a job and per unit of its work, by the rates that Plateloom comes with."""
    return RATES[FROM_CROPS.get(stage, stage) if screen.config.classification.inputs == "crops" else stage]


def _learn(screen, stage, sizes):
    """Core-seconds of a job and per unit of work: of this screen's own jobs where there are some; and their number."""
    fixed, rate = _shipped_rates(screen, stage)
    scope, spent = STAGES[stage].scope, []
    cells = _most_cells(sizes)
    for plate in [None] if scope == "screen" else sizes:
        for record in _fresh_records(screen, stage, plate):
            work = _work(screen, stage, [sizes[plate]] if plate else sizes.values(), cells) / (record.get("parts") or 1)
            spent.append((record["seconds"] * max(1, record.get("threads", 1)), work))
    work = sum(one for _, one in spent)
    if not spent or not work:
        return fixed, rate, 0
    fixed = min(fixed, *(seconds for seconds, _ in spent))
    return fixed, max(0.0, sum(seconds for seconds, _ in spent) - fixed * len(spent)) / work, len(spent)


def count_seconds(screen, stage, records):
    """Count what jobs of a stage would take that make all of their results, by the records of those that have made them.

    A job that kept some wells of an earlier one tells of them by the others. One that kept all tells nothing: other jobs of
    the screen do, or the rates that Plateloom comes with.

    Parameters
    ----------
    screen : Screen
    stage : str
    records : list of dict

    Returns
    -------
    list of float
        [core-s], one per record.
    """
    spent = [record.get("seconds", 0) * max(1, record.get("threads", 1)) for record in records]
    if not any(record.get("kept") for record in records):
        return spent
    sizes = {plate: _converted_size(screen, plate) for plate in screen.complete_plates}
    cells = _most_cells(sizes)
    fixed, rate, _ = _learn(screen, stage, sizes)
    for i, record in enumerate(records):
        made, kept, size = len(record.get("computed", ())), len(record.get("kept", ())), sizes.get(record.get("plate"))
        if made:
            begun = min(fixed, spent[i])
            spent[i] = begun + (spent[i] - begun) * (made + kept) / made
        elif kept:
            work = _work(screen, stage, [size] if size else sizes.values(), cells) / (record.get("parts") or 1)
            spent[i] = max(spent[i], fixed + rate * work)
    return spent


def _converted_size(screen, plate):
    """How large a plate is by what conversion and assembly have recorded; no image is read."""
    converted = [read_json(screen.folder / path) or {} for path in screen.records("conversion", plate)]
    wells = sum(len(record.get("artefacts", ())) for record in converted)
    facts = (read_json(screen.folder / layout.record_path(plate, "assembly")) or {}).get("facts", {})
    height, width, *_ = facts.get("accepted") or (0, 0)
    channels, planes = len(screen.config.channels), facts.get("planes", 1)
    return PlateSize(wells, facts.get("fields", 0), (height, width), channels, planes=planes)


def _fresh_records(screen, stage, plate):
    """Records of jobs that have made all that they vouch for: others say nothing of what it costs."""
    paths = [screen.folder / path for path in screen.records(stage, plate)]
    records = [(read_json(path) or {}) | {"path": path} for path in paths]
    return [
        record
        for record in records
        if record.get("status") == "done" and record.get("computed") and not record.get("kept")
    ]


def estimate_results(screen, sizes):
    """Estimate bytes and files that a run writes.

    Parameters
    ----------
    screen : Screen
    sizes : dict of str to PlateSize

    Returns
    -------
    sizes : dict of str to float
        Bytes of ``plate.zarr``, ``features`` and ``all else``.
    files : int
    """
    pixels = 1e9 * sum(size.gigapixels for size in sizes.values())
    conversion = screen.config.conversion
    volumes = conversion.z == "keep"
    kept = Format(ngff=conversion.ngff, chunk_px=conversion.chunk_px, shard_px=None)
    files = 0
    for size in sizes.values():
        shape = (size.channels, *([size.planes] if volumes else []), *size.shape)
        files += size.fields * count_files(shape, conversion.levels, labels=COMPARTMENTS, format=kept)
        files += size.wells * (2 + sum(stage in screen.stages() for stage in WELL_TABLES.values()))
    for stage in screen.stages():
        scope = STAGES[stage].scope
        files += 4 * (1 if scope == "screen" else len(sizes) * (screen.config.parts if scope == "part" else 1))
    rates = dict(BYTES)
    for plate, size in sizes.items():  # one plate that is there tells better
        base = screen.folder / layout.plate_folder(plate)
        if size.gigapixels and _fresh_records(screen, "profiling", plate):
            rates |= {name: _tree_bytes(base / name) / (1e9 * size.gigapixels) for name in ("plate.zarr", "features")}
            break
    return {name: rate * pixels for name, rate in rates.items()}, files


def _tree_bytes(folder):
    """Bytes of all files below a folder."""
    return sum(os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names)


@dataclasses.dataclass(frozen=True)
class Observed:
    """What the jobs of a stage have taken at most.

    Attributes
    ----------
    stage : str
    jobs : int
    seconds : float
        [s].
    memory_mb : float
        Of the whole job, its workers included [MB].
    """

    stage: str
    jobs: int
    seconds: float
    memory_mb: float

    @property
    def ask(self):
        """What a job should ask for: memory [MB] and time [min]."""
        memory = 500 * math.ceil(SPARE["memory"] * self.memory_mb / 500)
        return {"mem_mb": memory, "runtime": max(10, 5 * math.ceil(SPARE["time"] * self.seconds / 60 / 5))}


def observe_screen(screen):
    """Look at what a screen's jobs have taken, by their records and Snakemake's benchmarks.

    Parameters
    ----------
    screen : Screen

    Returns
    -------
    list of Observed
        Of the stages of which any job has made all of its results.
    """
    found = []
    for stage in screen.stages():
        plates = [None] if STAGES[stage].scope == "screen" else screen.plates
        records = [record for plate in plates for record in _fresh_records(screen, stage, plate)]
        if records:
            memory = [max(_benchmark(screen, stage, record), recorded_memory(record)) for record in records]
            found.append(Observed(stage, len(records), max(r["seconds"] for r in records), max(memory)))
    return found


def _benchmark(screen, stage, record):
    """Peak memory of a job and its children by Snakemake's benchmark [MB]; 0 where there is none."""
    base = Path(screen.folder) / "benchmarks" / STAGES[stage].script
    plate, part = record.get("plate"), record.get("part") or 0
    path = base / plate / f"part-{part}.tsv" if plate else base.with_suffix(".tsv")
    try:
        rows = list(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))
        return max((float(row["max_rss"]) for row in rows), default=0.0)
    except (OSError, ValueError, KeyError):
        return 0.0


def propose_parts(screen, observed):
    """Number of parts with which the longest job of a part would take a quarter of an hour.

    Parameters
    ----------
    screen : Screen
    observed : list of Observed

    Returns
    -------
    int or None
        None where no stage tells.
    """
    longest = [one.seconds for one in observed if STAGES[one.stage].scope == "part" and one.jobs >= LEAST_JOBS]
    if not longest:
        return None
    return min(64, max(1, math.ceil(max(longest) * screen.config.parts / JOB_SECONDS)))
