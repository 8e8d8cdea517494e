"""Cells -> one row per well of a plate; profiles of all plates -> selected features, readouts, dose responses, hits."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from plateloom import profiling
from plateloom.classification.shift import find_shift
from plateloom.engine.parts import FAILED, Outcome, Unit, run_job
from plateloom.errors import PlateLayoutError
from plateloom.registry import load_method
from plateloom.stages.fields import count_fields, empty_fields, fields_of, flagged_wells, unlike_fields
from plateloom.stages.illumination import wells_of
from plateloom.stages.novelty import ERROR, limit_of_error, read_errors
from plateloom.store.layout import plate_folder, screen_folder, well_table
from plateloom.store.provenance import file_digest, recipe
from plateloom.store.sheets import read_plate_map
from plateloom.store.tables import KEYS, read_metadata, read_table, read_tables, write_table

READOUT = "Metadata_Readout"
OF_READOUT = ("wells", "dose_response", "hits")  # tables of the screen that are made where there is a readout


def profile_plate(*, plate, batch, plate_map, max_failed_fields, settings, code, measured, flagged, record, encoded=()):
    """Aggregate the cells of each well, annotate, normalize to controls, and judge the assay.

    Parameters
    ----------
    plate, batch : str
    plate_map : (str, str)
        Path of the map and digest of its content; empty where there is none.
    max_failed_fields : float in [0, 1]
        Share of the images that may have failed in segmentation.
    settings : dict
        `parameters`, `exclude_flagged` and `exclude_unlike_counts` of the config's section; `quarantined`: wells that a
        person has taken out, if any, which have no row; `error_limit`, if cells that are restored badly are left out.
    code : str
    measured : list of str
        Records of the features of every part.
    flagged : str
        Record.
    record : str
    encoded : list of str
        Records of the latents of every part, where cells that are restored badly are left out.
    """
    path, content = plate_map
    params = profiling.Params(**settings["parameters"])

    def plan(inputs):
        held = settings.get("quarantined", ())
        wells = {well: found for well, found in wells_of(inputs["measured"]).items() if well not in held}
        if held and not wells:
            raise PlateLayoutError("every well of the plate is quarantined by hand")
        segmented = read_tables([well_table(plate, "segmentation", well) for well in sorted(wells)])
        check_segmented(segmented, max_failed_fields)
        made = recipe(
            "profiling",
            parameters=settings | {"batch": batch},
            code=code,
            inputs=wells
            | {"plate_map": content, "flags": inputs["flagged"]["artefacts"]["qc"]}
            | ({"latent": wells_of(inputs["encoded"])} if inputs["encoded"] else {}),
        )

        def work():
            judged = read_table(plate_folder(plate) / "qc.parquet")
            bad = judged[judged["Metadata_Well"].isin(wells) & (judged["Reason"] != "") & settings["exclude_flagged"]]
            bad = fields_of(bad, "SourceField")
            unlike = fields_of(unlike_fields(segmented, judged)) if settings["exclude_unlike_counts"] else set()
            limit = limit_of_error(settings["error_limit"]) if inputs["encoded"] else math.nan
            rows = yield [
                (
                    aggregate_well,
                    plate,
                    well,
                    sorted(field for other, field in bad | unlike if other == well),
                    params.aggregate,
                    limit,
                )
                for well in sorted(wells)
            ]
            badly_restored = sum(left_out for _, left_out in rows)
            aggregates = pd.DataFrame([row for row, _ in rows])
            aggregates.insert(1, "Metadata_Batch", batch)
            fields = count_fields(segmented, judged, (bad - empty_fields(judged)) | unlike)
            aggregates["Metadata_FieldCount"] = aggregates["Metadata_Well"].map(fields).fillna(0).astype(int)
            fields = aggregates["Metadata_FieldCount"]
            aggregates["Metadata_CellsPerField"] = aggregates["Metadata_CellCount"] / fields.where(fields > 0)
            known = pd.DataFrame(read_plate_map(path) if path else [], columns=None if path else ["well", "treatment"])
            if path and file_digest(Path(path).read_bytes()) != content:
                raise RuntimeError(f"{path} changed while the run was under way; run again")
            aggregates = profiling.annotate(aggregates, known)
            facts = {
                "flagged_fields": len(bad),
                "unlike_fields": len(unlike),
                "cells": int(aggregates["Metadata_CellCount"].sum()),
            } | ({"badly_restored": badly_restored} if inputs["encoded"] else {})
            if params.readout:
                aggregates[READOUT] = readout_of(aggregates, params)
                kinds = [
                    aggregates.loc[aggregates["Metadata_Control"] == kind, READOUT] for kind in ("positive", "negative")
                ]
                facts["assay"] = plain(profiling.assay_quality(*kinds))
            profiles, normalization = profiling.normalize_profiles(aggregates, params)
            facts["normalization"] = plain(normalization)
            write_table(plate_folder(plate) / "aggregates.parquet", aggregates, made)
            return Outcome(profiles, facts=facts)

        beside = (plate_folder(plate) / "aggregates.parquet",)
        return [Unit("profiles", plate_folder(plate) / "profiles.parquet", made, work, beside=beside)]

    run_job(
        "profiling",
        record=record,
        plan=plan,
        code=code,
        settings=settings | {"batch": batch, "plate_map": content},
        upstream={"measured": measured, "flagged": flagged, "encoded": list(encoded)},
        plate=plate,
    )


def check_segmented(segmented, max_failed_fields):
    """Fail the plate where segmentation did not work on too many of its images, e.g. since they lack a channel.

    Parameters
    ----------
    segmented : DataFrame
        A row per image: ``Status`` and ``Reason``.
    max_failed_fields : float in [0, 1]

    Raises
    ------
    PlateLayoutError
    """
    failed = segmented["Status"] == FAILED if len(segmented) else pd.Series(False)
    if failed.mean() > max_failed_fields:
        raise PlateLayoutError(
            f"{int(failed.sum())} of {len(segmented)} fields failed in segmentation, more than max_failed_fields "
            f"{max_failed_fields:g} allows; first: {segmented.loc[failed, 'Reason'].iloc[0]}"
        )


def aggregate_well(plate, well, excluded, statistic, limit=math.nan):
    """One row of a well's cells, and how many are left out as their error lies beyond the limit; runs in a worker."""
    cells = read_table(well_table(plate, "features", well))
    cells = cells[~cells["Metadata_SourceField"].isin(excluded)]
    before = len(cells)
    if math.isfinite(limit):
        errors = read_errors(plate, well)
        bad = pd.MultiIndex.from_frame(errors.loc[errors[ERROR] > limit, list(KEYS)])
        cells = cells[~pd.MultiIndex.from_frame(cells[list(KEYS)]).isin(bad)]
    features = [name for name in cells.columns if not name.startswith("Metadata_")]
    row = profiling.aggregate_well(cells, features, statistic=statistic)
    return {"Metadata_Plate": plate, "Metadata_Well": well, **row}, before - len(cells)


