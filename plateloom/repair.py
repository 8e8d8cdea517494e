"""What is damaged in a screen's results, which stage made it, and how it is made again from its source."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pyarrow as pa

from plateloom.config import read_config
from plateloom.engine.parts import artefact_record
from plateloom.errors import ConfigError, DataFault
from plateloom.planning import STAGES, Screen, nearest_stages
from plateloom.readers import load_reader
from plateloom.status import later
from plateloom.store import layout
from plateloom.store import plate as store
from plateloom.store.flatfields import SHADINGS
from plateloom.store.provenance import file_digest, read_json
from plateloom.store.tables import read_table
from plateloom.store.verification import check_group, table_fault
from plateloom.wells import parse_well, well_name

# What the record of a stage vouches for, below a plate's folder of results; `{}` is the well, where each has a file of its own.
# Images and labels of the wells lie in plate.zarr, of which assembly makes the list.
PLATE_ARTEFACTS = {
    "conversion": ("fields/{}.parquet",),
    "assembly": ("plate.zarr",),
    "illumination": ("illumination.zarr",),
    "quality": ("quality/{}.parquet",),
    "flagging": ("qc.parquet",),
    "segmentation": ("segmentation/{}.parquet",),
    "features": ("features/{}.parquet",),
    "profiling": ("aggregates.parquet", "profiles.parquet"),
    "latent": ("latent/{}.parquet",),
    "latent_profiling": ("latent_aggregates.parquet", "latent_profiles.parquet"),
    "maps": ("maps/{}.parquet",),
    "classes": ("classes/{}.parquet",),
    "report": ("report.html", "class_shares.parquet"),
}
# Likewise, below the screen's folder of results; of a model its card first, which has the digest of the file after it.
SCREEN_ARTEFACTS = {
    "training": ("models/segmenter/model.json", "models/segmenter/nuclei.safetensors"),
    "profiles": ("profiles.parquet", "wells.parquet", "dose_response.parquet", "hits.parquet"),
    "autoencoder": (
        "models/autoencoder/model.json",
        "models/autoencoder/model.safetensors",
        "models/autoencoder/examples.safetensors",
    ),
    "comparison": ("comparison.json", "retrieval.parquet", "corrected_profiles.parquet", "treatments.parquet"),
    "map": ("models/map/map.json", "models/map/map.npz"),
    "classifier": (
        "models/classifier/model.json",
        "models/classifier/model.skops",
        "models/classifier/examples.safetensors",
    ),
    "screen_report": ("report.html", "enrichment.parquet", "clusters.parquet"),
}
MISSING = "is missing"
GONE = "no source folder"
LOST = "is missing, though what was made from its results is there"
OTHER_RECIPE = "was made from something else than its record says"
HAS_IMAGES = {"done", "partial"}
# Stages that a config may leave out, and what comes next be there all the same.
OPTIONAL = {"classes", "comparison", "latent", "latent_profiling", "training"}


@dataclasses.dataclass(frozen=True)
class Damage:
    """Something that is not as it was made.

    Attributes
    ----------
    plate : str
        Empty where it belongs to the whole screen.
    stage : str
        That makes it.
    well : str
        Empty where it belongs to the whole plate.
    file : str
        Below the plate's folder of results, or the screen's.
    reason : str
    stray : bool
        Nothing is damaged, but something lies there that nobody lists.
    """

    plate: str
    stage: str
    well: str
    file: str
    reason: str
    stray: bool = False

    def __str__(self):
        return f"{self.plate or 'the screen'}{f' {self.well}' if self.well else ''} {self.stage}: {self.file}: {self.reason}"

    @property
    def repairable(self):
        """Whether making again helps; what somebody put there is not ours to remove."""
        return not self.stray


def results_folder(folder, plate):
    """Folder of a plate's results, or with an empty name of the screen's own."""
    return Path(folder) / (layout.plate_folder(plate) if plate else layout.screen_folder())


def find_damage(folder, plate, *, deep):
    """Check a plate's results, or the screen's own, against their records, digests and checksums.

    Parameters
    ----------
    folder : path
        The screen's.
    plate : str
        Empty: tables, models and page of the screen.
    deep : bool
        Read every chunk, every table and every model; else only metadata, sizes, and what is there at all.

    Returns
    -------
    list of Damage
    """
    base, found = results_folder(folder, plate), []
    vouched, after = {}, _after(folder)
    for stage, files in (PLATE_ARTEFACTS if plate else SCREEN_ARTEFACTS).items():
        records, damaged = _read_records(base, stage)
        found += [
            Damage(plate, stage, "", path.relative_to(base).as_posix(), "cannot be read: it is no record of a job")
            for path in damaged
        ]
        lost = [] if damaged else _find_lost(folder, plate, stage, records, after)
        found += [Damage(plate, stage, "", path.relative_to(base).as_posix(), LOST) for path in lost]
        vouched[stage] = {name: made for record in records for name, made in record["artefacts"].items()}
        # Without a readout the screen has no other table than its profiles.
        if stage == "profiles" and not any("hits" in record["facts"] for record in records):
            files = files[:1]
        # Without classes, or without clusters, there is nothing to count.
        if stage in ("report", "screen_report"):
            names = ("class_shares", "enrichment", "clusters")
            facts = {name for record in records for name in names if record["facts"].get(name)}
            files = ("report.html", *(file for file in files if file.removesuffix(".parquet") in facts))
        if stage == "conversion":
            found += _check_shadings(base, plate, records, deep)
        if stage == "classifier":  # a network lies in a file of another format; there may be nothing to show
            facts = records[0]["facts"] if records else {}
            own = f"{files[0].rpartition('/')[0]}/{facts['file']}" if facts.get("file") else files[1]
            files = (files[0], own, *(files[2:] if facts.get("pictures") else ()))
        for name, fingerprint in vouched[stage].items():
            well = name if "{}" in files[0] else ""
            paths = [base / file.format(name) for file in files]
            found += [
                Damage(plate, stage, well, path.relative_to(base).as_posix(), reason)
                for path, reason in _find_faults(paths, fingerprint, deep)
            ]
    if plate:
        found += _check_images(base, plate, vouched, deep)
    return sorted(dict.fromkeys(found), key=lambda one: (one.well, one.stage, one.file))


def has_records(folder, plate):
    """Whether any job has left a record of a plate, or of the screen's own results; else there is nothing to check by."""
    return any((results_folder(folder, plate) / "records").glob("*/*.json" if plate else "*.json"))


