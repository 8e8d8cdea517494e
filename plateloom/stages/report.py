"""Everything that was found -> one page per plate, and one of the screen."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd

from plateloom import profiling, report, segmentation
from plateloom.classification.enrichment import count_kinds, find_enrichment
from plateloom.classification.fractions import estimate_fractions
from plateloom.classification.shift import name_others, shift_text
from plateloom.classification.splits import SCHEMES
from plateloom.engine.parts import Outcome, Unit, run_job, versions
from plateloom.errors import ConfigError, PlateLayoutError
from plateloom.latent.clusters import DOUBTFUL, DRAWN, STABLE
from plateloom.plate_effects import find_effects
from plateloom.registry import load_method
from plateloom.report.notices import name_some
from plateloom.report.plate import name_flags
from plateloom.stages.clusters import ask_examples, count_clusters, read_clusters, share_clusters, sort_examples
from plateloom.stages.explanation import describe_explanation
from plateloom.stages.illumination import read_corrected, tile_window, usable_fields, usable_tiles
from plateloom.stages.novelty import ERROR, limit_of_error, read_errors
from plateloom.stages.profiling import READOUT, flagged_fields, left_out, quarantined_wells, unlike_fields
from plateloom.stages.sampling import choose_wells, sample_rows
from plateloom.store import plate as store
from plateloom.store.layout import model_folder, plate_folder, plate_store, screen_folder, well_table
from plateloom.store.provenance import digest, read_json, recipe, write_bytes
from plateloom.store.sheets import read_plate_map
from plateloom.store.tables import KEYS, read_metadata, read_record, read_table, read_tables, write_table
from plateloom.wells import plate_format

LITTLE = 0.01  # a gain in balanced accuracy below this is not worth more labels
MONTAGE_PX = 480
EXAMPLE_PX = 72
MAP_CELLS = 20_000
MAP_WELLS = 1_000
JUDGED_WELLS = 100  # whose cells tell whether the segmentation can be true
INTERVAL_WELLS = 6  # with 4, every third resample has two different wells or one, and hardly any spread to divide by
STATISTICS = {"z_prime": "Z'", "robust_z_prime": "robust Z'", "ssmd": "SSMD"}
SCALES = {"mad_robustize": "median and MAD", "standardize": "mean and SD", "robustize": "median and quartiles"}
TO_PROFILES = (
    *("conversion", "assembly", "illumination", "quality", "flagging"),
    *("segmentation", "features", "profiling"),
)


def report_plate(
    *, plate, batch, source, settings, code, profiled, flagged, screened, mapped, classified, encoded, record
):
    """Write the page of a plate; of one that is quarantined, a page that says so, and a record that is not done.

    Parameters
    ----------
    plate, batch, source : str
    settings : dict
        `report`, `channels`, and `config`, which the page shows; `quarantined`: wells that a person has taken out, with
        who, when and why, if any.
    code : str
    profiled, flagged, screened : str
        Records.
    mapped, classified, encoded : list of str
        Records of all parts; empty where the config does not ask for the step.
    record : str
    """

    def plan(inputs):
        reasons = [inputs[name]["reason"] for name in ("profiled", "flagged") if inputs[name]["status"] != "done"]
        if reasons:
            page = report.render_quarantined(_describe_quarantined(plate, batch, source, settings, reasons[0]))
            write_bytes(plate_folder(plate) / "report.html", page.encode())
            (plate_folder(plate) / "class_shares.parquet").unlink(missing_ok=True)
            raise PlateLayoutError(reasons[0])

        def work():
            yield []
            described, notices = _describe_plate(plate, batch, source, settings, inputs)
            made = recipe("report", parameters=settings, code=code, inputs=_fingerprints(inputs))
            path = plate_folder(plate) / "class_shares.parquet"
            path.unlink(missing_ok=True)
            if described.class_shares is not None:
                shares = described.class_shares.copy()
                shares.insert(0, "Metadata_Plate", plate)
                write_table(path, shares, made)
            write_bytes(plate_folder(plate) / "report.html", report.render_plate(described).encode())
            facts = {"notices": [{"kind": one.kind, "text": one.text, "section": one.section} for one in notices]}
            facts["class_shares"] = described.class_shares is not None
            facts["classified"] = _done_classifier(inputs["classified"]) is not None
            facts["clustered"] = bool(read_clusters(inputs["mapped"]))
            facts["uncounted"] = list(described.wells.loc[described.wells["cells"].isna(), "Metadata_Well"])
            return Outcome(recipe=made, facts=facts)

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


def _describe_quarantined(plate, batch, source, settings, reason, *, by_hand=False):
    """What the page of a quarantined plate shows: from the records and the tables of fields that are there."""
    folder = plate_folder(plate)
    records = _records_of(plate, TO_PROFILES)
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
        versions=_versions(records),
        parameters=settings["config"],
        origin=_origin(plate, source, settings),
        stages=_provenance(records),
        reproduce=("plateloom check .", "plateloom run .", "plateloom status ."),
        notes={
            "exclusions": "No file was read, so nothing is known of single fields.",
            "heat_maps": "No field is known to have failed, so there is nothing to draw.",
        },
    )


def _records_of(plate, stages):
    """Records of a plate's stages, in the order of their parts: stage -> list of dict, empty where there is none."""
    found = {}
    for stage in stages:
        paths = (plate_folder(plate) / "records" / stage).glob("part-*.json")
        paths = sorted(paths, key=lambda path: (len(path.name), path.name))
        records = [record for record in map(read_json, paths) if record]
        # Records of an earlier run that cut the plate into more parts may still lie there.
        found[stage] = [record for record in records if record.get("parts") == records[0].get("parts")]
    return found


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


def _provenance(records):
    """What records say of code, settings and results, a row per stage that is done."""
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


def _versions(records):
    """Versions that stand in records; several where stages ran with several."""
    found = {}
    for record in (record for entries in records.values() for record in entries):
        for name, version in record.get("versions", {}).items():
            found.setdefault(name, []).append(version)
    order = [name for name in versions() if name in found] + [name for name in found if name not in versions()]
    return {name: ", ".join(dict.fromkeys(found[name])) for name in order}


def _origin(plate, source, settings):
    """Digests of what a plate's page was made from."""
    made = read_record(plate_folder(plate) / "profiles.parquet") or {}
    found = {
        "config": f"config.yaml in the folder of the screen; with the defaults (see Parameters) digest {digest(settings['config'])}",
        "images": source,
        "plate map": made.get("inputs", {}).get("plate_map") and f"digest {made['inputs']['plate_map']}",
        "profiles": made.get("fingerprint") and f"fingerprint {made['fingerprint']}",
    }
    return {name: text for name, text in found.items() if text}


