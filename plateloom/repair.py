"""What is damaged in a screen's results, which stage made it, and how it is made again from its source."""

import dataclasses
import shutil
from pathlib import Path

import pyarrow as pa

from plateloom.engine.parts import artefact_record
from plateloom.store import layout
from plateloom.store import plate as store
from plateloom.store.provenance import read_json
from plateloom.store.tables import read_record, read_table
from plateloom.store.verification import check_group
from plateloom.wells import parse_well, well_name

# Datasets with a table per well, and the stage that writes them.
WELL_TABLES = {
    "fields": "conversion",
    "quality": "quality",
    "segmentation": "segmentation",
    "features": "features",
    "latent": "latent",
    "maps": "maps",
    "classes": "classes",
}


@dataclasses.dataclass(frozen=True)
class Damage:
    """Something that is not as it was made.

    Attributes
    ----------
    plate : str
    stage : str
        That makes it.
    well : str
        Empty where it belongs to the whole plate.
    file : str
        Below the plate's folder of results.
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

    @property
    def repairable(self):
        """Whether making again helps; what somebody put beside the wells is not ours to remove."""
        return not (self.stray and not self.well)


def find_damage(folder, plate, *, deep):
    """Check a plate's results against their records, digests and checksums.

    Parameters
    ----------
    folder : path
        The screen's.
    plate : str
    deep : bool
        Read every chunk and every table; else only metadata, sizes, and what is there at all.

    Returns
    -------
    list of Damage
    """
    base = Path(folder) / layout.plate_folder(plate)
    images = base / "plate.zarr"
    whole = {
        well
        for path in (base / "records/conversion").glob("part-*.json")
        for well, fingerprint in (read_json(path) or {}).get("artefacts", {}).items()
        if (artefact_record(store.well_path(images, well)) or {}).get("fingerprint") == fingerprint
    }
    found = [
        Damage(
            plate,
            *_owner(Path(problem.file).relative_to(images).parts),
            f"plate.zarr{_below(images, problem)}",
            problem.reason,
            problem.stray,
        )
        for problem in (check_group(images, deep=deep) if images.exists() else [])
    ]
    # A well that is whole and not on the plate's list is new, or none of its fields is like the plate's.
    found = [one for one in found if not (one.stray and one.well in whole and one.file.count("/") == 2)]
    flat = base / "illumination.zarr"
    if flat.exists():
        found += [
            Damage(
                plate, "illumination", "", f"illumination.zarr{_below(flat, problem)}", problem.reason, problem.stray
            )
            for problem in check_group(flat, deep=deep)
        ]
    for kind, stage in WELL_TABLES.items():
        for record in (read_json(path) or {} for path in sorted((base / "records" / stage).glob("part-*.json"))):
            for well, fingerprint in record.get("artefacts", {}).items():
                if reason := _table_damage(base / kind / f"{well}.parquet", fingerprint, deep):
                    found.append(Damage(plate, stage, well, f"{kind}/{well}.parquet", reason))
                if kind in ("fields", "segmentation"):
                    found += _other_recipe(base, plate, stage, well, fingerprint)
    return sorted(dict.fromkeys(found), key=lambda one: (one.well, one.stage, one.file))


def _below(root, problem):
    """A problem's file below a folder."""
    path = Path(problem.file).relative_to(root).as_posix()
    return "" if path == "." else f"/{path}"


def _owner(parts):
    """Stage that makes a file of a plate.zarr, and the well that it belongs to."""
    if len(parts) < 2:
        return "assembly", ""
    try:
        well = well_name(*parse_well(parts[0] + parts[1]))
    except ValueError:
        return "assembly", ""
    return ("segmentation" if "labels" in parts else "conversion"), well


def _table_damage(path, fingerprint, deep):
    """What is wrong with a table; empty if nothing is."""
    try:
        record = read_record(path)
        if record is None:
            return "is missing, or is no table of Plateloom's"
        if record.get("fingerprint") != fingerprint:
            return "was made from something else than its record says"
        if deep:
            read_table(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        return f"cannot be read: {' '.join(str(error).split())[:200]}"
    return ""


def _other_recipe(base, plate, stage, well, fingerprint):
    """Images or labels that are whole, and not those that the record speaks of."""
    folder = store.well_path(base / "plate.zarr", well)
    paths = [folder] if stage == "conversion" else sorted(folder.glob("*/labels/*"))
    for path in paths:
        try:
            record = artefact_record(path)
        except ValueError:  # damaged, and named as such already
            continue
        if path.is_dir() and record and record.get("fingerprint") != fingerprint:
            file = path.relative_to(base).as_posix()
            yield Damage(plate, stage, well, file, "was made from something else than its record says")


def remove_damaged(folder, damages):
    """Remove what is damaged, and the records that vouch for it, so that the next run makes it again, and only it.

    The caller holds the screen's lock, from before it looked.

    Parameters
    ----------
    folder : path
        The screen's.
    damages : list of Damage
    """
    for plate, stage, well in sorted({(one.plate, one.stage, one.well) for one in damages if one.repairable}):
        _remove(Path(folder) / layout.plate_folder(plate), stage, well)


def _remove(base, stage, well):
    images = base / "plate.zarr"
    for path in sorted((base / "records" / stage).glob("part-*.json")):
        vouched = (read_json(path) or {}).get("artefacts", {})
        if not well or not vouched or well in vouched:
            path.unlink()
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
        shutil.rmtree(base / "illumination.zarr", ignore_errors=True)
    for kind, owner in WELL_TABLES.items():
        if owner == stage:
            (base / kind / f"{well}.parquet").unlink(missing_ok=True)