def last_made(folder):
    """The stages that a screen was run to, none where it was run whole: what was never made, no repair makes.

    Parameters
    ----------
    folder : path

    Returns
    -------
    list of str
        Names of stages that have records, and none of whose followers has.
    """
    wanted, after = Screen(read_config(folder).model_dump(mode="json"), folder).stages(), _after(folder)
    of_plates, of_screen = "results/plates/*/records/{}/*.json", "results/screen/records/{}.json"
    where = {stage: (of_screen if STAGES[stage].scope == "screen" else of_plates).format(stage) for stage in wanted}
    made = [stage for stage in wanted if any(Path(folder).glob(where[stage]))]
    if made == wanted:
        return []
    return [stage for stage in made if not any(stage in after[name] for name in made)]


def _after(folder):
    """Stages that each stage waits for: by the screen's config, or by the default one where there is none that can be read."""
    try:
        return nearest_stages(read_config(folder))
    except ConfigError:
        return {name: stage.after for name, stage in STAGES.items()}


def _find_lost(folder, plate, stage, records, after):
    """Records of a stage's jobs that are gone, though the next stage has made something of what they vouched for."""
    base = results_folder(folder, plate)
    followers = [name for name, above in after.items() if stage in above]
    if not plate:
        followed = any(any(base.glob(f"../plates/*/records/{name}/part-*.json")) for name in followers)
        lost = followed and not records and stage not in OPTIONAL
        return [base / f"records/{stage}.json"] if lost else []
    if not records and stage in OPTIONAL:
        return []
    parts = 1
    if STAGES[stage].scope == "part":
        others = (_read_records(base, name)[0] for name in PLATE_ARTEFACTS if STAGES[name].scope == "part")
        some = records or next(filter(None, others), [{}])
        parts = some[0].get("parts") or 1
    lost = sorted(set(range(parts)) - {record.get("part") or 0 for record in records})
    return [base / f"records/{stage}/part-{part}.json" for part in lost if _is_followed(folder, plate, followers, part)]