def _describe_plate(plate, batch, source, settings, inputs):
    """What a plate's page shows, and what the screen's page has to say of it."""
    folder = plate_folder(plate)
    wells = _with_micro(read_table(folder / "aggregates.parquet"))
    names = list(wells["Metadata_Well"])
    held = settings.get("quarantined", {})
    fields = read_tables([well_table(plate, "fields", well) for well in [*names, *held]])
    objects = read_tables([well_table(plate, "segmentation", well) for well in names])
    quality = read_table(folder / "qc.parquet")
    quality = quality[~quality["Metadata_Well"].isin(held)]
    profiling_of = settings["config"]["profiling"]
    params = profiling.Params(**profiling_of["parameters"])
    accepted = store.read_group(plate_store(plate))["plateloom"]["facts"]["accepted"]
    kept = not profiling_of["exclude_flagged"]
    # That nothing is seen where nothing was put is no fault.
    blank = quality["Metadata_Well"].isin(wells.loc[wells["Metadata_Control"] == "empty", "Metadata_Well"])
    expected = blank & quality["Flag_Empty"] & ~quality.filter(like="Flag_").drop(columns="Flag_Empty").any(axis=1)
    unlike, without = unlike_fields(objects, quality), profiling_of.get("exclude_unlike_counts", False)
    exclusions = report.list_exclusions(
        fields,
        accepted=accepted,
        segmented=objects,
        flagged=None if kept else quality[~expected],
        unlike=unlike if without else None,
        quarantined=held,
    )
    flagged = quality[(quality["Reason"] != "") & ~expected]
    shown = _count_fields(wells, fields, exclusions)
    lost = shown["status"] == "failed"
    judged = shown.assign(value=wells[READOUT]) if READOUT in wells else shown
    notices = [*_held_notice(held), *report.find_losses(judged, exclusions)]
    normalization = inputs["profiled"]["facts"]["normalization"]
    if normalization["status"] != "normalized":
        reason = normalization["reason"].removesuffix("; values are not normalized")
        text = f"Not normalized: {reason}. The values of this plate cannot be compared with those of other plates."
        notices.append(report.Notice(kind="normalization", text=text, section="parameters"))
    doubts = _doubts(plate, wells, objects, settings)
    notices += doubts + _dark_channels(plate) + _unlike_notice(unlike, without)

    notices += _shift_notice(plate, inputs.get("screened", {}))

    notes, curves, assay = {}, [], None
    gone = set(unlike[["Metadata_Well", "Metadata_Field"]].itertuples(index=False, name=None)) if without else set()
    used = quality[[key not in gone for key in zip(quality["Metadata_Well"], quality["Metadata_Field"], strict=True)]]
    effects = find_effects(_with_times(wells, fields), _values_by_well(wells, used, kept))
    if said := list(effects.loc[effects["found"], "text"]):
        text = f"The position on the plate shows: {'; '.join(said)}."
        notices.append(report.Notice(kind="position", text=text, section="position"))
    elif not len(effects):
        notes["position"] = "Too few wells hold the same to tell effects of the position from those of treatments."
    readout = _readout_name(params)
    if params.readout:
        assay = _quality_rows(wells, readout)
        curves = _dose_curves(wells, readout, unit=_unit_of(params))
        if not curves:
            notes["dose_response"] = "No treatment on this plate was given in three doses or more."
    else:
        notes["quality"] = notes["dose_response"] = "No readout is configured (profiling.parameters.readout)."
    cell_maps, lacking = _cell_maps({plate: wells}, inputs)
    notes |= lacking
    length_unit = "px" if any(doubt.kind == "pixel_size" for doubt in doubts) else "µm"
    tiles, colors = _montage(
        plate, wells.assign(Metadata_CellCount=shown["cells"]), settings, exclusions, flagged, length_unit
    )
    if not tiles:
        notes["montage"] = "No field was segmented."
    doses = [unit for unit in wells["Metadata_Unit"].dropna().unique() if unit]
    hand = [f"{row['Metadata_Well']} {row['Metadata_Field']}" for row in objects.to_dict("records") if row["Corrected"]]
    corrected = {"fields corrected by hand": len(hand)} if hand else {}
    if inputs["profiled"]["facts"].get("badly_restored"):
        corrected["cells left out, badly reconstructed"] = inputs["profiled"]["facts"]["badly_restored"]
    records = _records_of(plate, TO_PROFILES)
    for stage, found in (("latent", "encoded"), ("maps", "mapped"), ("classes", "classified")):
        records[stage] = inputs[found]
    shares = _class_shares(plate, list(wells["Metadata_Well"]), inputs["classified"])
    described = report.PlateReport(
        screen=Path.cwd().name,
        plate=plate,
        shape=plate_format(names),
        wells=shown,
        batch=batch,
        source=source,
        dose_unit=doses[0] if len(doses) == 1 else "",
        summary={"fields flagged": len(flagged.drop_duplicates(["Metadata_Well", "SourceField"]))} | corrected,
        notices=tuple(
            one for one in notices if not (one.kind == "wells" and lost.any() and one.section == "exclusions")
        ),
        exclusions=exclusions,
        flagged=flagged[["Metadata_Well", "SourceField", "Channel", "Reason"]].rename(
            columns={"SourceField": "Metadata_Field", "Channel": "channel", "Reason": "reason"}
        ),
        flagged_note=_flagged_note(quality, kept),
        heat_maps=(
            *_plate_maps(plate, wells, quality, params, inputs["classified"], shares),
            *_badly_restored(list(wells["Metadata_Well"]), inputs["encoded"], settings),
            *_cluster_maps(plate, list(wells["Metadata_Well"]), inputs["mapped"]),
        ),
        class_shares=shares,
        quality=assay,
        quality_note=_quality_note(assay),
        position=effects,
        montage=tuple(tiles),
        montage_colors=colors,
        montage_outlines=report.named_colors(["Nuclei", "Cells"]),
        montage_note=segmentation.describe_objects(settings["config"]["segmentation"]["method"]),
        dose_response=tuple(curves),
        dose_note=_dose_note(),
        cell_maps=tuple(cell_maps),
        versions=_versions(records),
        parameters={"normalization": _normalization(normalization)}
        | ({"corrected by hand": {"wells and fields": ", ".join(hand)}} if hand else {})
        | settings["config"],
        reproduce=("plateloom check .", "plateloom run .", "plateloom status ."),
        origin=_origin(plate, source, settings),
        stages=_provenance(records),
        notes=notes,
    )
    return described, notices


def _shift_notice(plate, screened):
    """That the plate's controls are unlike those of the others, if they are."""
    rows = [row for row in screened.get("facts", {}).get("shift", ()) if row["plate"] == plate]
    return [report.Notice(kind="shift", text=text) for text in map(shift_text, rows) if text]


def _held_notice(held):
    """That wells are quarantined by hand, and why; nothing where none is."""
    if not held:
        return []
    listed = [f"{well} ({why})" for well, why in held.items()]
    noun = "One well is" if len(held) == 1 else f"{len(held)} wells are"
    text = f"{noun} quarantined by hand, and in no result: {name_some(listed)}."
    return [report.Notice(kind="quarantined", text=text, section="exclusions")]


def _with_micro(table):
    """A table of wells with the unit of the dose as it is written by hand: ``uM`` is ``µM``."""
    units = [
        re.sub(r"^u(?=(M|mol|g|l|L|m)\b)", "µ", unit if isinstance(unit, str) else "")
        for unit in table["Metadata_Unit"]
    ]
    return table.assign(Metadata_Unit=units)


def _flagged_note(quality, kept):
    """What becomes of flagged fields, in a sentence."""
    stitched = (quality["SourceField"] != quality["Metadata_Field"]).any()
    who = "The cells on them" if stitched else "They"
    if kept:
        return f"{who} stay in the values per well (profiling.exclude_flagged is false); models do not learn from them."
    return f"{who} are left out of all values per well, and models do not learn from them."


