"""Everything that was found -> one page per plate, and one of the screen."""

from pathlib import Path

import numpy as np
import pandas as pd

from plateloom import profiling, report
from plateloom.engine.parts import Outcome, Unit, run_job, versions
from plateloom.errors import PlateLayoutError
from plateloom.stages.illumination import read_corrected, usable_fields
from plateloom.stages.profiling import READOUT, left_out
from plateloom.stages.sampling import choose_wells, sample_rows
from plateloom.store import plate as store
from plateloom.store.layout import model_folder, plate_folder, plate_store, screen_folder, well_table
from plateloom.store.provenance import read_json, recipe, write_bytes
from plateloom.store.tables import KEYS, read_metadata, read_table, read_tables
from plateloom.wells import plate_format

MONTAGE_PX = 480
MAP_CELLS = 20_000
MAP_WELLS = 1_000
STATISTICS = {"z_prime": "Z'", "robust_z_prime": "robust Z'", "ssmd": "SSMD"}


def report_plate(
    *, plate, batch, source, settings, code, profiled, flagged, screened, mapped, classified, encoded, record
):
    """Write the page of a plate.

    Parameters
    ----------
    plate, batch, source : str
    settings : dict
        `report`, `channels`, and `config`, which the page shows.
    code : str
    profiled, flagged, screened : str
        Records.
    mapped, classified, encoded : list of str
        Records of all parts; empty where the config does not ask for the step.
    record : str
    """

    def plan(inputs):
        for name in ("profiled", "flagged"):
            if inputs[name]["status"] != "done":
                (plate_folder(plate) / "report.html").unlink(missing_ok=True)
                raise PlateLayoutError(inputs[name]["reason"])

        def work():
            yield []
            page = report.render_plate(_describe_plate(plate, batch, source, settings, inputs))
            write_bytes(plate_folder(plate) / "report.html", page.encode())
            return Outcome(recipe=recipe("report", parameters=settings, code=code, inputs=_fingerprints(inputs)))

        return [Unit("report", plate_folder(plate) / "report.html", None, work, current=False)]

    run_job(
        "report",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={
            "profiled": profiled,
            "flagged": flagged,
            "screened": screened,
            "mapped": list(mapped),
            "classified": list(classified),
            "encoded": list(encoded),
        },
        plate=plate,
        strict=False,
    )


def _fingerprints(inputs):
    """Fingerprints of all artefacts of the records read."""
    records = [found for entry in inputs.values() for found in (entry if isinstance(entry, list) else [entry])]
    return {found["path"]: found.get("artefacts", {}) for found in records}


