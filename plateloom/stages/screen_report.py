"""Everything that was found of a screen, and what its plates' pages say -> its page."""

from pathlib import Path

import numpy as np
import pandas as pd

from plateloom import profiling, report
from plateloom.classification.enrichment import count_kinds, find_enrichment
from plateloom.classification.shift import name_others
from plateloom.engine.parts import Outcome, Unit, run_job
from plateloom.errors import ConfigError, some_of
from plateloom.stages.clusters import count_clusters, read_clusters, sort_examples
from plateloom.stages.fields import count_by_well, expected_empty, known_cells, quarantined_wells
from plateloom.stages.profiling import READOUT, left_out
from plateloom.stages.report_autoencoder import describe_autoencoder
from plateloom.stages.report_classifier import describe_classifier
from plateloom.stages.report_clusters import cut_clusters, describe_clusters
from plateloom.stages.report_embeddings import list_cell_maps, make_embedding, name_components
from plateloom.stages.report_quarantine import describe_quarantined
from plateloom.stages.report_readouts import (
    by_well,
    dose_curves,
    dose_note,
    quality_note,
    quality_rows,
    readout_name,
    to_number,
    unit_of,
    with_micro,
)
from plateloom.stages.report_records import fingerprints_of, provenance_of, versions_of
from plateloom.store.layout import model_folder, plate_folder, screen_folder, well_table
from plateloom.store.provenance import digest, read_json, recipe, write_bytes
from plateloom.store.sheets import read_plate_map
from plateloom.store.tables import read_metadata, read_table, read_tables, write_table
from plateloom.wells import plate_format

SCALES = {"mad_robustize": "median and MAD", "standardize": "mean and SD", "robustize": "median and quartiles"}


def report_screen(
    *, plates, missing, settings, code, screened, reported, mapped, encoded, compared, classified, record
):
    """Write the page of the screen.

    Parameters
    ----------
    plates : list of dict
        Rows of plates.tsv of the plates that are complete.
    missing : list of str
        Plates that are not.
    settings : dict
        `report`, `channels`, and `config`, which the page shows; `quarantined`: plates that a person has taken out, with
        who, when and why, if any.
    code : str
    screened : str
        Record.
    reported : list of str
        Records of the plates' pages.
    mapped, encoded, compared, classified : list of str
        Records of the models, and of the comparison; empty where the config does not ask for the step.
    record : str
    """

    def plan(inputs):
        def work():
            classified = [
                found["plate"]
                for found in inputs["reported"]
                if found["status"] == "done" and found["facts"].get("classified")
            ]
            leave_out = settings["config"]["profiling"]["exclude_flagged"]
            clusters = read_clusters(inputs["mapped"])
            clustered = [
                found["plate"]
                for found in inputs["reported"]
                if clusters and found["status"] == "done" and found["facts"].get("clustered")
            ]
            tasks = [(count_plate, plate, leave_out) for plate in classified]
            tasks += [(count_clusters, plate, clusters["config"]["number"], leave_out) for plate in clustered]
            owners, cutting = cut_clusters(clusters["rows"] if clusters else (), clustered, settings)
            found = yield tasks + cutting
            counted, grouped = found[: len(classified)], found[len(classified) : len(tasks)]
            pictures = sort_examples(owners, found[len(tasks) :])
            made = recipe("screen_report", parameters=settings, code=code, inputs=fingerprints_of(inputs))
            path = screen_folder() / "enrichment.parquet"
            path.unlink(missing_ok=True)
            enrichment = None
            if counted:
                wells = pd.concat(counted, ignore_index=True)
                enrichment = find_enrichment(wells, list(wells.columns[wells.columns.get_loc("cells") + 1 :]))
                write_table(path, enrichment, made)
                enrichment = with_micro(enrichment)
            path = screen_folder() / "clusters.parquet"
            path.unlink(missing_ok=True)
            if grouped:
                grouped = pd.concat(grouped, ignore_index=True)
                kinds = [f"cluster {i}" for i in range(clusters["config"]["number"])]
                write_table(path, find_enrichment(grouped, kinds), made)
            for plate, why in settings.get("quarantined", {}).items():
                _write_held(plate, why, settings)
            described = _describe_screen(plates, missing, settings, inputs, enrichment, grouped, pictures)
            page = report.render_screen(described)
            write_bytes(screen_folder() / "report.html", page.encode())
            return Outcome(recipe=made, facts={"enrichment": enrichment is not None, "clusters": len(grouped) > 0})

        return [Unit("report", screen_folder() / "report.html", None, work, current=False)]

    run_job(
        "screen_report",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={
            "screened": screened,
            "reported": reported,
            "mapped": list(mapped),
            "encoded": list(encoded),
            "compared": list(compared),
            "classified": list(classified),
        },
        strict=False,
    )