def _count_fields(wells, fields, exclusions):
    """Wells with their keys, numbers of fields and cells, and whether any of their fields is usable.

    Cells of a well without a field that counts are NaN: not known, and not 0, which would be read as toxic. Empty fields count.
    """
    number = "SourceField" if "SourceField" in fields else "Metadata_Field"
    gone = exclusions[exclusions["what"].isin(["failed", "unlike the plate", "hole"])]
    total = fields.groupby("Metadata_Well")[number].nunique()
    failed = gone.groupby("Metadata_Well")["Metadata_Field"].nunique()
    unused = exclusions[~exclusions["what"].isin(["channel missing", "planes missing"])]
    unused_fields = unused.groupby("Metadata_Well")["Metadata_Field"].nunique()
    keyed = [name for name in wells.columns if name.startswith("Metadata_")]
    shown = wells[keyed].assign(
        fields=wells["Metadata_Well"].map(total).fillna(0).astype(int),
        failed_fields=wells["Metadata_Well"].map(failed).fillna(0).astype(int),
        cells=wells["Metadata_CellCount"],
    )
    lost = (shown["fields"] > 0) & (shown["fields"] == shown["failed_fields"])
    reasons = gone.drop_duplicates("Metadata_Well").set_index("Metadata_Well")["reason"]
    shown["status"] = np.where(lost, "failed", "done")
    shown["reason"] = shown["Metadata_Well"].map(reasons).where(lost, "").fillna("")
    images = fields.groupby("Metadata_Well")["Metadata_Field"].nunique()  # fewer than fields where wells are stitched
    bare = unused[unused["what"] == "not segmented"].groupby("Metadata_Well")["Metadata_Field"].nunique()
    uncounted = shown["Metadata_Well"].map(unused_fields) == shown["fields"]
    uncounted |= shown["Metadata_Well"].map(bare) == shown["Metadata_Well"].map(images)
    shown["cells"] = shown["cells"].astype(float)
    for i in shown.index[uncounted]:
        own = unused[unused["Metadata_Well"] == shown.at[i, "Metadata_Well"]]
        flags = own["what"] == "flagged"
        kinds = dict.fromkeys([*own.loc[~flags, "what"], *name_flags(own.loc[flags, "reason"])])
        if set(kinds) != {"empty"}:
            shown.at[i, "cells"] = np.nan
        if not lost[i]:
            shown.at[i, "reason"] = f"all fields left out: {', '.join(kinds)}"
    return shown


def _plate_maps(plate, wells, quality, params, classified, shares):
    """Maps of the readout, of the share of each class, and of the quality of each channel."""
    maps = []
    if params.readout:
        values, note = _by_well(wells, READOUT), _readout_name(params)
        maps.append(report.HeatMap(title="Readout", values=values, unit=_unit_of(params), note=note))
    learned = _learned_note([(plate, well) for well in wells["Metadata_Well"]]) if shares is not None else ""
    for name, part in shares.groupby("class") if shares is not None else ():
        values = dict(zip(part["Metadata_Well"], part["share"], strict=True))
        options = {"limits": (0, 1), "unit": "share of cells", "group": "Classes", "note": learned}
        maps.append(report.HeatMap(title=f"Share of cells of class {name}", values=values, **options))
    if predicted := _mean_predictions(plate, list(wells["Metadata_Well"]), classified):
        maps.append(report.HeatMap(title="Predicted number, mean of the cells", values=predicted, group="Classes"))
    for metric, title, unit in (
        ("focus_slope", "Focus", "slope; higher is sharper"),
        ("background", "Background", "counts"),
    ):
        for channel, part in quality.groupby("Channel", sort=False):
            # An empty field is all noise, which no focus blurs: it would be the sharpest of all.
            shown = part[metric].mask(part["Flag_Empty"] & (metric == "focus_slope"))
            values = shown.groupby(part["Metadata_Well"]).mean()
            flagged = part.loc[part["Reason"] != "", "Metadata_Well"]
            good = values[~values.index.isin(flagged)].dropna()
            limits = report.scale_limits(good) if len(good) > 1 else None
            name = f"{title}, {channel}"
            maps.append(report.HeatMap(title=name, values=values.to_dict(), unit=unit, limits=limits, group="Quality"))
    return maps


def _badly_restored(wells, records, settings):
    """Map of the share of cells that the autoencoder restores badly, if there is one that restores anything."""
    if not records or any(record["status"] != "done" for record in records):
        return []
    limit = limit_of_error(settings["config"]["latent"]["autoencoder"]["error_limit"])
    if not math.isfinite(limit):
        return []
    encoded = {well: record["plate"] for record in records for well in record["artefacts"]}
    values = {}
    for well in wells:
        errors = read_errors(encoded[well], well).dropna() if well in encoded else ()
        if len(errors):
            values[well] = float((errors[ERROR] > limit).mean())
    note = f"An error above {limit:.3g}: debris, or like nothing that the autoencoder was trained on."
    options = {
        "unit": "share of cells",
        "group": "Quality",
        "note": note,
        "limits": (0, max(values.values(), default=0) or 1),
    }
    return [report.HeatMap(title="Badly reconstructed", values=values, **options)] if values else []


def _cluster_maps(plate, wells, records):
    """Maps of the share of each cluster, of plates whose cells have clusters."""
    clusters = read_clusters(records)
    if not clusters:
        return []
    shares = share_clusters(plate, wells, clusters["config"]["number"])
    options = {"unit": "share of cells", "group": "Clusters"}
    return [
        report.HeatMap(title=f"Share of cells of cluster {i}", values=values, **options)
        for i, values in enumerate(shares)
        if values
    ]


def _with_times(wells, fields):
    """Wells and when they were imaged, as far as their source says; tables of older versions say nothing."""
    if "Seconds" not in fields:
        return wells
    return wells.assign(Seconds=wells["Metadata_Well"].map(fields.groupby("Metadata_Well")["Seconds"].median()))


def _values_by_well(wells, quality, kept):
    """What effects of the position are looked for in: cells per field used, background and focus of every channel."""
    bad = quality.loc[quality["Reason"] != "", ["Metadata_Well", "SourceField"]].apply(tuple, axis=1)
    good = quality[~quality[["Metadata_Well", "SourceField"]].apply(tuple, axis=1).isin(set(bad))]
    fields = (quality if kept else good).groupby("Metadata_Well")["SourceField"].nunique()
    values = {"cells": wells["Metadata_CellCount"] / wells["Metadata_Well"].map(fields)}
    for quantity, metric in (("background", "background"), ("focus", "focus_laplacian")):
        for channel, part in good.groupby("Channel", sort=False):
            values[f"{quantity} {channel}"] = wells["Metadata_Well"].map(part.groupby("Metadata_Well")[metric].median())
    return pd.DataFrame(values, index=wells.index).astype(float)


def _doubts(plate, wells, objects, settings):
    """What makes the segmentation of a plate implausible, as notices."""
    usable = usable_fields(plate, list(wells["Metadata_Well"]))
    if not usable:
        return []
    pixel = store.describe_image(store.field_path(plate_store(plate), *usable[0]))["pixel_size_um"]
    found = []
    if text := report.doubt_pixel_size(pixel, settings["config"]["conversion"]["pixel_size_um"]):
        found.append(report.Notice(kind="pixel_size", text=text, section="parameters"))
    columns = ["Nuclei_AreaShape_EquivalentDiameter", "Cells_AreaShape_Area"]
    cells = pd.DataFrame(columns=columns, dtype=float)
    if set(columns) <= set(wells):
        chosen = [well for _, well in choose_wells([("", well) for well in wells["Metadata_Well"]], JUDGED_WELLS)]
        cells = read_tables([well_table(plate, "features", well) for well in sorted(chosen)], columns)
    chosen = settings["config"]["segmentation"]
    params = load_method(segmentation.METHODS, chosen["method"], "segmentation method").Params(**chosen["parameters"])
    typical, reach = getattr(params, "nucleus_diameter_um", None), getattr(params, "cells_distance_um", None)
    if reach is None and typical and getattr(params, "cells_channel", None):
        reach = 2.5 * typical
    doubts = report.doubt_segmentation(
        cells[columns[0]].to_numpy(float) * pixel,
        cells[columns[1]].to_numpy(float) * pixel**2,
        objects["Count_Nuclei"].to_numpy() if len(objects) else [],
        nucleus_um=typical,
        limits_um=getattr(params, "diameters_um", None),
        reach_um=reach,
    )
    return found + [report.Notice(kind="segmentation", text=text, section="montage") for text in doubts]