def readout_of(aggregates, params):
    """The readout of each well; a name that no column has is a fault of the config that is known only here."""
    try:
        return profiling.compute_readout(aggregates, params)
    except ValueError as error:
        raise PlateLayoutError(f"profiling.parameters: {error}") from None


def profile_screen(*, plates, missing, settings, code, profiled, record):
    """Join the plates' profiles, select features, place wells on a map, fit dose responses and call hits.

    Parameters
    ----------
    plates, missing : list of str
        Plates that are complete, and those that are not.
    settings : dict
        `parameters` of the config's section, and `map`, the method of the map; `quarantined`: plates that a person has
        taken out, if any; `learned_from`: plates that controls are compared with, where these are not all.
    code : str
    profiled : list of str
        Records of the plates' profiles.
    record : str
    """
    params = profiling.Params(**settings["parameters"])
    facts_of_now = {}

    def plan(inputs):
        usable = usable_plates(inputs["profiled"], "profiles")
        made = recipe("profiles", parameters=settings, code=code, inputs=usable)
        # May change while the plates that are used do not.
        facts_of_now["missing"] = (
            left_out(inputs["profiled"])
            | dict.fromkeys(missing, "not complete")
            | dict.fromkeys(settings.get("quarantined", ()), "quarantined by hand")
        )

        def work():
            yield []
            folder = screen_folder()
            for name in OF_READOUT:
                (folder / f"{name}.parquet").unlink(missing_ok=True)
            facts = {"plates": sorted(usable)}
            tables = {plate: read_table(plate_folder(plate) / "profiles.parquet") for plate in sorted(usable)}
            normalized = [table for table in tables.values() if table["Metadata_Normalized"].all() and len(table)]
            facts["not_normalized"] = sorted(p for p, table in tables.items() if not table["Metadata_Normalized"].all())
            joined, facts["features_dropped"] = profiling.join_plates(normalized or list(tables.values()))
            selected, dropped = profiling.select_features(joined, params)
            facts["features_selected"] = len(profiling.feature_columns(selected))
            facts["shift"] = plain(controls_shift(sorted(usable), settings.get("learned_from")))
            facts["selection"] = {name: len(names) for name, names in dropped.items()}
            selected, facts["map"], facts["explained"] = place_wells(selected, settings["map"])
            if params.readout:
                wells = joined_readout(
                    [read_metadata(plate_folder(plate) / "aggregates.parquet") for plate in sorted(usable)]
                )
                flagged = flagged_wells(inputs["profiled"])
                hits, report = profiling.call_hits(
                    wells,
                    params,
                    flagged=[
                        key in flagged for key in zip(wells["Metadata_Plate"], wells["Metadata_Well"], strict=True)
                    ],
                )
                facts["hits"] = plain(report) | {"count": int(hits["hit"].sum())}
                write_table(folder / "wells.parquet", wells, made)
                write_table(folder / "dose_response.parquet", profiling.dose_response(wells), made)
                write_table(folder / "hits.parquet", hits, made)
            return Outcome(selected, facts=facts)

        names = OF_READOUT if params.readout else ()
        beside = tuple(screen_folder() / f"{name}.parquet" for name in names)
        return [Unit("profiles", screen_folder() / "profiles.parquet", made, work, beside=beside)]

    run_job(
        "profiles",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        facts=facts_of_now,
        upstream={"profiled": profiled},
        strict=False,
    )