def _describe_plate(plate, batch, source, settings, inputs):
    """What a plate's page shows."""
    folder = plate_folder(plate)
    wells = read_table(folder / "aggregates.parquet")
    names = list(wells["Metadata_Well"])
    fields = read_tables([well_table(plate, "fields", well) for well in names])
    objects = read_tables([well_table(plate, "segmentation", well) for well in names])
    quality = read_table(folder / "qc.parquet")
    params = profiling.Params(**settings["config"]["profiling"]["parameters"])
    colors = [f"#{settings['channels'][name]['color'].lstrip('#')}" for name in settings["channels"]]

    usable = set(usable_fields(plate, names))
    odd = ~pd.MultiIndex.from_frame(fields[["Metadata_Well", "Metadata_Field"]]).isin(usable)
    fields.loc[odd & (fields["Reason"] == ""), "Reason"] = "the field failed, or is not like the rest of the plate"
    fields.loc[odd, "Status"] = "failed"
    lost = fields[fields["Reason"] != ""]
    exclusions = pd.concat(
        [
            lost[["Metadata_Well", "Metadata_Field", "Channel", "Reason"]],
            objects.loc[objects["Reason"] != "", ["Metadata_Well", "Metadata_Field", "Reason"]].assign(Channel=""),
        ]
    ).rename(columns={"Channel": "channel", "Reason": "reason"})
    flagged = quality.loc[quality["Reason"] != "", ["Metadata_Well", "Metadata_Field", "Channel", "Reason"]]
    total = fields.groupby("Metadata_Well")["Metadata_Field"].nunique()
    failed = fields[fields["Status"] == "failed"].groupby("Metadata_Well")["Metadata_Field"].nunique()
    shown = wells[[name for name in wells.columns if name.startswith("Metadata_")]].assign(
        fields=wells["Metadata_Well"].map(total).fillna(0).astype(int),
        failed_fields=wells["Metadata_Well"].map(failed).fillna(0).astype(int),
        cells=wells["Metadata_CellCount"],
        Metadata_Control=wells["Metadata_Control"].replace("empty", ""),
    )
    shown["status"] = np.where((shown["fields"] > 0) & (shown["fields"] == shown["failed_fields"]), "failed", "done")
    notes = {}
    maps, curves, judged = [], [], None
    if params.readout:
        name = params.readout + (f" / {params.readout_denominator}" if params.readout_denominator else "")
        maps.append(report.HeatMap(title="Readout", values=_by_well(wells, READOUT), note=name))
        judged = _quality_rows(inputs["profiled"]["facts"].get("assay"), name)
        curves = _dose_curves(wells, name)
        if not curves:
            notes["dose_response"] = "No treatment on this plate has a Hill curve or several doses."
    else:
        notes["quality"] = notes["dose_response"] = "No readout is configured (profiling.parameters.readout)."
    fractions = _class_fractions(plate, names, inputs["classified"])
    maps += [
        report.HeatMap(title=f"Cells of class {name}", values=values, limits=(0, 1), group="Classes")
        for name, values in fractions.items()
    ]
    for metric, title in (("focus_slope", "Focus (spectrum's slope)"), ("background", "Background")):
        for channel, part in quality.groupby("Channel", sort=False):
            values = part.groupby("Metadata_Well")[metric].mean().to_dict()
            maps.append(report.HeatMap(title=f"{title}, {channel}", values=values, group="Quality"))
    cell_maps, lacking = _cell_maps({plate: wells}, inputs)
    notes |= lacking
    tiles = _montage(plate, wells, settings, colors)
    if not tiles:
        notes["montage"] = "No field was segmented."
    doses = [unit for unit in wells["Metadata_Unit"].dropna().unique() if unit]
    return report.PlateReport(
        screen=Path.cwd().name,
        plate=plate,
        shape=plate_format(names),
        wells=shown,
        batch=batch,
        source=source,
        dose_unit=doses[0] if len(doses) == 1 else "",
        summary={"fields flagged": len(flagged.drop_duplicates(["Metadata_Well", "Metadata_Field"]))},
        exclusions=exclusions,
        flagged=flagged.rename(columns={"Channel": "channel", "Reason": "reason"}),
        heat_maps=tuple(maps),
        quality=judged,
        montage=tuple(tiles),
        montage_colors=report.named_colors(["Nuclei", "Cells"]),
        dose_response=tuple(curves),
        cell_maps=tuple(cell_maps),
        versions=versions(),
        parameters={"normalization": _normalization(inputs["profiled"]["facts"]["normalization"])} | settings["config"],
        reproduce=("plateloom check .", "plateloom run ."),
        notes=notes,
    )


def _by_well(table, column):
    """Values of a column by well."""
    return dict(zip(table["Metadata_Well"], table[column].astype(float), strict=True))


def _normalization(found):
    """How a plate was normalized, in a few words."""
    if found["status"] != "normalized":
        return f"none: {found['reason']}"
    return f"{found['method']}, to {found['n_reference']} {'negative control ' if found['reference'] == 'negative' else ''}wells"