def _unlike_notice(unlike, left_out):
    """Fields that have far fewer or more nuclei than the others of their well, as a notice."""
    if not len(unlike):
        return []
    listed = [
        f"{well} field {field} ({count}; others {usual:.0f})"
        for well, field, count, usual in unlike.itertuples(index=False)
    ]
    what = "are left out of values per well" if left_out else "are used all the same"
    text = f"Fields with far fewer or more nuclei than the others of their well, which {what}: {name_some(listed)}."
    return [report.Notice(kind="fields", text=text, section="exclusions" if left_out else "montage")]


def _dark_channels(plate):
    """Which channels have no flat-field although one was asked for, as notices."""
    refused = [record["facts"].get("refused", {}) for record in _records_of(plate, ["illumination"])["illumination"]]
    texts = [text for found in refused for text in report.doubt_light(found)]
    return [report.Notice(kind="illumination", text=text, section="parameters") for text in texts]


def _readout_name(params):
    """The readout in words, its divisor and logarithm included."""
    name = params.readout or ""
    if params.readout_denominator:
        name += f" / {params.readout_denominator}"
    return f"log2({name})" if params.readout_log and name else name


def _unit_of(params):
    """Unit of the readout, as far as the names of its features tell."""
    if params.readout_log:
        return "log2"
    if params.readout_denominator:
        return "ratio"
    for pattern, unit in (
        ("Metadata_CellsPerField", "cells per field"),
        (r"_AreaShape_(Area|ConvexArea|BoundingBoxArea|FilledArea)$", "px²"),
        (r"_AreaShape_.*(Diameter|Length|Radius|Perimeter|Feret)", "px"),
        (r"_Intensity_(Mean|Median|Min|Max|Std|LowerQ|UpperQ)", "share of full scale"),
    ):
        if re.search(pattern, params.readout or ""):
            return unit
    return ""


def _by_well(table, column):
    """Values of a column by well."""
    return dict(zip(table["Metadata_Well"], table[column].astype(float), strict=True))


def _normalization(found):
    """How a plate was normalized, in a few words."""
    if found["status"] != "normalized":
        return f"none: {found['reason']}"
    return f"{found['method']}, to {found['n_reference']} {'negative control ' if found['reference'] == 'negative' else ''}wells"


def _quality_rows(wells, readout, **keys):
    """Rows of the table of assay quality: all positive controls together, and where they are of several kinds, each."""
    control = wells["Metadata_Control"]
    negative = wells.loc[control == "negative", READOUT]
    positive = wells[control == "positive"]
    if not len(negative) and not len(positive):
        return None
    kinds = {}
    least = profiling.MIN_CONTROLS
    names = ["Metadata_Treatment", "Metadata_Dose", "Metadata_Unit"]
    for (treatment, dose, unit), members in positive.groupby(names, dropna=False, sort=True):
        given = f"{dose:g} {unit}".strip() if np.isfinite(dose) else ""
        kinds[f"{treatment or 'positive'} {given}".strip()] = members[READOUT]
    groups = {f"{len(kinds)} kinds, pooled": positive[READOUT]} if len(kinds) != 1 else {}
    rows = []
    for name, values in (groups | kinds).items():
        found = profiling.assay_quality(values, negative)
        counts = {"negatives": found["n_negative"], "positives": found["n_positive"]}
        few = [
            f"{number} {kind[:-1]} control {'well' if number == 1 else 'wells'}"
            for kind, number in counts.items()
            if number < least
        ]
        reason = f"{' and '.join(few)}, {least} needed" if few else found["reason"]
        for statistic, title in STATISTICS.items():
            ends = {"value": "", "low": "_low", "high": "_high"}
            numbers = {end: _number(found[statistic + suffix]) for end, suffix in ends.items()}
            if min(counts.values()) < INTERVAL_WELLS:
                numbers |= {"low": np.nan, "high": np.nan}
            row = {**keys, "readout": readout, "statistic": title, "controls": name, **numbers, **counts}
            rows.append(row | {"reason": "" if np.isfinite(numbers["value"]) else reason})
    order = list(STATISTICS.values())
    return pd.DataFrame(sorted(rows, key=lambda row: order.index(row["statistic"])))


def _quality_note(assay):
    """What the bars of the assay's quality are, and what is pooled in it."""
    if assay is None:
        return ""
    text = ""
    if assay["low"].notna().any():
        text = "Bars are 95 % intervals from 1,000 bootstrap resamples of the control wells; with few wells they are too narrow."
    if (assay["value"].notna() & assay["low"].isna()).any():
        text += f" No interval is determined below {INTERVAL_WELLS} control wells of either kind."
    if assay["controls"].nunique() > 1:
        text += (
            " The positive controls are of several kinds: 'pooled' takes them for one, so that their differences count as "
            "noise; each kind is shown by itself as well."
        )
    return text.strip()


def _dose_note():
    """By which rule a dose response is reported."""
    low, high = profiling.HILL_SLOPES
    return (
        "A curve is reported where all of this holds: the F test of its four parameters against a constant has p ≤ 0.05; its "
        f"EC50 lies within the doses given, and the EC50's 95 % interval (likelihood profile) reaches no more than "
        f"{profiling.DOSE_MARGIN:g} times beyond them; its ends lie at least {profiling.MIN_SPAN:g} robust standard deviations of "
        f"the negative controls apart. Slopes are fitted within {low:g} and {high:g}. Control wells are not fitted."
    )


def _number(value):
    return float("nan") if value is None else float(value)


def _dose_curves(wells, readout, *, unit="", groups=None):
    """Dose-response charts of the treatments that have several doses."""
    controls = {}
    for kind in ("negative", "positive"):
        values = wells.loc[wells["Metadata_Control"] == kind, READOUT].dropna()
        if len(values):
            controls[kind] = tuple(np.percentile(values, [5, 50, 95]))
    fits = profiling.dose_response(wells).set_index("Metadata_Treatment")
    treated = wells[wells["Metadata_Dose"].notna() & (wells["Metadata_Control"] == "")]
    curves = []
    for treatment, found in treated.groupby("Metadata_Treatment", sort=True):
        if found["Metadata_Dose"].nunique() < 3 or treatment not in fits.index:
            continue
        fit = fits.loc[treatment]
        hill = None
        if not fit["reason"]:
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
                unit=unit,
                wells=list(found["Metadata_Well"]),
                groups=None if groups is None else list(found[groups]),
                hill=hill,
                reason=fit["reason"],
                controls=controls,
            )
        )
    return curves


def _learned_note(wells):
    """Which of some wells (plate, well) the classifier was trained on, and how their cells are classified all the same."""
    learned = set(read_json(model_folder("classifier") / "model.json").get("wells", ()))
    known = [well for plate, well in wells if f"{plate}/{well}" in learned]
    if not known:
        return ""
    shown = ", ".join(known) if len(known) <= 12 else f"{len(known)} of the wells"
    return f"Cells of {shown} were labeled; there the model of the test decides that has not learned from them."


def _class_shares(plate, wells, records):
    """Share of each class in each well, corrected for the classifier's errors, with its interval; None without classes.

    Columns ``Metadata_Well``, ``class``, ``cells``, ``counted`` (share of the cells taken for it), ``share``, ``low``, ``high``.
    """
    card = _done_classifier(records)
    if card is None or not card["classes"]:
        return None
    names, draws = card["classes"], np.array(card["metrics"]["confusion_draws"])
    rows = []
    for well in wells:
        found = read_table(well_table(plate, "classes", well), ["Class"])["Class"]
        counts = [int((found == name).sum()) for name in names]
        shares = estimate_fractions(counts, draws)
        for i, name in enumerate(names):
            row = {"Metadata_Well": well, "class": name, "cells": sum(counts), "counted": shares["observed"][i]}
            rows.append(row | {"share": shares["fraction"][i], "low": shares["low"][i], "high": shares["high"][i]})
    return pd.DataFrame(rows) if rows else None


