"""Everything that was found of a plate -> its page."""

from pathlib import Path

import numpy as np
import pandas as pd

from plateloom import profiling, report, segmentation
from plateloom.classification.shift import shift_text
from plateloom.engine.parts import Outcome, Unit, run_job
from plateloom.errors import PlateLayoutError, some_of
from plateloom.plate_effects import find_effects
from plateloom.registry import load_method
from plateloom.report.plate import name_flags
from plateloom.stages.clusters import read_clusters
from plateloom.stages.fields import expected_empty, known_cells, unlike_fields
from plateloom.stages.illumination import usable_fields
from plateloom.stages.profiling import READOUT
from plateloom.stages.report_classes import done_classifier, estimate_class_shares, shares_note
from plateloom.stages.report_embeddings import list_cell_maps
from plateloom.stages.report_montage import describe_montage, picture_flagged
from plateloom.stages.report_plate_maps import badly_restored_maps, cluster_maps, plate_maps
from plateloom.stages.report_quarantine import describe_quarantined
from plateloom.stages.report_readouts import (
    dose_curves,
    dose_note,
    quality_note,
    quality_rows,
    readout_name,
    unit_of,
    with_micro,
)
from plateloom.stages.report_records import (
    TO_PROFILES,
    fingerprints_of,
    origin_of,
    provenance_of,
    records_of,
    versions_of,
)
from plateloom.stages.sampling import choose_wells
from plateloom.store import plate as store
from plateloom.store.layout import plate_folder, plate_store, well_table
from plateloom.store.provenance import recipe, write_bytes
from plateloom.store.tables import read_table, read_tables, write_table
from plateloom.wells import explain_holes, plate_format

JUDGED_WELLS = 100  # whose cells tell whether the segmentation can be true


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
            page = report.render_quarantined(describe_quarantined(plate, batch, source, settings, reasons[0]))
            write_bytes(plate_folder(plate) / "report.html", page.encode())
            (plate_folder(plate) / "class_shares.parquet").unlink(missing_ok=True)
            raise PlateLayoutError(reasons[0])

        def work():
            yield []
            described, notices = _describe_plate(plate, batch, source, settings, inputs)
            made = recipe("report", parameters=settings, code=code, inputs=fingerprints_of(inputs))
            path = plate_folder(plate) / "class_shares.parquet"
            path.unlink(missing_ok=True)
            if described.class_shares is not None:
                shares = described.class_shares.copy()
                shares.insert(0, "Metadata_Plate", plate)
                write_table(path, shares, made)
            write_bytes(plate_folder(plate) / "report.html", report.render_plate(described).encode())
            facts = {"notices": [{"kind": one.kind, "text": one.text, "section": one.section} for one in notices]}
            facts["class_shares"] = described.class_shares is not None
            facts["classified"] = done_classifier(inputs["classified"]) is not None
            facts["clustered"] = bool(read_clusters(inputs["mapped"]))
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


def _describe_plate(plate, batch, source, settings, inputs):
    """What a plate's page shows, and what the screen's page has to say of it."""
    folder = plate_folder(plate)
    wells = with_micro(read_table(folder / "aggregates.parquet"))
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
    expected = expected_empty(quality, wells)
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
    number = "SourceField" if "SourceField" in fields else "Metadata_Field"
    imaged = list(zip(fields["Metadata_Well"], fields[number], strict=True))
    if line := explain_holes(imaged, set(fields["Metadata_Well"])):
        notices.append(report.Notice(kind="holes", text=f"The source lacks images: {line}.", section="exclusions"))
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
    effects = find_effects(_with_times(wells, fields), _values_by_well(wells, used))
    if said := list(effects.loc[effects["found"], "text"]):
        text = f"The position on the plate shows: {'; '.join(said)}."
        notices.append(report.Notice(kind="position", text=text, section="position"))
    elif not len(effects):
        notes["position"] = "Too few wells hold the same to tell effects of the position from those of treatments."
    readout = readout_name(params)
    if params.readout:
        assay = quality_rows(wells, readout)
        curves = dose_curves(wells, readout, unit=unit_of(params))
        if not curves:
            notes["dose_response"] = "No treatment on this plate was given in three doses or more."
    else:
        notes["quality"] = notes["dose_response"] = "No readout is configured (profiling.parameters.readout)."
    cell_maps, lacking = list_cell_maps({plate: wells}, inputs)
    notes |= lacking
    length_unit = "px" if any(doubt.kind == "pixel_size" for doubt in doubts) else "µm"
    tiles, colors = describe_montage(
        plate, wells.assign(Metadata_CellCount=shown["cells"]), settings, exclusions, flagged, length_unit
    )
    if not tiles:
        notes["montage"] = "No field was segmented."
    doses = [unit for unit in wells["Metadata_Unit"].dropna().unique() if unit]
    hand = [f"{row['Metadata_Well']} {row['Metadata_Field']}" for row in objects.to_dict("records") if row["Corrected"]]
    corrected = {"fields corrected by hand": len(hand)} if hand else {}
    if inputs["profiled"]["facts"].get("badly_restored"):
        corrected["cells left out, badly reconstructed"] = inputs["profiled"]["facts"]["badly_restored"]
    records = records_of(plate, TO_PROFILES)
    for stage, found in (("latent", "encoded"), ("maps", "mapped"), ("classes", "classified")):
        records[stage] = inputs[found]
    bad = set() if kept else set(zip(flagged["Metadata_Well"], flagged["SourceField"], strict=True))
    shares = estimate_class_shares(plate, list(wells["Metadata_Well"]), inputs["classified"], bad)
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
        flagged_pictures=tuple(picture_flagged(plate, wells, settings, flagged, quality, length_unit)),
        heat_maps=(
            *plate_maps(plate, wells, quality, params, inputs["classified"], shares),
            *badly_restored_maps(list(wells["Metadata_Well"]), inputs["encoded"], settings),
            *cluster_maps(plate, list(wells["Metadata_Well"]), inputs["mapped"]),
        ),
        class_shares=shares,
        shares_note="" if shares is None else shares_note(),
        quality=assay,
        quality_note=quality_note(assay),
        position=effects,
        montage=tuple(tiles),
        montage_colors=colors,
        montage_outlines=report.named_colors(["Nuclei", "Cells"]),
        montage_note=segmentation.describe_objects(settings["config"]["segmentation"]["method"]),
        dose_response=tuple(curves),
        dose_note=dose_note(),
        cell_maps=tuple(cell_maps),
        versions=versions_of(records),
        parameters={"normalization": _normalization(normalization)}
        | ({"corrected by hand": {"wells and fields": ", ".join(hand)}} if hand else {})
        | settings["config"],
        reproduce=("plateloom check .", "plateloom run .", "plateloom status ."),
        origin=origin_of(plate, source, settings),
        stages=provenance_of(records),
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
    text = f"{noun} quarantined by hand, and in no result: {some_of(listed)}."
    return [report.Notice(kind="quarantined", text=text, section="exclusions")]