def _write_held(plate, why, settings):
    """Write the page of a plate that a person has taken out: no other job works on it, and it may have a page already."""
    described = describe_quarantined(plate, "", "", settings, why, by_hand=True)
    write_bytes(plate_folder(plate) / "report.html", report.render_quarantined(described).encode())


def count_plate(plate, exclude_flagged):
    """What `count_kinds` finds in each well of a plate, with what is in it; runs in a worker."""
    classes = read_json(model_folder("classifier") / "model.json")["card"]["classes"]
    names = ["cells", "novel", *(f"class {name}" for name in classes)]
    return count_by_well(
        plate, "classes", ["Class", "Novelty"], lambda cells: count_kinds(cells, classes), names, exclude_flagged
    )


def _shift_table(rows):
    """The screen's table of controls; None where there is nothing to compare."""
    if not rows:
        return None
    return pd.DataFrame(
        [
            {
                "Metadata_Plate": row["plate"],
                "wells": row["n_wells"],
                "compared with": name_others(row),
                "AUC": to_number(row["auc"]),
                "low": to_number(row["low"]),
                "high": to_number(row["high"]),
                "shifted kinds": f"{row['n_shifted']} of {row['n_kinds']}",
                "first of all": row["shifted"][0]["feature"] if row["shifted"] else "",
                "alarm": "yes" if row["alarm"] else "not judged" if row["reason"] else "no",
                "reason": row["reason"],
            }
            for row in rows
        ]
    )