def _mean_predictions(plate, wells, records):
    """Mean of the numbers predicted for the cells of each well; empty where there are none."""
    card = _done_classifier(records)
    if card is None or card["classes"]:
        return {}
    return {
        well: float(read_table(well_table(plate, "classes", well), ["Predicted"])["Predicted"].mean()) for well in wells
    }


def _done_classifier(records):
    """Card of the classifier, if every cell of the plate has been classified by it; else None."""
    if not records or any(record["status"] != "done" for record in records):
        return None
    return read_json(model_folder("classifier") / "model.json")["card"]


def _montage(plate, wells, settings, exclusions, flagged, length_unit):
    """Pictures of some fields with the outlines of nuclei and cells, and the colors of their channels."""
    channels = settings["channels"]
    names = settings["report"]["composite"] or list(channels)[:3]
    colors = {name: f"#{channels[name]['color'].lstrip('#')}" for name in names}
    images = usable_tiles(plate, list(wells["Metadata_Well"]))
    first = flagged.drop_duplicates(["Metadata_Well", "Metadata_Field"])
    bad = {(well, field) for well, field in first[["Metadata_Well", "Metadata_Field"]].itertuples(index=False)}
    failed = exclusions[exclusions["what"].isin(["failed", "unlike the plate", "not segmented"])]
    columns = ["Metadata_Well", "Metadata_Field"]
    chosen = report.choose_tiles(
        wells,
        settings["report"]["montage_wells"],
        flagged=list(first[[*columns, "Reason"]].itertuples(index=False, name=None)),
        failed=list(failed[[*columns, "reason"]].itertuples(index=False, name=None)),
        order=[well for _, well in choose_wells([("", well) for well in wells["Metadata_Well"]], len(wells))],
    )
    known = wells.set_index("Metadata_Well", drop=False)
    shown = []
    for name, field, why in chosen:
        fields = {other: image for (well, other), image in images.items() if well == name}
        if field is None:
            better = [other for other in fields if (name, other) not in bad] or list(fields)
            field = next(
                (other for other in better if _is_segmented(plate, name, fields[other])), better[0] if better else None
            )
        if field is None:
            continue
        crop = _crop(plate, name, fields[field], field, names) if field in fields else None
        shown.append((known.loc[name], field, why, crop))
    clean = [crop["image"] for well, field, _, crop in shown if crop and (well["Metadata_Well"], field) not in bad]
    clean = clean or [crop["image"] for *_, crop in shown if crop]
    if not clean:
        return [], {}
    windows = [tuple(np.percentile([image[i] for image in clean], [1, 99.7])) for i in range(len(names))]
    tiles = []
    for well, field, why, crop in shown:
        picture = outlines = None
        if crop:
            picture = report.composite_image(crop["image"], list(colors.values()), windows)
            outlines = report.outline_layer(crop["labels"]) if crop["labels"] else None
        tiles.append(
            report.Tile(
                well=well["Metadata_Well"],
                picture=picture,
                outlines=outlines,
                treatment=well["Metadata_Treatment"] or "",
                dose=float(well["Metadata_Dose"]),
                unit=well["Metadata_Unit"] or "",
                cells=int(well["Metadata_CellCount"]) if np.isfinite(well["Metadata_CellCount"]) else None,
                control=well["Metadata_Control"],
                caption=f"field {field}" + (f", {crop['part']}" if crop else ""),
                why=why,
                width_um=crop["width_um"] if crop else float("nan"),
                length_unit=length_unit,
            )
        )
    return tiles, colors


def _is_segmented(plate, well, field):
    return store.read_group(store.field_path(plate_store(plate), well, field) / "labels") is not None