def _flagged_note(quality, kept):
    """What becomes of flagged fields, in a sentence."""
    stitched = (quality["SourceField"] != quality["Metadata_Field"]).any()
    who = "The cells on them" if stitched else "They"
    if kept:
        return f"{who} stay in the values per well (profiling.exclude_flagged is false); models do not learn from them."
    return f"{who} are left out of all values per well, and models do not learn from them."


def _count_fields(wells, fields, exclusions):
    """Wells with their keys, numbers of fields and cells, and whether any of their fields is usable."""
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
        cells=known_cells(wells),
    )
    lost = (shown["fields"] > 0) & (shown["fields"] == shown["failed_fields"])
    reasons = gone.drop_duplicates("Metadata_Well").set_index("Metadata_Well")["reason"]
    shown["status"] = np.where(lost, "failed", "done")
    shown["reason"] = shown["Metadata_Well"].map(reasons).where(lost, "").fillna("")
    images = fields.groupby("Metadata_Well")["Metadata_Field"].nunique()  # fewer than fields where wells are stitched
    bare = unused[unused["what"] == "not segmented"].groupby("Metadata_Well")["Metadata_Field"].nunique()
    whole = shown["Metadata_Well"].map(unused_fields) == shown["fields"]
    whole |= shown["Metadata_Well"].map(bare) == shown["Metadata_Well"].map(images)
    for i in shown.index[whole & ~lost]:
        own = unused[unused["Metadata_Well"] == shown.at[i, "Metadata_Well"]]
        flags = own["what"] == "flagged"
        kinds = dict.fromkeys([*own.loc[~flags, "what"], *name_flags(own.loc[flags, "reason"])])
        shown.at[i, "reason"] = f"all fields left out: {', '.join(kinds)}"
    return shown


def _with_times(wells, fields):
    """Wells and when they were imaged, as far as their source says; tables of older versions say nothing."""
    if "Seconds" not in fields:
        return wells
    return wells.assign(Seconds=wells["Metadata_Well"].map(fields.groupby("Metadata_Well")["Seconds"].median()))


def _values_by_well(wells, quality):
    """What effects of the position are looked for in: cells per field, background and focus of every channel."""
    bad = quality.loc[quality["Reason"] != "", ["Metadata_Well", "SourceField"]].apply(tuple, axis=1)
    good = quality[~quality[["Metadata_Well", "SourceField"]].apply(tuple, axis=1).isin(set(bad))]
    values = {"cells": wells["Metadata_CellsPerField"]}
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
    # Without a channel that shows cells the limit is what a cell is: a ring round the nucleus.
    reach = reach if getattr(params, "cells_channel", None) else None
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
    text = f"Fields with far fewer or more nuclei than the others of their well, which {what}: {some_of(listed)}."
    return [report.Notice(kind="fields", text=text, section="exclusions" if left_out else "montage")]


def _dark_channels(plate):
    """Which channels have no flat-field although one was asked for, as notices."""
    refused = [record["facts"].get("refused", {}) for record in records_of(plate, ["illumination"])["illumination"]]
    texts = [text for found in refused for text in report.doubt_light(found)]
    return [report.Notice(kind="illumination", text=text, section="parameters") for text in texts]


def _normalization(found):
    """How a plate was normalized, in a few words."""
    if found["status"] != "normalized":
        return f"none: {found['reason']}"
    return f"{found['method']}, to {found['n_reference']} {'negative control ' if found['reference'] == 'negative' else ''}wells"