def _is_followed(folder, plate, followers, part):
    """Whether a stage has run of those that come next after a part of a plate."""
    for name in followers:
        scope = STAGES[name].scope
        if scope == "screen":
            base = results_folder(folder, "")
            profiled, _ = _read_records(base, "profiles")  # says of which plates
            found = any(plate in record["facts"].get("plates", ()) for record in profiled)
            found = found and (base / f"records/{name}.json").exists()
        else:
            number = part if scope == "part" else 0
            found = (results_folder(folder, plate) / f"records/{name}/part-{number}.json").exists()
        if found:
            return True
    return False


def _read_records(base, stage):
    """Records of a stage's jobs, and paths of those that cannot be read."""
    paths = (
        [base / f"records/{stage}.json"]
        if stage in SCREEN_ARTEFACTS
        else (base / "records" / stage).glob("part-*.json")
    )
    found = {path: _read_record(path) for path in sorted(paths) if path.exists()}
    records = [record for record in found.values() if record]
    # Records of an earlier run that cut the plate into more parts may still lie there.
    records = [record for record in records if record.get("parts") == records[0].get("parts")]
    return records, [path for path, record in found.items() if not record]


def _read_record(path):
    """A job's record; empty where the file is damaged."""
    try:
        record = json.loads(path.read_bytes())
    except ValueError:
        return {}
    whole = isinstance(record, dict) and all(isinstance(record.get(name), dict) for name in ("artefacts", "facts"))
    return record if whole else {}


def _find_faults(paths, fingerprint, deep):
    """What is wrong with the files that one entry of a record vouches for: pairs of path and reason."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    for path in paths:
        if not path.exists():
            yield path, MISSING
        elif path.suffix == ".parquet":
            if reason := table_fault(path, fingerprint, deep=deep):
                yield path, reason
        elif path.suffix == ".html":
            if not path.read_bytes().rstrip().endswith(b"</html>"):
                yield path, "ends before its end"
        elif path.suffix == ".safetensors" and path != paths[1]:  # that one has a digest
            try:
                load_file(path)
            except SafetensorError:
                yield path, "cannot be read"
        elif path.suffix in (".json", ".zarr"):
            try:
                record = artefact_record(path)
            except (ValueError, AttributeError):
                record = None
            if path.suffix == ".json" and record is None:
                yield path, "cannot be read"
            elif record is not None and record.get("fingerprint") != fingerprint:
                yield path, OTHER_RECIPE
            elif path.suffix == ".json" and deep and paths[1].exists():
                data = paths[1].read_bytes()
                if read_json(path).get("content") not in (file_digest(data), hashlib.sha256(data).hexdigest()):
                    yield paths[1], "does not match the digest in its model's card"


def _check_shadings(base, plate, records, deep):
    """Check what conversion keeps of what the source says of its light, if it says anything."""
    path = base / SHADINGS
    for fingerprint in filter(None, (record["facts"].get("shadings") for record in records)):
        for file, reason in _find_faults([path], fingerprint, deep):
            yield Damage(plate, "conversion", "", file.relative_to(base).as_posix(), reason)
        for problem in check_group(path, deep=deep) if path.exists() else []:
            file = Path(problem.file).relative_to(base).as_posix()
            yield Damage(plate, "conversion", "", file, problem.reason, problem.stray)


def _check_images(base, plate, vouched, deep):
    """Check plate.zarr and illumination.zarr, and whether the images and labels that records speak of are there."""
    images, flat = base / "plate.zarr", base / "illumination.zarr"
    whole = {
        well
        for well, fingerprint in vouched["conversion"].items()
        if (artefact_record(store.well_path(images, well)) or {}).get("fingerprint") == fingerprint
    }
    for problem in check_group(images, deep=deep) if images.exists() else []:
        path = Path(problem.file).relative_to(images)
        stage, well = _owner(path.parts)
        if not vouched["assembly"] and well not in vouched["conversion"]:
            continue  # a plate that was not assembled has no list of its wells, or that of an earlier time
        # A well that is whole and not on the plate's list is new, or none of its fields is like the plate's.
        if problem.stray and well in whole and len(path.parts) == 2:
            continue
        yield Damage(plate, stage, well, (Path("plate.zarr") / path).as_posix(), problem.reason, problem.stray)
    for problem in check_group(flat, deep=deep) if flat.exists() else []:
        file = Path(problem.file).relative_to(base).as_posix()
        yield Damage(plate, "illumination", "", file, problem.reason, problem.stray)
    for well, fingerprint in vouched["conversion"].items():
        path = store.well_path(images, well)
        if path.is_dir():
            yield from _other_recipe(base, plate, "conversion", well, [path], fingerprint)
        elif HAS_IMAGES & _fields_by_status(base / f"fields/{well}.parquet").keys():
            yield Damage(plate, "conversion", well, path.relative_to(base).as_posix(), MISSING)
    for well, fingerprint in vouched["segmentation"].items():
        path = store.well_path(images, well)
        yield from _other_recipe(base, plate, "segmentation", well, sorted(path.glob("*/labels/*")), fingerprint)
        for field in _fields_by_status(base / f"segmentation/{well}.parquet").get("done", ()):
            labels = path / str(field) / "labels"
            if labels.parent.is_dir() and store.group_version(labels) is None:
                yield Damage(plate, "segmentation", well, labels.relative_to(base).as_posix(), MISSING)


def _owner(parts):
    """Stage that makes a file of a plate.zarr, and the well that it belongs to."""
    if len(parts) < 2:
        return "assembly", ""
    try:
        well = well_name(*parse_well(parts[0] + parts[1]))
    except ValueError:
        return "assembly", ""
    return ("segmentation" if "labels" in parts else "conversion"), well


def _fields_by_status(path):
    """Fields that a well's table lists, by status; empty where it cannot be read, which is damage of its own."""
    try:
        table = read_table(path, ["Status", "Metadata_Field"])
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return {}
    return {status: sorted(set(rows["Metadata_Field"])) for status, rows in table.groupby("Status")}