def _quality_rows(assay, readout, **keys):
    """Rows of the table of assay quality."""
    if not assay:
        return None
    rows = [
        {
            **keys,
            "readout": readout,
            "statistic": title,
            **{
                end: _number(assay[name + suffix])
                for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high"))
            },
            "negatives": assay["n_negative"],
            "positives": assay["n_positive"],
        }
        for name, title in STATISTICS.items()
    ]
    return pd.DataFrame(rows)


def _number(value):
    return float("nan") if value is None else float(value)


def _dose_curves(wells, readout, *, groups=None):
    """Dose-response charts of the treatments that have several doses."""
    treated = wells[
        wells["Metadata_Treatment"].notna() & wells["Metadata_Dose"].notna() & (wells["Metadata_Control"] == "")
    ]
    controls = {}
    for kind in ("negative", "positive"):
        values = wells.loc[wells["Metadata_Control"] == kind, READOUT].dropna()
        if len(values):
            controls[kind] = tuple(np.percentile(values, [5, 50, 95]))
    fits = profiling.dose_response(treated).set_index("Metadata_Treatment") if len(treated) else None
    curves = []
    for treatment, found in treated.groupby("Metadata_Treatment", sort=True):
        if found["Metadata_Dose"].nunique() < 3:
            continue
        if treatment not in fits.index:
            continue
        fit = fits.loc[treatment]
        hill = None
        if np.isfinite([fit["ec50"], fit["hill"], fit["bottom"], fit["top"]]).all():
            hill = report.HillCurve(
                bottom=fit["bottom"],
                top=fit["top"],
                ec50=fit["ec50"],
                slope=fit["hill"],
                ec50_low=fit["ec50_low"],
                ec50_high=fit["ec50_high"],
            )
        units = found["Metadata_Unit"].unique()
        curves.append(
            report.DoseResponse(
                treatment=treatment,
                readout=readout,
                doses=found["Metadata_Dose"].to_numpy(float),
                values=found[READOUT].to_numpy(float),
                dose_unit=units[0] if len(units) == 1 else "",
                wells=list(found["Metadata_Well"]),
                groups=None if groups is None else list(found[groups]),
                hill=hill,
                controls=controls,
            )
        )
    return curves


def _class_fractions(plate, wells, records):
    """Share of each class in each well: class -> well -> fraction."""
    if not records or any(record["status"] != "done" for record in records):
        return {}
    counts = {}
    for well in wells:
        found = read_table(well_table(plate, "classes", well), ["Class"])["Class"]
        counts[well] = found[found != ""].value_counts()
    table = pd.DataFrame(counts).T.fillna(0)
    shares = table.div(table.sum(axis=1).where(lambda total: total > 0), axis=0)
    return {name: shares[name].to_dict() for name in sorted(shares)}