def controls_shift(plates, reference=None):
    """What `find_shift` says of the negative controls of plates, by features that are not normalized plate by plate."""
    tables = []
    for plate in plates:
        table = read_table(plate_folder(plate) / "aggregates.parquet")
        table = table[(table["Metadata_Control"] == "negative") & (table["Metadata_CellCount"] > 0)]
        features = profiling.feature_columns(table)
        tables.append(table[["Metadata_Plate", "Metadata_Batch", *features]])
    wells = pd.concat([table for table in tables if len(table)] or tables[:1], join="inner", ignore_index=True)
    values = wells.drop(columns=["Metadata_Plate", "Metadata_Batch"])
    batches = wells["Metadata_Batch"].fillna("")
    return find_shift(values, wells["Metadata_Plate"], batches=batches, reference=reference)


def joined_readout(tables):
    """Wells of all plates with what is in them and their readout; wells that hold nothing have no treatment."""
    wells = pd.concat(tables, ignore_index=True)
    wells.loc[wells["Metadata_Control"] == "empty", "Metadata_Treatment"] = None
    return wells


def place_wells(profiles, method):
    """Add the place of each well on a map of wells (`Metadata_Map_1`, `_2`) and by PCA (`Metadata_PCA_1`, `_2`).

    Parameters
    ----------
    profiles : DataFrame
    method : str
        A name in `plateloom.latent.MAPS`; its parameters are the default ones.

    Returns
    -------
    profiles : DataFrame
    reason : str
        Why the map is another than asked for; else empty.
    explained : list of float
        Share of the variance that each principal component explains.

    Notes
    -----
    Normalized features are in units of what the negative controls vary. Scaled once more, by what all wells vary, the few
    that a treatment changes would count no more than the hundreds that it leaves alone.
    """
    from plateloom.latent import MAPS
    from plateloom.latent.maps import fit_map

    features = profiling.feature_columns(profiles)
    known = profiles[features].notna().any(axis=1).to_numpy() if features else np.zeros(len(profiles), bool)
    places, components = np.full((2, len(profiles), 2), np.nan, np.float32)
    reason, explained = "no well has a value", []
    if known.sum() >= 2:
        values = profiles.loc[known, features].to_numpy(float)
        params = load_method(MAPS, method, "map").Params()
        rescale = not profiles["Metadata_Normalized"].all()
        fitted = fit_map(values, features=features, method=method, params=params, rescale=rescale)
        places[known] = fitted.transform(values, features=features)
        found = fitted.project(values, features=features)[:, :2]
        components[known, : found.shape[1]] = found
        reason, explained = fitted.config["reason"], [float(share) for share in fitted.config["explained"][:2]]
    table = profiles.assign(Metadata_Map_1=places[:, 0], Metadata_Map_2=places[:, 1])
    return table.assign(Metadata_PCA_1=components[:, 0], Metadata_PCA_2=components[:, 1]), reason, explained


def usable_plates(records, artefact):
    """Fingerprints of plates whose record is done.

    Raises
    ------
    PlateLayoutError
        If there is none.
    """
    found = {record["plate"]: record["artefacts"][artefact] for record in records if record["status"] == "done"}
    if not found:
        reasons = "; ".join(f"{plate}: {reason}" for plate, reason in left_out(records).items())
        raise PlateLayoutError(f"no plate is complete ({reasons})" if reasons else "no plate is complete")
    return found


def left_out(records):
    """Reason why a plate takes no part, by plate."""
    return {
        record.get("plate", record["path"]): record["reason"] or record["status"]
        for record in records
        if record["status"] != "done"
    }


def plain(value):
    """JSON values of numbers and tables: NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