def _other_recipe(base, plate, stage, well, paths, fingerprint):
    """Images or labels that are whole, and not those that the record speaks of."""
    for path in paths:
        record = artefact_record(path) if path.is_dir() else None
        if record and record.get("fingerprint") != fingerprint:
            yield Damage(plate, stage, well, path.relative_to(base).as_posix(), OTHER_RECIPE)


def find_lasting(folder, damages):
    """Find what no run of the screen would make again once it were removed, with the reason.

    Parameters
    ----------
    folder : path
        The screen's.
    damages : list of Damage

    Returns
    -------
    dict of Damage to str
    """
    settled = Screen(read_config(folder).model_dump(mode="json"), folder)
    reasons = {}
    for one in damages:
        if not one.repairable:
            reasons[one] = "no run makes it or reads it; remove it yourself"
        elif one.plate and one.plate not in settled.plates:
            reasons[one] = "the plate is not on the screen's list any more, so no run makes it again"
        elif one.plate in settled.quarantined_plates:
            reasons[one] = "the plate is quarantined by hand, so no run makes it again"
        elif one.stage not in settled.stages():
            reasons[one] = f"the screen's config.yaml switches {one.stage} off, so no run makes it again"
    images = [one for one in damages if one not in reasons and one.stage == "conversion"]
    sources = {one.plate: settled.plates[one.plate].source for one in images}
    there = {plate: _wells_of_source(folder, settled, plate) for plate in sources}
    for one in images:
        if not Path(folder, sources[one.plate]).is_dir():
            reasons[one] = f"{GONE} {sources[one.plate]!r}"
        elif one.well and one.well not in there[one.plate]:
            reasons[one] = "the source has no image of this well any more, so no run makes it again"
    return reasons


def _wells_of_source(folder, settled, plate):
    """Wells that a plate's source folder has images of; none where it cannot be read."""
    row, module = settled.plates[plate], load_reader(settled.plates[plate].reader)
    try:
        params = module.Params(**settled.settings("conversion", plate)["reader_params"])
        return {image.well for image in module.scan(Path(folder) / row.source, params).images}
    except (DataFault, OSError):
        return set()


def remove_damaged(folder, damages):
    """Remove what is damaged, and the records that vouch for it, so that the next run makes it again, and only it.

    The caller holds the screen's lock, from before it looked.

    Parameters
    ----------
    folder : path
        The screen's.
    damages : list of Damage
    """
    there = [one for one in damages if one.repairable and one.reason != LOST]
    for plate, stage, well in sorted({(one.plate, one.stage, one.well) for one in there}):
        _remove(results_folder(folder, plate), stage, well)
    for plate in {one.plate for one in there if one.file.startswith(SHADINGS.as_posix())}:
        store.remove_group(results_folder(folder, plate) / SHADINGS)
        (results_folder(folder, plate) / "records/conversion/part-0.json").unlink(missing_ok=True)


