"""Cells -> one row per well of a plate; profiles of all plates -> selected features, readouts, dose responses, hits."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from plateloom import profiling
from plateloom.engine.parts import Outcome, Unit, run_job
from plateloom.errors import PlateLayoutError
from plateloom.registry import load_method
from plateloom.stages.illumination import wells_of
from plateloom.store.layout import plate_folder, screen_folder, well_table
from plateloom.store.provenance import file_digest, recipe
from plateloom.store.sheets import read_plate_map
from plateloom.store.tables import read_metadata, read_table, write_table

READOUT = "Metadata_Readout"


def profile_plate(*, plate, batch, plate_map, settings, code, measured, flagged, record):
    """Aggregate the cells of each well, annotate, normalize to controls, and judge the assay.

    Parameters
    ----------
    plate, batch : str
    plate_map : (str, str)
        Path of the map and digest of its content; empty where there is none.
    settings : dict
        `parameters` and `exclude_flagged` of the config's section.
    code : str
    measured : list of str
        Records of the features of every part.
    flagged : str
        Record.
    record : str
    """
    path, content = plate_map
    params = profiling.Params(**settings["parameters"])

    def plan(inputs):
        wells = wells_of(inputs["measured"])
        made = recipe(
            "profiling",
            parameters=settings | {"batch": batch},
            code=code,
            inputs=wells | {"plate_map": content, "flags": inputs["flagged"]["artefacts"]["qc"]},
        )

        def work():
            bad = flagged_fields(plate) if settings["exclude_flagged"] else set()
            rows = yield [
                (aggregate_well, plate, well, sorted(field for other, field in bad if other == well), params.aggregate)
                for well in sorted(wells)
            ]
            aggregates = pd.DataFrame(rows)
            aggregates.insert(1, "Metadata_Batch", batch)
            known = pd.DataFrame(read_plate_map(path) if path else [], columns=None if path else ["well", "treatment"])
            if path and file_digest(Path(path).read_bytes()) != content:
                raise RuntimeError(f"{path} changed while the run was under way; run again")
            aggregates = profiling.annotate(aggregates, known)
            facts = {"flagged_fields": len(bad), "cells": int(aggregates["Metadata_CellCount"].sum())}
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

        return [Unit("profiles", plate_folder(plate) / "profiles.parquet", made, work)]

    run_job(
        "profiling",
        record=record,
        plan=plan,
        code=code,
        settings=settings | {"batch": batch, "plate_map": content},
        upstream={"measured": measured, "flagged": flagged},
        plate=plate,
    )


def aggregate_well(plate, well, excluded, statistic):
    """One row of a well's cells; runs in a worker."""
    cells = read_table(well_table(plate, "features", well))
    cells = cells[~cells["Metadata_SourceField"].isin(excluded)]
    features = [name for name in cells.columns if not name.startswith("Metadata_")]
    row = profiling.aggregate_well(cells, features, statistic=statistic)
    return {"Metadata_Plate": plate, "Metadata_Well": well, **row}


def readout_of(aggregates, params):
    """The readout of each well; a name that no column has is a fault of the config that is known only here."""
    try:
        return profiling.compute_readout(aggregates, params)
    except ValueError as error:
        raise PlateLayoutError(f"profiling.parameters: {error}") from None


def flagged_fields(plate):
    """Fields of a plate's source that QC has flagged in any channel: set of (well, field)."""
    table = read_table(plate_folder(plate) / "qc.parquet", ["Metadata_Well", "SourceField", "Reason"])
    table = table[table["Reason"] != ""]
    return set(zip(table["Metadata_Well"], table["SourceField"].astype(int), strict=True))


def profile_screen(*, plates, missing, settings, code, profiled, record):
    """Join the plates' profiles, select features, place wells on a map, fit dose responses and call hits.

    Parameters
    ----------
    plates, missing : list of str
        Plates that are complete, and those that are not.
    settings : dict
        `parameters` of the config's section, and `map`, the method of the map.
    code : str
    profiled : list of str
        Records of the plates' profiles.
    record : str
    """
    params = profiling.Params(**settings["parameters"])

    def plan(inputs):
        usable = usable_plates(inputs["profiled"], "profiles")
        made = recipe("profiles", parameters=settings, code=code, inputs=usable)

        def work():
            yield []
            folder = screen_folder()
            for name in ("wells", "dose_response", "hits"):  # without a readout none of them is made
                (folder / f"{name}.parquet").unlink(missing_ok=True)
            facts = {
                "plates": sorted(usable),
                "missing": left_out(inputs["profiled"]) | dict.fromkeys(missing, "not complete"),
            }
            tables = {plate: read_table(plate_folder(plate) / "profiles.parquet") for plate in sorted(usable)}
            normalized = [table for table in tables.values() if table["Metadata_Normalized"].all() and len(table)]
            facts["not_normalized"] = sorted(p for p, table in tables.items() if not table["Metadata_Normalized"].all())
            joined, facts["features_dropped"] = profiling.join_plates(normalized or list(tables.values()))
            selected, dropped = profiling.select_features(joined, params)
            facts["features_selected"] = len(profiling.feature_columns(selected))
            facts["selection"] = {name: len(names) for name, names in dropped.items()}
            selected, facts["map"], facts["explained"] = place_wells(selected, settings["map"])
            if params.readout:
                wells = joined_readout(
                    [read_metadata(plate_folder(plate) / "aggregates.parquet") for plate in sorted(usable)]
                )
                hits, report = profiling.call_hits(wells, params)
                facts["hits"] = plain(report) | {"count": int(hits["hit"].sum())}
                write_table(folder / "wells.parquet", wells, made)
                write_table(folder / "dose_response.parquet", profiling.dose_response(wells), made)
                write_table(folder / "hits.parquet", hits, made)
            return Outcome(selected, facts=facts)

        return [Unit("profiles", screen_folder() / "profiles.parquet", made, work)]

    run_job(
        "profiles",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={"profiled": profiled},
        strict=False,
    )


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
        fitted = fit_map(values, features=features, method=method, params=params)
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
