"""What records say, as pages show it: which stages ran, by which code and versions, and what a page was made from."""

import pandas as pd

from plateloom.engine.parts import versions
from plateloom.store.layout import plate_folder
from plateloom.store.provenance import digest, read_json
from plateloom.store.tables import read_record

TO_PROFILES = (
    *("conversion", "assembly", "illumination", "quality", "flagging"),
    *("segmentation", "features", "profiling"),
)


def fingerprints_of(inputs):
    """Fingerprints of all artefacts of the records that a job reads, by the records' paths."""
    records = [found for entry in inputs.values() for found in (entry if isinstance(entry, list) else [entry])]
    return {found["path"]: found.get("artefacts", {}) for found in records}


def records_of(plate, stages):
    """Records of a plate's stages, in the order of their parts: stage -> list of dict, empty where there is none."""
    found = {}
    for stage in stages:
        paths = (plate_folder(plate) / "records" / stage).glob("part-*.json")
        paths = sorted(paths, key=lambda path: (len(path.name), path.name))
        records = [record for record in map(read_json, paths) if record]
        # Records of an earlier run that cut the plate into more parts may still lie there.
        found[stage] = [record for record in records if record.get("parts") == records[0].get("parts")]
    return found


def provenance_of(records):
    """What records say of code, settings and results.

    Parameters
    ----------
    records : dict of str to list of dict
        Records of each stage.

    Returns
    -------
    DataFrame
        Columns ``stage``, ``code``, ``settings``, ``result``; a row per stage that is done in all its parts.
    """
    rows = []
    for stage, found in records.items():
        done = [record for record in found if record["status"] == "done"]
        if not done or len(done) < len(found):
            continue
        artefacts = {name: made for record in done for name, made in record["artefacts"].items()}
        row = {"stage": stage}
        for key in ("code", "settings"):
            row[key] = ", ".join(dict.fromkeys(str(record.get(key, "")) for record in done))
        rows.append(row | {"result": next(iter(artefacts.values())) if len(artefacts) == 1 else digest(artefacts)})
    return pd.DataFrame(rows, columns=["stage", "code", "settings", "result"])


def versions_of(records):
    """Versions that stand in records (stage -> list of dict), by package; several where stages ran with several."""
    found = {}
    for record in (record for entries in records.values() for record in entries):
        for name, version in record.get("versions", {}).items():
            found.setdefault(name, []).append(version)
    known = versions()
    order = [name for name in known if name in found] + [name for name in found if name not in known]
    return {name: ", ".join(dict.fromkeys(found[name])) for name in order}


def origin_of(plate, source, settings):
    """Digests of what a plate's page was made from, in words."""
    made = read_record(plate_folder(plate) / "profiles.parquet") or {}
    found = {
        "config": f"config.yaml in the folder of the screen; with the defaults (see Parameters) digest {digest(settings['config'])}",
        "images": source,
        "plate map": made.get("inputs", {}).get("plate_map") and f"digest {made['inputs']['plate_map']}",
        "profiles": made.get("fingerprint") and f"fingerprint {made['fingerprint']}",
    }
    return {name: text for name, text in found.items() if text}