def _describe_screen(plates, missing, settings, inputs, enrichment=None, grouped=(), pictures=None):
    """What the screen's page shows."""
    good = [found["plate"] for found in inputs["reported"] if found["status"] == "done"]
    failed = left_out(inputs["reported"])
    params = profiling.Params(**settings["config"]["profiling"]["parameters"])
    readout = readout_name(params)
    wells = {plate: with_micro(read_metadata(plate_folder(plate) / "aggregates.parquet")) for plate in good}
    rows = [_plate_row(plate, wells.get(plate["plate"]), failed) for plate in plates]
    rows += [{"Metadata_Plate": plate, "status": "missing", "reason": "not complete"} for plate in missing]
    for plate, why in settings.get("quarantined", {}).items():
        rows.append({"Metadata_Plate": plate, "status": "quarantined", "reason": why, "link": _page_of(plate)})
    notices = _shared_notices(plates, wells, inputs)
    notes, maps = {}, []
    if wells:
        counted = {plate: table.assign(cells=known_cells(table)) for plate, table in wells.items()}
        maps.append(_screen_map("Cells per well", counted, "cells", unit="cells"))
        flagged = {plate: table.assign(flagged=_flagged_share(plate, table)) for plate, table in wells.items()}
        maps.append(_screen_map("Fields that QC has flagged", flagged, "flagged", unit="%", limits=(0.0, 100.0)))
    else:
        notes["heat_maps"] = "No plate is complete."
    quality, curves, hits, hits_note = None, [], None, ""
    done = inputs["screened"]["status"] == "done"
    if params.readout and done and wells:
        maps.append(_screen_map("Readout", wells, READOUT, note=readout, unit=unit_of(params)))
        parts = [quality_rows(table, readout, Metadata_Plate=plate) for plate, table in wells.items()]
        parts = [part for part in parts if part is not None]
        quality = pd.concat(parts, ignore_index=True) if parts else None
        joined = pd.concat([table for table in wells.values() if len(table)], ignore_index=True)
        curves = dose_curves(joined, readout, unit=unit_of(params), groups="Metadata_Plate")
        hits = with_micro(read_table(screen_folder() / "hits.parquet"))
        found = inputs["screened"]["facts"]["hits"]
        hits_note = report.explain_hits(
            readout,
            threshold=found["threshold"],
            min_replicates=found["min_replicates"],
            false_rate=to_number(found["false_rate"]),
            skipped=found["skipped_plates"],
            unit=unit_of(params),
        )
        hits_note += " For a spreadsheet: plateloom table . hits --out hits.csv"
        if not curves:
            notes["dose_response"] = "No treatment was given in three doses or more."
    else:
        notes["quality"] = notes["hits"] = notes["dose_response"] = (
            "No readout is configured (profiling.parameters.readout)."
            if not params.readout
            else inputs["screened"]["reason"]
            if wells
            else "No plate is complete."
        )
    well_maps = []
    if done:
        profiles = read_metadata(screen_folder() / "profiles.parquet")
        facts = inputs["screened"]["facts"]
        raw = _rawness(facts["plates"], facts["not_normalized"], params)
        method = settings["config"]["latent"]["maps"]["method"]
        # The map by PCA is the fallback of the others, and then is there already.
        reason = " ".join(filter(None, [raw, facts["map"] and f"No {method.upper()}: {facts['map']}."]))
        axes = name_components(facts["explained"])
        well_maps = [make_embedding("Wells, PCA", profiles, "Metadata_PCA_1", "Metadata_PCA_2", reason, axes)]
        if method != "pca" and not facts["map"]:
            name = method.upper()
            axes = f"{name} 1", f"{name} 2"
            well_maps.insert(
                0, make_embedding(f"Wells, {name}", profiles, "Metadata_Map_1", "Metadata_Map_2", raw, axes)
            )
    else:
        notes["well_maps"] = inputs["screened"]["reason"]
    cell_maps, notes_of_cells = list_cell_maps(wells, inputs)
    notes |= notes_of_cells
    if not wells:
        notes |= dict.fromkeys(("well_maps", "cell_maps"), "No plate is complete.")
    clusters = describe_clusters(grouped, pictures, settings, inputs, notes)
    classifier = describe_classifier(inputs["classified"], notes, settings)
    autoencoder = describe_autoencoder(inputs["encoded"], settings, notes)
    shift = _shift_table(inputs["screened"].get("facts", {}).get("shift", ()))
    if shift is None:
        notes["shift"] = "There are no negative control wells to compare." if done else inputs["screened"]["reason"]
    if enrichment is None:
        notes["enrichment"] = notes.get("classifier") or "The cells of no plate are classified."
    compared = _comparison(inputs["compared"], notes)
    records = {stage: [inputs[name]] for stage, name in (("profiles", "screened"),)}
    for stage, name in (
        ("autoencoder", "encoded"),
        ("comparison", "compared"),
        ("map", "mapped"),
        ("classifier", "classified"),
    ):
        records[stage] = inputs[name]
    pages = {f"report of {found['plate']}": [found] for found in inputs["reported"] if found["status"] == "done"}
    return report.ScreenReport(
        screen=Path.cwd().name,
        plates=pd.DataFrame(rows),
        summary={} if params.readout else {"hits": "no readout"},
        notices=tuple(notices),
        quality=quality,
        quality_note=quality_note(quality),
        shapes={plate: plate_format(list(table["Metadata_Well"])) for plate, table in wells.items()},
        heat_maps=tuple(maps),
        well_maps=tuple(well_maps),
        cell_maps=tuple(cell_maps),
        clusters=clusters,
        hits=hits,
        hits_note=hits_note,
        dose_response=tuple(curves),
        dose_note=dose_note(),
        classifier=classifier,
        autoencoder=autoencoder,
        shift=shift,
        enrichment=enrichment,
        comparison=compared,
        versions=versions_of(records | pages),
        parameters=settings["config"],
        reproduce=("plateloom check .", "plateloom run .", "plateloom status ."),
        origin={
            "config": "config.yaml in the folder of the screen; with the defaults (see Parameters) digest "
            f"{digest(settings['config'])}",
            "plates": "plates.tsv; the code, settings and results of each plate's stages stand on its own page",
        },
        stages=provenance_of(records | pages),
        notes=notes,
    )