def _montage(plate, wells, settings, colors):
    """Pictures of some wells with the outlines of nuclei and cells."""
    names = settings["report"]["composite"] or list(settings["channels"])[:3]
    order = list(settings["channels"])
    pictures = []
    for _, well in _wells_to_show(wells, settings["report"]["montage_wells"]).iterrows():
        name = well["Metadata_Well"]
        for _, field in usable_fields(plate, [name]):
            path = store.field_path(plate_store(plate), name, field)
            if store.read_group(path / "labels") is None:
                continue
            shape = store.image_shape(path)[1:]
            window = tuple(slice(max(0, (size - MONTAGE_PX) // 2), (size + MONTAGE_PX) // 2) for size in shape)
            labels = {kind: store.read_labels(path, kind, window=window) for kind in ("Nuclei", "Cells")}
            pictures.append((well, field, _pixels(plate, name, field, names, window), labels))
            break
    if not pictures:
        return []
    windows = [tuple(np.percentile([image[i] for *_, image, _ in pictures], [1, 99.7])) for i in range(len(names))]
    used = [colors[order.index(name)] for name in names]
    return [
        report.Tile(
            well=well["Metadata_Well"],
            picture=report.composite_image(image, used, windows),
            outlines=report.outline_layer(labels),
            treatment=well["Metadata_Treatment"] or "",
            dose=float(well["Metadata_Dose"]),
            cells=int(well["Metadata_CellCount"]),
            control=well["Metadata_Control"].replace("empty", ""),
            caption=f"field {field}",
        )
        for well, field, image, labels in pictures
    ]


def _pixels(plate, well, field, channels, window):
    """Corrected pixels of a window; a channel that the field lacks is black."""
    flatfield = store.read_group(plate_folder(plate) / "illumination.zarr")["plateloom"]["fingerprint"]
    return read_corrected(plate, well, field, flatfield, channels=channels, window=window)


def _wells_to_show(wells, count):
    """Controls, then the highest dose of each treatment, then others by hash; in the order of the plate."""
    found = wells.assign(order=range(len(wells)))
    first = [found[found["Metadata_Control"] == kind].head(2) for kind in ("negative", "positive")]
    treated = found[found["Metadata_Treatment"].notna() & (found["Metadata_Control"] == "")]
    first.append(
        treated.sort_values("Metadata_Dose", ascending=False, kind="stable").drop_duplicates("Metadata_Treatment")
    )
    rest = [well for _, well in choose_wells([("", well) for well in found["Metadata_Well"]], len(found))]
    first.append(found.set_index("Metadata_Well", drop=False).loc[rest])
    chosen = pd.concat(first).drop_duplicates("Metadata_Well").head(count)
    return chosen.sort_values("order", kind="stable").drop(columns="order")


def report_screen(*, plates, missing, settings, code, screened, reported, mapped, encoded, classified, record):
    """Write the page of the screen.

    Parameters
    ----------
    plates : list of dict
        Rows of plates.tsv of the plates that are complete.
    missing : list of str
        Plates that are not.
    settings : dict
        `report`, `channels`, and `config`, which the page shows.
    code : str
    screened : str
        Record.
    reported : list of str
        Records of the plates' pages.
    mapped, encoded, classified : list of str
        Records of the models; empty where the config does not ask for the step.
    record : str
    """

    def plan(inputs):
        def work():
            yield []
            page = report.render_screen(_describe_screen(plates, missing, settings, inputs))
            write_bytes(screen_folder() / "report.html", page.encode())
            return Outcome(recipe=recipe("screen_report", parameters=settings, code=code, inputs=_fingerprints(inputs)))

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
            "classified": list(classified),
        },
        strict=False,
    )


def _describe_screen(plates, missing, settings, inputs):
    """What the screen's page shows."""
    good = [found["plate"] for found in inputs["reported"] if found["status"] == "done"]
    failed = left_out(inputs["reported"])
    params = profiling.Params(**settings["config"]["profiling"]["parameters"])
    readout = params.readout or ""
    if params.readout_denominator:
        readout += f" / {params.readout_denominator}"
    wells = {plate: read_metadata(plate_folder(plate) / "aggregates.parquet") for plate in good}
    rows = [_plate_row(plate, wells.get(plate["plate"]), failed) for plate in plates]
    rows += [{"Metadata_Plate": plate, "status": "missing", "reason": "not complete"} for plate in missing]
    notes, maps = {}, []
    maps.append(_screen_map("Cells per well", wells, "Metadata_CellCount"))
    quality, curves, hits = None, [], None
    done = inputs["screened"]["status"] == "done"
    if params.readout and done:
        maps.append(_screen_map("Readout", wells, READOUT, note=readout))
        assays = {
            plate: (read_json(plate_folder(plate) / "records/profiling/part-0.json") or {})["facts"].get("assay")
            for plate in good
        }
        parts = [_quality_rows(assay, readout, Metadata_Plate=plate) for plate, assay in assays.items() if assay]
        quality = pd.concat(parts, ignore_index=True) if parts else None
        joined = pd.concat([table for table in wells.values() if len(table)], ignore_index=True)
        curves = _dose_curves(joined, readout, groups="Metadata_Plate")
        hits = read_table(screen_folder() / "hits.parquet")
    else:
        notes["quality"] = notes["hits"] = notes["dose_response"] = (
            "No readout is configured (profiling.parameters.readout)." if done else inputs["screened"]["reason"]
        )
    if params.readout and not curves:
        notes["dose_response"] = "No treatment has three doses or more."
    notes["replicability"] = "Replicability (mean average precision) is not measured yet."
    well_maps = []
    if done:
        profiles = read_metadata(screen_folder() / "profiles.parquet")
        reason = inputs["screened"]["facts"]["map"]
        well_maps = [
            _embedding("Wells, UMAP", profiles, "Metadata_Map_1", "Metadata_Map_2", reason),
            _embedding("Wells, PCA", profiles, "Metadata_PCA_1", "Metadata_PCA_2", "", axes=("PCA 1", "PCA 2")),
        ]
    else:
        notes["well_maps"] = inputs["screened"]["reason"]
    cell_maps, notes_of_cells = _cell_maps(wells, inputs)
    notes |= notes_of_cells
    classifier = _classifier(inputs["classified"], notes)
    autoencoder = _autoencoder(inputs["encoded"], settings, notes)
    return report.ScreenReport(
        screen=Path.cwd().name,
        plates=pd.DataFrame(rows),
        summary={"hits": int(hits["hit"].sum()) if hits is not None else "no readout"},
        quality=quality,
        shapes={plate: plate_format(list(table["Metadata_Well"])) for plate, table in wells.items()},
        heat_maps=tuple(maps),
        well_maps=tuple(well_maps),
        cell_maps=tuple(cell_maps),
        hits=hits,
        dose_response=tuple(curves),
        classifier=classifier,
        autoencoder=autoencoder,
        versions=versions(),
        parameters=settings["config"],
        reproduce=("plateloom check .", "plateloom run .", "plateloom status ."),
        notes=notes,
    )


def _plate_row(plate, wells, failed):
    """Row of the table of plates."""
    name = plate["plate"]
    row = {"Metadata_Plate": name, "Metadata_Batch": plate["batch"], "status": "done", "reason": ""}
    if wells is None:
        return row | {"status": "failed", "reason": failed.get(name, "no page")}
    fields = read_tables([well_table(name, "fields", well) for well in wells["Metadata_Well"]])
    lost = fields[fields["Status"] == "failed"]
    return row | {
        "wells": len(wells),
        "fields": len(fields[["Metadata_Well", "Metadata_Field"]].drop_duplicates()),
        "failed_fields": len(lost[["Metadata_Well", "Metadata_Field"]].drop_duplicates()),
        "cells": int(wells["Metadata_CellCount"].sum()),
        "link": f"../plates/{name}/report.html",
    }


def _screen_map(title, wells, column, note=""):
    """Plate maps of one column, side by side."""
    plates = {plate: _by_well(table, column) for plate, table in wells.items() if column in table}
    return report.ScreenHeatMap(title=title, plates=plates, note=note)


def _embedding(title, table, x, y, reason, axes=("UMAP 1", "UMAP 2")):
    """A map colored by what the wells hold, and by plate, which should not be seen in it."""
    treatment = table["Metadata_Treatment"].fillna("").where(table["Metadata_Control"] == "", table["Metadata_Control"])
    colorings = {"treatment": treatment}
    if table["Metadata_Plate"].nunique() > 1:
        colorings["plate"] = table["Metadata_Plate"]
    if "Metadata_Batch" in table and table["Metadata_Batch"].nunique() > 1:
        colorings["batch"] = table["Metadata_Batch"]
    if "Class" in table:
        colorings["class"] = table["Class"]
    return report.Embedding(
        title=title,
        x=table[x].to_numpy(float),
        y=table[y].to_numpy(float),
        colorings={name: [value or "none" for value in values] for name, values in colorings.items()},
        axes=axes,
        note=reason,
    )


def _cell_maps(wells, inputs):
    """The map of the cells of some plates (plate -> its wells), and why it is not there."""
    every = [(plate, well) for plate, table in wells.items() for well in table["Metadata_Well"]]
    reasons = [record["reason"] for record in inputs["mapped"] if record["status"] != "done"]
    if reasons or not inputs["mapped"] or not every:
        return [], {"cell_maps": reasons[0] if reasons else "There is no map of cells."}
    chosen = choose_wells(every, MAP_WELLS)
    quota = -(-MAP_CELLS // len(chosen))
    parts = []
    for plate, well in chosen:
        if not well_table(plate, "maps", well).exists():
            continue
        table = read_table(well_table(plate, "maps", well), [*KEYS, "Map_1", "Map_2"])
        if inputs["classified"] and well_table(plate, "classes", well).exists():
            classes = read_table(well_table(plate, "classes", well), [*KEYS, "Class"])
            table = table.merge(classes, on=list(KEYS), how="left").fillna({"Class": ""})
        parts.append(table.iloc[sample_rows(f"{plate}/{well}", len(table), quota)])
    filled = [part for part in parts if len(part)]
    if not filled:
        return [], {"cell_maps": "There is no cell."}
    cells = pd.concat(filled, ignore_index=True)
    known = pd.concat(list(wells.values()), ignore_index=True)
    keys = ["Metadata_Plate", "Metadata_Well"]
    cells = cells.merge(known[[*keys, "Metadata_Treatment", "Metadata_Control", "Metadata_Batch"]], on=keys, how="left")
    reason = inputs["mapped"][0]["facts"].get("reason", "")
    return [_embedding(f"Cells ({len(cells)} of them)", cells, "Map_1", "Map_2", reason)], {}


def _classifier(records, notes):
    """What the page says of the classifier."""
    if not records or records[0]["status"] != "done":
        notes["classifier"] = records[0]["reason"] if records else "No labels were given (classification.labels)."
        return None
    found = read_json(model_folder("classifier") / "model.json")["card"]["metrics"]
    return report.ClassifierReport(
        classes=found["classes"],
        confusion=np.array(found["confusion"]),
        per_class=pd.DataFrame(found["per_class"]),
        balanced_accuracy=_number(found["balanced_accuracy"]),
        low=_number(found["balanced_accuracy_low"]),
        high=_number(found["balanced_accuracy_high"]),
        scheme=found["scheme"],
    )


def _autoencoder(records, settings, notes):
    """What the page says of the autoencoder."""
    if not records or records[0]["status"] != "done":
        notes["autoencoder"] = (
            records[0]["reason"] if records else "The config does not ask for it (latent.autoencoder.enabled)."
        )
        return None
    from safetensors.numpy import load_file

    folder = model_folder("autoencoder")
    card = read_json(folder / "model.json")
    pairs = load_file(folder / "examples.safetensors")["pairs"].astype(np.float32)
    shown = min(3, len(card["channels"]))
    colors = [f"#{settings['channels'][name]['color'].lstrip('#')}" for name in card["channels"][:shown]]
    pictures = [
        np.stack(
            [
                report.composite_image(np.clip(crop[:shown], 0, 1), colors, [(0, 1)] * shown, width_px=(64, 128))
                for crop in side
            ]
        )
        for side in pairs
    ]
    learning = pd.DataFrame(card["history"]).rename(columns={"train": "training", "holdout": "held-out wells"})
    return report.AutoencoderReport(
        learning=learning,
        loss="mean squared error",
        held_out_error=_number(card["history"][-1]["holdout"]),
        mean_crop_error=_number(card["baseline"]),
        error="mean squared error",
        crops=pictures[0],
        reconstructions=pictures[1],
        scheme=f"{card['cells']['train']} crops from {len(card['wells']['train'])} wells; tested on {card['cells']['holdout']} from {len(card['wells']['holdout'])} other wells",
    )