def _remove(base, stage, well):
    images = base / "plate.zarr"
    if stage in SCREEN_ARTEFACTS:
        (base / f"records/{stage}.json").unlink(missing_ok=True)
    for path in sorted((base / "records" / stage).glob("part-*.json")):
        record = _read_record(path)
        vouched, done = record.get("artefacts", {}), record.get("status") == "done"
        if not vouched or well in vouched or (not well and (not done or stage not in ("conversion", "segmentation"))):
            path.unlink()
    if stage in ("conversion", "segmentation") and not well:
        return  # a record alone: the run writes it again, and keeps the wells that are whole
    if stage == "conversion":
        store.remove_well(images, well)
        (base / ".sources" / f"{well}.json").unlink(missing_ok=True)
    elif stage == "segmentation":
        for labels in store.well_path(images, well).glob("*/labels"):
            store.remove_group(labels)
    elif stage == "assembly":
        for name in ("zarr.json", ".zattrs", ".zgroup"):
            (images / name).unlink(missing_ok=True)
    elif stage == "illumination":
        store.remove_group(base / "illumination.zarr")
    for file in (PLATE_ARTEFACTS | SCREEN_ARTEFACTS)[stage]:
        if not file.endswith(".zarr"):
            (base / file.format(well)).unlink(missing_ok=True)


def list_made(folder, plates, *, wells=(), first=None, shared=True):
    """List what records vouch for from a stage on, to be made again.

    Parameters
    ----------
    folder : path
        The screen's.
    plates : list of str
    wells : list of str, optional
        Only what belongs to these alone; what is made of all wells of a plate follows by itself. Default: everything.
    first : str, optional
        The first stage; default: all.
    shared : bool
        Whether models and tables of the screen are to be made again as well.

    Returns
    -------
    list of Damage
        One per result, the well empty where it belongs to the whole plate, the plate where to the screen.
    """
    asked = "asked for" if first is None else f"asked for, from {first} on"
    wanted = set(STAGES) if first is None else {first} | later(first, _after(folder))
    found = []
    for plate in [*plates, *([""] if shared else [])]:
        for stage, files in (PLATE_ARTEFACTS if plate else SCREEN_ARTEFACTS).items():
            of_wells = "{}" in files[0]
            if stage not in wanted or (wells and not of_wells):
                continue
            records, _ = _read_records(results_folder(folder, plate), stage)
            for name in sorted({name for record in records for name in record["artefacts"]}):
                if not wells or name in wells:
                    found.append(Damage(plate, stage, name if of_wells else "", files[0].format(name), asked))
    return found


def list_failed(folder, plates, *, wells=(), first=None):
    """List what has failed by its records: whole plates that are quarantined, and wells of which something cannot be used.

    Parameters
    ----------
    folder, plates, wells, first
        As of `list_made`.

    Returns
    -------
    list of Damage
    """
    wanted = set(STAGES) if first is None else {first} | later(first, _after(folder))
    found = []
    for plate in [*plates, ""]:
        for stage, files in (PLATE_ARTEFACTS if plate else SCREEN_ARTEFACTS).items():
            if stage not in wanted:
                continue
            for record in _read_records(results_folder(folder, plate), stage)[0]:
                if record.get("status") in ("failed", "skipped") and not wells:
                    found.append(Damage(plate, stage, "", "record", record.get("reason") or record["status"]))
                for failure in record.get("failures", ()):
                    well = failure.get("well", "")
                    if well and "{}" in files[0] and (not wells or well in wells):
                        reason = f"a field failed: {failure.get('reason', '')}"
                        found.append(Damage(plate, stage, well, files[0].format(well), reason))
    return list(dict.fromkeys(found))


def find_left(folder, damages):
    """Look again after the run that was to make damaged results again.

    Parameters
    ----------
    folder : path
        The screen's.
    damages : list of Damage
        What was found before, and was removed where it could be made again.

    Returns
    -------
    list of Damage
        What no record vouches for again, and what is damaged still, by metadata and sizes.
    """
    left = [one for plate in {one.plate: None for one in damages} for one in find_damage(folder, plate, deep=False)]
    for one in damages:
        records, _ = _read_records(results_folder(folder, one.plate), one.stage)
        made = {name for record in records for name in record["artefacts"]}
        if one.repairable and not (one.well in made if one.well else made):
            left.append(dataclasses.replace(one, reason="was not made again"))
    return list(dict.fromkeys(left))