def _crop(plate, well, image, field, channels):
    """The central part of a field: pixels, labels (empty if it was not segmented), what part it is, and its width [µm]."""
    path = store.field_path(plate_store(plate), well, image)
    spans = [
        part.indices(size)[:2]
        for part, size in zip(tile_window(path, field), store.image_shape(path)[-2:], strict=True)
    ]
    shape = [last - first for first, last in spans]
    window = tuple(
        slice(max(first, (first + last - MONTAGE_PX) // 2), min((first + last + MONTAGE_PX) // 2, last))
        for first, last in spans
    )
    height, width = (part.stop - part.start for part in window)
    labels = {}
    if _is_segmented(plate, well, image):
        labels = {kind: store.read_labels(path, kind, window=window) for kind in ("Nuclei", "Cells")}
    whole = [height, width] == shape
    return {
        "image": _pixels(plate, well, image, channels, window),
        "labels": labels,
        "part": f"all {width} × {height} px" if whole else f"central {width} × {height} of {shape[1]} × {shape[0]} px",
        "width_um": width * store.describe_image(path)["pixel_size_um"],
    }


def _pixels(plate, well, field, channels, window):
    """Corrected pixels of a window; a channel that the field lacks is black."""
    flatfield = store.read_group(plate_folder(plate) / "illumination.zarr")["plateloom"]["fingerprint"]
    return read_corrected(plate, well, field, flatfield, channels=channels, window=window)


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
            owners, cutting = _cut_clusters(clusters["rows"] if clusters else (), clustered, settings)
            found = yield tasks + cutting
            counted, grouped = found[: len(classified)], found[len(classified) : len(tasks)]
            pictures = sort_examples(owners, found[len(tasks) :])
            made = recipe("screen_report", parameters=settings, code=code, inputs=_fingerprints(inputs))
            path = screen_folder() / "enrichment.parquet"
            path.unlink(missing_ok=True)
            enrichment = None
            if counted:
                wells = pd.concat(counted, ignore_index=True)
                enrichment = find_enrichment(wells, list(wells.columns[wells.columns.get_loc("cells") + 1 :]))
                write_table(path, enrichment, made)
                enrichment = _with_micro(enrichment)
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
    described = _describe_quarantined(plate, "", "", settings, why, by_hand=True)
    write_bytes(plate_folder(plate) / "report.html", report.render_quarantined(described).encode())


def count_plate(plate, exclude_flagged):
    """What `count_kinds` finds in each well of a plate, with what is in it; runs in a worker."""
    card = read_json(model_folder("classifier") / "model.json")["card"]
    bad = flagged_fields(plate) if exclude_flagged else set()
    wells = read_metadata(plate_folder(plate) / "aggregates.parquet")
    rows = []
    for well in wells["Metadata_Well"]:
        cells = read_table(well_table(plate, "classes", well), [*KEYS, "Class", "Novelty"])
        excluded = {field for other, field in bad if other == well}
        if excluded:
            fields = read_table(well_table(plate, "features", well), [*KEYS, "Metadata_SourceField"])
            cells = cells.merge(fields, on=list(KEYS), validate="one_to_one")
            cells = cells[~cells["Metadata_SourceField"].isin(excluded)]
        rows.append(count_kinds(cells, card["classes"]))
    counted = pd.DataFrame(rows, columns=["cells", "novel", *(f"class {name}" for name in card["classes"])])
    known = [f"Metadata_{name}" for name in ("Plate", "Well", "Treatment", "Dose", "Unit", "Control")]
    return pd.concat([wells[known].reset_index(drop=True), counted], axis=1)


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
                "AUC": _number(row["auc"]),
                "low": _number(row["low"]),
                "high": _number(row["high"]),
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
    readout = _readout_name(params)
    wells = {plate: _with_micro(read_metadata(plate_folder(plate) / "aggregates.parquet")) for plate in good}
    rows = [_plate_row(plate, wells.get(plate["plate"]), failed) for plate in plates]
    rows += [{"Metadata_Plate": plate, "status": "missing", "reason": "not complete"} for plate in missing]
    for plate, why in settings.get("quarantined", {}).items():
        rows.append({"Metadata_Plate": plate, "status": "quarantined", "reason": why, "link": _page_of(plate)})
    notices = _shared_notices(plates, wells, inputs)
    notes, maps = {}, []
    if wells:
        counted = _counted(wells, inputs["reported"])
        maps.append(_screen_map("Cells per well", counted, "cells", unit="cells"))
    else:
        notes["heat_maps"] = "No plate is complete."
    quality, curves, hits, hits_note = None, [], None, ""
    done = inputs["screened"]["status"] == "done"
    if params.readout and done and wells:
        maps.append(_screen_map("Readout", wells, READOUT, note=readout, unit=_unit_of(params)))
        parts = [_quality_rows(table, readout, Metadata_Plate=plate) for plate, table in wells.items()]
        parts = [part for part in parts if part is not None]
        quality = pd.concat(parts, ignore_index=True) if parts else None
        joined = pd.concat([table for table in wells.values() if len(table)], ignore_index=True)
        curves = _dose_curves(joined, readout, unit=_unit_of(params), groups="Metadata_Plate")
        hits = _with_micro(read_table(screen_folder() / "hits.parquet"))
        found = inputs["screened"]["facts"]["hits"]
        hits_note = report.explain_hits(
            readout,
            threshold=found["threshold"],
            min_replicates=found["min_replicates"],
            false_rate=_number(found["false_rate"]),
            skipped=found["skipped_plates"],
            unit=_unit_of(params),
        )
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
        axes = _component_names(facts["explained"])
        well_maps = [_embedding("Wells, PCA", profiles, "Metadata_PCA_1", "Metadata_PCA_2", reason, axes)]
        if method != "pca" and not facts["map"]:
            name = method.upper()
            axes = f"{name} 1", f"{name} 2"
            well_maps.insert(0, _embedding(f"Wells, {name}", profiles, "Metadata_Map_1", "Metadata_Map_2", raw, axes))
    else:
        notes["well_maps"] = inputs["screened"]["reason"]
    cell_maps, notes_of_cells = _cell_maps(wells, inputs)
    notes |= notes_of_cells
    if not wells:
        notes |= dict.fromkeys(("well_maps", "cell_maps"), "No plate is complete.")
    clusters = _clusters(grouped, pictures, settings, inputs, notes)
    classifier = _classifier(inputs["classified"], notes, settings)
    autoencoder = _autoencoder(inputs["encoded"], settings, notes)
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
        quality_note=_quality_note(quality),
        shapes={plate: plate_format(list(table["Metadata_Well"])) for plate, table in wells.items()},
        heat_maps=tuple(maps),
        well_maps=tuple(well_maps),
        cell_maps=tuple(cell_maps),
        clusters=clusters,
        hits=hits,
        hits_note=hits_note,
        dose_response=tuple(curves),
        dose_note=_dose_note(),
        classifier=classifier,
        autoencoder=autoencoder,
        shift=shift,
        enrichment=enrichment,
        comparison=compared,
        versions=_versions(records | pages),
        parameters=settings["config"],
        reproduce=("plateloom check .", "plateloom run .", "plateloom status ."),
        origin={
            "config": "config.yaml in the folder of the screen; with the defaults (see Parameters) digest "
            f"{digest(settings['config'])}",
            "plates": "plates.tsv; the code, settings and results of each plate's stages stand on its own page",
        },
        stages=_provenance(records | pages),
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
                shown = f"{', '.join(absent[:8])}{' …' if len(absent) > 8 else ''}"
                text = f"{len(absent)} of {len(named)} {kind} control wells of the plate map were not imaged: {shown}."
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
    text = f"Features are normalized to {reference} of each plate ({SCALES[params.method]})."
    return f"{text} Only normalized plates are shown; without {', '.join(raw)}." if raw else text


def _counted(wells, reported):
    """Wells of each plate with their number of `cells`: NaN where the plate's page shows none (see `_count_fields`)."""
    uncounted = {found["plate"]: found["facts"].get("uncounted", ()) for found in reported}
    return {
        plate: table.assign(cells=table["Metadata_CellCount"].mask(table["Metadata_Well"].isin(uncounted[plate])))
        for plate, table in wells.items()
    }


def _screen_map(title, wells, column, note="", unit=""):
    """Plate maps of one column, side by side."""
    plates = {plate: _by_well(table, column) for plate, table in wells.items() if column in table}
    scaled = [table.loc[table["Metadata_Control"] != "empty", column] for table in wells.values() if column in table]
    limits = report.scale_limits(np.concatenate(scaled)) if scaled else None
    return report.ScreenHeatMap(title=title, plates=plates, note=note, unit=unit, limits=limits)


def _component_names(explained):
    """Titles of the axes of a map by PCA, with the share of the variance that each explains."""
    shares = [f" ({share:.0%} of the variance)" for share in explained[:2]] + ["", ""]
    return f"PCA 1{shares[0]}", f"PCA 2{shares[1]}"


def _embedding(title, table, x, y, reason, axes):
    """A map colored by what the wells hold, and by plate, which should not be seen in it."""
    treatment = table["Metadata_Treatment"].fillna("").where(table["Metadata_Control"] == "", table["Metadata_Control"])
    colorings = {"treatment": treatment}
    if table["Metadata_Plate"].nunique() > 1:
        colorings["plate"] = table["Metadata_Plate"]
    if "Metadata_Batch" in table and table["Metadata_Batch"].nunique() > 1:
        colorings["batch"] = table["Metadata_Batch"]
    if "Class" in table:
        colorings["class"] = table["Class"]
    colorings = {name: [value or "none" for value in values] for name, values in colorings.items()}
    if "Cluster" in table:  # a cell without one is gray, not one more color
        colorings["cluster"] = ["" if number < 0 else str(number) for number in table["Cluster"]]
    return report.Embedding(
        title=title,
        x=table[x].to_numpy(float),
        y=table[y].to_numpy(float),
        colorings=colorings,
        axes=axes,
        note=reason,
    )


def _cell_maps(wells, inputs):
    """The map of the cells of some plates (plate -> its wells), and why it is not there."""
    every = [(plate, well) for plate, table in wells.items() for well in table["Metadata_Well"]]
    reasons = [record["reason"] for record in inputs["mapped"] if record["status"] != "done"]
    if reasons or not inputs["mapped"] or not every:
        return [], {"cell_maps": reasons[0] if reasons else "There is no map of cells."}
    of_clusters = ["Cluster"] if read_clusters(inputs["mapped"]) else []
    chosen = choose_wells(every, MAP_WELLS)
    quota = -(-MAP_CELLS // len(chosen))
    parts, total = [], 0
    for plate, well in chosen:
        if not well_table(plate, "maps", well).exists():
            continue
        table = read_table(well_table(plate, "maps", well), [*KEYS, "Map_1", "Map_2", *of_clusters])
        if inputs["classified"] and well_table(plate, "classes", well).exists():
            classes = read_table(well_table(plate, "classes", well), [*KEYS, "Class"])
            table = table.merge(classes, on=list(KEYS), how="left").fillna({"Class": ""})
        parts.append(table.iloc[sample_rows(f"{plate}/{well}", len(table), quota)])
        total += len(table)
    filled = [part for part in parts if len(part)]
    if not filled:
        return [], {"cell_maps": "There is no cell."}
    cells = pd.concat(filled, ignore_index=True)
    known = pd.concat(list(wells.values()), ignore_index=True)
    keys = ["Metadata_Plate", "Metadata_Well"]
    cells = cells.merge(known[[*keys, "Metadata_Treatment", "Metadata_Control", "Metadata_Batch"]], on=keys, how="left")
    config = read_json(model_folder("map") / "map.json")["config"]
    name = "PCA" if config["reason"] else config["method"].upper()
    axes = _component_names(config["explained"]) if name == "PCA" else (f"{name} 1", f"{name} 2")
    every_cell = len(cells) == total and len(chosen) == len(every)
    note = f"All {len(cells):,} cells." if every_cell else f"{len(cells):,} cells, drawn evenly over the wells."
    note += (
        " Their features are scaled by the median and spread of the whole sample and not normalized to the controls of each "
        f"plate{': where plates lie apart, so do their stainings' if len(wells) > 1 else ''}."
    )
    if "Class" in cells:
        learned = _learned_note(list(dict.fromkeys(zip(cells["Metadata_Plate"], cells["Metadata_Well"], strict=True))))
        note += f" {learned}" if learned else ""
    if config["reason"]:
        note += f" No {config['method'].upper()}: {config['reason']}."
    return [_embedding(f"Cells, {name}", cells, "Map_1", "Map_2", note, axes)], {}


def _clusters(counted, pictures, settings, inputs, notes):
    """What the page says of the clusters; `counted` are the cells of each in every well, `pictures` typical ones."""
    found = read_clusters(inputs["mapped"])
    if not found or not len(counted):
        reasons = [record["reason"] for record in inputs["mapped"] if record["status"] != "done"]
        asked = settings["config"]["latent"]["maps"]["clusters"]["method"] != "none"
        notes["clusters"] = (
            "The config does not ask for them (latent.maps.clusters.method)."
            if not asked
            else reasons[0]
            if reasons
            else "The cells of no plate have clusters."
        )
        return None
    config, rows = found["config"], found["rows"]
    enrichment = _with_micro(read_table(screen_folder() / "clusters.parquet"))
    totals = [int(counted[f"cluster {row['cluster']}"].sum()) for row in rows]
    every = int(counted["cells"].sum())
    stability = config["stability"] or [math.nan] * len(rows)
    shown = pd.DataFrame(
        {
            "cluster": [str(row["cluster"]) for row in rows],
            "cells": totals,
            "share": [total / every if every else math.nan for total in totals],
            "stability": [_grade(value) for value in stability],
            "one well": [row["of_one_well"] for row in rows],
            "unlike other cells": [
                "; ".join(f"{name}\u00a0{difference:+.1f}" for name, difference in row["features"]) for row in rows
            ],
            "enriched in": [report.name_enriched(enrichment, f"cluster {row['cluster']}") for row in rows],
        }
    )
    return report.ClustersReport(
        rows=shown,
        words=_clusters_words(config, rows, every, sum(totals)),
        note=(
            "Stability: how alike a cluster and the one most like it are (Jaccard index, mean) when clusters are looked for "
            f"again in {100 * DRAWN:.0f} % of the wells; {STABLE:g} and more is found again, less than {DOUBTFUL:g} is not. One well: the largest "
            "share of its cells that comes from a single well. Unlike other cells: features whose medians differ most "
            "from those of all other cells, for how much they vary on either side [robust SD]. Enriched in: treatments and doses with a larger share than the negative controls of "
            "their plates, a well being one observation (q ≤ 0.05, corrected over all treatments, doses and clusters; the whole "
            "table is clusters.parquet). The pictures show the cells nearest to the middle of each cluster, of several wells."
        ),
        pictures=_cluster_pictures(pictures, settings),
        enrichment=enrichment,
    )


def _grade(stability):
    """A cluster's stability, and a word where it is no good."""
    if not math.isfinite(stability):
        return "not known"
    return f"{stability:.2f}{'' if stability >= STABLE else ' unstable' if stability < DOUBTFUL else ' doubtful'}"


def _clusters_words(config, rows, every, grouped):
    """How clusters were found, and which of them are not to be trusted."""
    name = {"kmeans": "k-means", "hdbscan": "HDBSCAN", "leiden": "Leiden (leidenalg and igraph, under the GPL)"}
    number = config["number"]
    words = f"{number} {'cluster' if number == 1 else 'clusters'} by {name.get(config['method'], config['method'])}"
    tried = [one["number"] for one in config["tried"]]
    if config["reason"]:
        words += f"; {config['reason']}"
    elif len(tried) > 1:
        words += f": of {tried[0]} to {tried[-1]} the most of which every one was found again in other wells"
    words += "."
    if config["agreement"] is not None and number:
        words += (
            f" Looked for {config['resamples']} times again, each time in other wells, they agree by {config['agreement']:.2f} "
            "(adjusted Rand index; 1 is the same, 0 chance)."
        )
    unstable = [
        str(row["cluster"])
        for row, value in zip(rows, config["stability"], strict=bool(config["stability"]))
        if value < DOUBTFUL
    ]
    if unstable:
        words += f" Unstable, and not to be relied on: {', '.join(unstable)}."
    if every > grouped:
        words += f" In no cluster: {every - grouped:,} of {every:,} cells ({(every - grouped) / every:.1%})."
    if config["method"] == "kmeans" and number > 1:
        words += " k-means cuts also where cells change gradually: a stable cluster need not be a kind of its own."
    return words


def _composite(settings):
    """Channels of a picture of cells."""
    return settings["report"]["composite"] or list(settings["channels"])[:3]


def _cut_clusters(rows, plates, settings):
    """Tasks that cut out typical cells of each cluster, and to which they belong."""
    size_um = settings["config"]["latent"]["autoencoder"]["crop_um"]
    return ask_examples(rows, plates, channels=_composite(settings), size_um=size_um, out_px=EXAMPLE_PX)


def _cluster_pictures(crops, settings):
    """Typical cells of each cluster, all with the same contrast."""
    if not crops:
        return ()
    colors = [f"#{settings['channels'][name]['color'].lstrip('#')}" for name in _composite(settings)]
    every = np.concatenate(list(crops.values()))
    windows = [tuple(np.percentile(every[:, i], [1, 99.7])) for i in range(len(colors))]
    draw = lambda crop: report.composite_image(crop, colors, windows, width_px=(EXAMPLE_PX, EXAMPLE_PX))  # noqa: E731
    return tuple((f"Cluster {cluster}", np.stack([draw(crop) for crop in cut])) for cluster, cut in crops.items())


def _classifier(records, notes, settings=None):
    """What the page says of the classifier; without settings there are no pictures."""
    if not records or records[0]["status"] != "done":
        notes["classifier"] = records[0]["reason"] if records else "No labels were given (classification.labels)."
        return None
    described = read_json(model_folder("classifier") / "model.json")
    card, tuned = described["card"], ""
    found = card["metrics"]
    unit = found["scheme"]
    units = SCHEMES[unit]
    if card.get("tuned"):
        tuned = f"; settings were searched by other {units} of each fold's training part"
    scheme = (
        f"Tested by cross-validation in {len(found['folds'])} folds on {found['n_cells']:,} cells of {found['n_groups']:,} "
        f"{units}; all cells of a {unit} are in the same fold, so that no {unit} is tested by a model that has seen it{tuned}"
    )
    if "classes" not in found:
        return _regression(found, scheme, units)
    columns = [
        "precision",
        "recall",
        "f1",
        "false_positives",
        "false_negatives",
        "average_precision",
        "support",
        "groups",
    ]
    renamed = {"groups": units, "support": "cells", "average_precision": "average precision"}
    renamed |= {"false_positives": "false positives", "false_negatives": "false negatives"}
    per_class = pd.DataFrame(found["per_class"])
    per_class = per_class[["class", *(name for name in columns if name in per_class)]].rename(columns=renamed)
    return report.ClassifierReport(
        classes=found["classes"],
        confusion=np.array(found["confusion"]),
        per_class=per_class,
        balanced_accuracy=_number(found["balanced_accuracy"]),
        low=_number(found["balanced_accuracy_low"]),
        high=_number(found["balanced_accuracy_high"]),
        scheme=scheme,
        explanation=describe_explanation(described, settings),
        **_classifier_details(found, units),
    )


def _classifier_details(found, units):
    """Curves, calibration, sets, doubted labels and subgroups, of a test that has them."""
    if "calibration" not in found:
        return {}
    sets, noise, learning, calibration = (found[name] for name in ("sets", "noise", "learning", "calibration"))
    lacking = [name for name, limit in zip(found["classes"], sets["limits"], strict=True) if limit is None]
    words = (
        f"A class is excluded for a cell only where that is wrong for at most {100 * (1 - sets['coverage']):.0f} % of the cells of that "
        f"class in new {units}. In the test the classes that were left held the true one for {100 * sets['covered']:.0f} % of the "
        f"cells, and were one class only for {100 * sets['single']:.0f} %; on the others the classifier abstains (Set_size is not 1)."
    )
    if lacking:
        words = (
            f"{', '.join(lacking)} cannot be excluded for any cell: {sets['groups_needed']} {units} of a class are needed for "
            f"{100 * sets['coverage']:.0f} % (classification.coverage)."
        )
    if learning["gain"] is not None and learning["gain_low"] is not None:
        low, gain, high = (learning[name] for name in ("gain_low", "gain", "gain_high"))
        verdict = "so more labels would help" if low > 0 else "which may be chance"
        verdict = f"so more of the same labels would hardly help (below {LITTLE})" if high < LITTLE else verdict
        learned = (
            f"Learning from all {units} instead of half of them changes the balanced accuracy by {gain:+.3f} (95 % interval {low:+.3f} "
            f"to {high:+.3f}), {verdict}."
        )
    else:
        learned = f"Too few {units} to tell whether more labels would help."
    weighed = "" if found["balance"] == "none" else " Classes count alike, however many of their cells are labeled."
    suspects = pd.DataFrame(noise["suspects"])
    if len(suspects):
        suspects = suspects[["plate", "well", "field", "object", "label", "looks_like", "probability"]]
        suspects = suspects.rename(columns={"looks_like": "looks like"})
    subgroups = pd.DataFrame(found["subgroups"])
    if len(subgroups):
        order = ["by", "part", "cells", "groups", "classes", "error", "balanced_accuracy", "low", "high"]
        subgroups = subgroups[order].rename(columns={"groups": units, "balanced_accuracy": "balanced accuracy"})
    return {
        "error": found["error"],
        "calibration": pd.DataFrame(calibration["reliability"]),
        "uncalibrated": pd.DataFrame(calibration["before"]),
        "calibration_note": (
            f"Brier score {calibration['brier']:.3f} (before calibration {calibration['brier_before']:.3f}), expected calibration "
            f"error {calibration['expected_calibration_error']:.3f} ({calibration['expected_calibration_error_before']:.3f}), "
            f"temperature {calibration['temperature']:.2f}.{weighed}"
        ),
        "precision_recall": {row["class"]: row["curve"] for row in found["per_class"]},
        "learning": pd.DataFrame(learning["steps"]),
        "learning_note": learned,
        "sets_note": words,
        "suspects": suspects,
        "suspects_note": (
            f"{100 * noise['share']:.1f} % of the labels are of cells that models of other {units} take for another class. The clearest are "
            "listed; where whole wells are labeled, cells that the treatment left as they were are among them."
        ),
        "subgroups": subgroups,
        "graded": _graded(found.get("graded", ())),
        "units": units,
    }


def _graded(rows):
    """Table of `grade_transfer`'s rows."""
    table = pd.DataFrame(rows)
    if len(table):
        numbers = {name: table[name].astype(float) for name in ("balanced_accuracy", "low", "high")}
        table = table.assign(**numbers)[["tested_on", *numbers, "cells", "reason"]]
        table = table.rename(columns={"tested_on": "tested on", "balanced_accuracy": "balanced accuracy"})
    return table


def _regression(found, scheme, units):
    """What the page says of a model of numbers."""
    points = pd.DataFrame(found["points"])
    width = found["half_width"]
    words = (
        f"R² {found['r2']:.3f} of cells ({found['group_r2']:.3f} of the means of {units}), Spearman's correlation "
        f"{_number(found['spearman']):.3f} ({_number(found['group_spearman']):.3f}); mean error {found['mean_error']:.3g}."
    )
    if width is not None:
        words += (
            f" A prediction is within {width:.3g} of the truth for {found['coverage']:.0%} of the cells of new {units}."
        )
    return report.RegressionReport(points=points, words=words, scheme=scheme, units=units)


def _backbone(card):
    """What is said of a network that was not trained here."""
    config, found = card["config"], card["found"]
    ((file, content),) = card["weights"].items()
    words = (
        f"A network of your own, {config['model']}, not trained here; its weights are {file} ({content[:12]}). It gives "
        f"{found['numbers']:,} numbers for a cell"
    )
    if "variance" not in found:
        return f"{words}."
    words += f"; a PCA makes {config['latent_dim']} of them, which hold {found['variance']:.0%} of the variance"
    if "held_out_variance" in found:
        words += f", and {found['held_out_variance']:.0%} of that of cells of other wells"
    return f"{words}."


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
    method = card["config"].get("method")
    contrastive = method == "contrastive"
    loss = "loss of contrast (NT-Xent)" if contrastive else "mean squared error"
    errors = np.asarray(card.get("held_out_errors", []))
    limit = limit_of_error(settings["config"]["latent"]["autoencoder"]["error_limit"])
    examples = load_file(folder / "examples.safetensors")
    shown = min(3, len(card["channels"]))
    colors = [f"#{settings['channels'][name]['color'].lstrip('#')}" for name in card["channels"][:shown]]

    def draw(crop):
        inside = np.clip(crop[:shown].astype(np.float32), 0, 1)
        return report.composite_image(inside, colors, [(0, 1)] * shown, width_px=(64, 128))

    pictures, worst = (
        [np.stack([draw(crop) for crop in side]) for side in examples[name]]
        if name in examples and examples[name].shape[1]
        else [None, None]
        for name in ("pairs", "worst")
    )
    learning = pd.DataFrame(card["history"]).rename(columns={"train": "training", "holdout": "held-out wells"})
    done = "Fitted" if method == "backbone" else "Trained"
    return report.AutoencoderReport(
        learning=learning,
        loss=loss,
        held_out_error=_number(card["history"][-1]["holdout"] if card["history"] else None),
        mean_crop_error=_number(card["baseline"]),
        pca_error=_number(card.get("pca")),
        error=loss,
        baseline="guessing" if contrastive else "predicting the mean crop",
        limit=limit,
        beyond=float(np.mean(errors > limit)) if len(errors) else math.nan,
        crops=pictures[0],
        reconstructions=pictures[1],
        worst=worst[0],
        worst_reconstructions=worst[1],
        scheme=(
            f"{done} on {card['cells']['train']:,} crops of single cells from {len(card['wells']['train']):,} wells, tested on "
            f"{card['cells']['holdout']:,} from {len(card['wells']['holdout']):,} other wells"
        ),
        untrained=_backbone(card) if method == "backbone" else "",
    )