def _comparison(records, notes):
    """What comparison.json says; None and a note where nothing is compared."""
    if not records:
        notes["comparison"] = "Switched off (comparison.enabled)."
    elif records[0]["status"] != "done":
        notes["comparison"] = records[0]["reason"]
    else:
        return read_json(screen_folder() / "comparison.json")
    return None


def _plate_row(plate, wells, failed):
    """Row of the table of plates."""
    name = plate["plate"]
    row = {"Metadata_Plate": name, "Metadata_Batch": plate["batch"], "status": "done", "reason": ""}
    if wells is None:
        row |= {"status": "quarantined", "reason": failed.get(name, "no page")}
        return row | {"link": _page_of(name) if (plate_folder(name) / "report.html").exists() else ""}
    fields = read_tables([well_table(name, "fields", well) for well in wells["Metadata_Well"]])
    number = "SourceField" if "SourceField" in fields else "Metadata_Field"
    keys = ["Metadata_Well", number]
    lost = report.list_exclusions(fields)
    lost = lost[lost["what"].isin(["failed", "unlike the plate", "hole"])]
    return row | {
        "wells": len(wells),
        "fields": len(fields[keys].drop_duplicates()),
        "failed_fields": len(lost),
        "cells": int(wells["Metadata_CellCount"].sum()),
        "link": _page_of(name),
    }


def _page_of(plate):
    """Address of a plate's page, as seen from the screen's."""
    return f"../plates/{plate}/report.html"


def _shared_notices(plates, wells, inputs):
    """What the plates' pages warn of, and controls of the plate maps that were never imaged."""
    found = [
        report.Notice(**one, plate=record["plate"], link=_page_of(record["plate"]))
        for record in inputs["reported"]
        if record["status"] == "done"
        for one in record["facts"].get("notices", [])
    ]
    for row in plates:
        plate, path = row["plate"], row["plate_map"]
        if plate not in wells or not path:
            continue
        try:
            known = read_plate_map(path)
        except (ConfigError, OSError):  # it has changed since the plate was profiled
            continue
        imaged, held = set(wells[plate]["Metadata_Well"]), quarantined_wells(plate)
        for kind in ("negative", "positive"):
            named = [well["well"] for well in known if well["control"] == kind]
            absent = [well for well in named if well not in imaged | held]
            if absent:
                text = f"{len(absent)} of {len(named)} {kind} control wells of the plate map were not imaged: {some_of(absent, 8)}."
                found.append(report.Notice(kind="controls", text=text, plate=plate, link=_page_of(plate)))
    return found


def _rawness(plates, raw, params):
    """What a map of wells has to say of how its plates are normalized."""
    if len(raw) == len(plates):
        return (
            "These are raw features, not normalized to negative controls: plates and stainings differ in them for reasons that "
            "have nothing to do with the treatments."
        )
    reference = "the negative control wells" if params.normalize_to == "negative" else "all wells"
    text = f"Features are normalized to {reference} of each plate ({SCALES[params.method]}); those that vary more count more."
    return f"{text} Only normalized plates are shown; without {', '.join(raw)}." if raw else text


def _flagged_share(plate, wells):
    """Fields of each well that QC has flagged, in any channel [%]."""
    quality = read_table(plate_folder(plate) / "qc.parquet")
    flagged = (quality["Reason"] != "") & ~expected_empty(quality, wells)
    fields = flagged.groupby([quality["Metadata_Well"], quality["SourceField"]]).any()
    return 100 * wells["Metadata_Well"].map(fields.groupby("Metadata_Well").mean())


def _screen_map(title, wells, column, note="", unit="", limits=None):
    """Plate maps of one column, side by side."""
    plates = {plate: by_well(table, column) for plate, table in wells.items() if column in table}
    scaled = [table.loc[table["Metadata_Control"] != "empty", column] for table in wells.values() if column in table]
    if limits is None and scaled:
        limits = report.scale_limits(np.concatenate(scaled))
    return report.ScreenHeatMap(title=title, plates=plates, note=note, unit=unit, limits=limits)
