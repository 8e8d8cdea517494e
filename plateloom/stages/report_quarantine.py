"""What is known of a quarantined plate, for its page."""

from pathlib import Path

import pandas as pd

from plateloom import report
from plateloom.stages.report_records import TO_PROFILES, origin_of, provenance_of, records_of, versions_of
from plateloom.store import plate as store
from plateloom.store.layout import plate_folder, plate_store, well_table
from plateloom.store.tables import read_tables
from plateloom.wells import plate_format


def describe_quarantined(plate, batch, source, settings, reason, *, by_hand=False):
    """What the page of a quarantined plate shows: from the records and the tables of fields that are there.

    Parameters
    ----------
    plate, batch, source : str
    settings : dict
        Of the job that writes it.
    reason : str
    by_hand : bool
        Whether a person has taken it out.

    Returns
    -------
    QuarantineReport
    """
    folder = plate_folder(plate)
    records = records_of(plate, TO_PROFILES)
    wells = sorted(path.stem for path in (folder / "fields").glob("*.parquet"))
    fields = read_tables([well_table(plate, "fields", well) for well in wells])
    objects = read_tables([well_table(plate, "segmentation", well) for well in wells])
    accepted = ((store.read_group(plate_store(plate)) or {}).get("plateloom", {}).get("facts") or {}).get("accepted")
    converted = records["conversion"]
    note = ""
    if any(record["status"] != "done" for record in converted):
        note = "Conversion came to no end this time; what is listed was found before it stopped, or in an earlier run."
    shapes = [record.get("facts", {}).get("shape") for record in converted]
    return report.QuarantineReport(
        screen=Path.cwd().name,
        plate=plate,
        reason=reason,
        deferred=not by_hand and any(record.get("facts", {}).get("deferred") for record in converted),
        by_hand=by_hand,
        batch=batch,
        source=source,
        states=_states(records),
        exclusions=report.list_exclusions(fields, accepted=accepted, segmented=objects) if len(fields) else None,
        note=note,
        shape=next((tuple(shape) for shape in shapes if shape), None) or (plate_format(wells) if wells else None),
        failed=report.share_of_failed_fields(fields),
        versions=versions_of(records),
        parameters=settings["config"],
        origin=origin_of(plate, source, settings),
        stages=provenance_of(records),
        reproduce=("plateloom check .", "plateloom run .", "plateloom status ."),
        notes={
            "exclusions": "No file was read, so nothing is known of single fields.",
            "heat_maps": "No field is known to have failed, so there is nothing to draw.",
        },
    )


def _states(records):
    """Status of each stage over its parts, as rows of a table."""
    order = ("failed", "skipped", "done")
    rows, broken = [], ""
    for stage, found in records.items():
        worst = min(found, key=lambda record: order.index(record["status"]), default=None)
        row = {"stage": stage, "status": "missing", "reason": "not reached", "log": ""}
        if worst is not None:
            row |= {"status": worst["status"], "reason": worst["reason"], "log": worst["log"]}
        if row["status"] == "skipped" and broken and f"{broken} failed: " in row["reason"]:
            row["reason"] = f"{broken} failed"
        elif row["status"] == "failed":
            broken = stage
        rows.append(row)
    return pd.DataFrame(rows)
