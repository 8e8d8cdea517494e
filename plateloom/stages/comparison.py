"""Latents of cells -> profiles of wells, as of features; all profiles of the screen -> how plates mix, and which space serves better."""

import math
from pathlib import Path

import pandas as pd

from plateloom import comparison, mixing, profiling
from plateloom.engine.parts import Outcome, Unit, run_job
from plateloom.errors import PlateLayoutError
from plateloom.stages.fields import flagged_fields, unlike_fields_of, without_fields
from plateloom.stages.illumination import wells_of
from plateloom.stages.latent_tables import latent_columns, one_encoder
from plateloom.stages.novelty import ERROR, limit_of_error
from plateloom.stages.profiling import READOUT, left_out, plain, usable_plates
from plateloom.store.layout import plate_folder, screen_folder, well_table
from plateloom.store.provenance import file_digest, recipe, write_json
from plateloom.store.tables import read_metadata, read_table, write_table

FEATURES = "features"
OF_FEATURES = ("Metadata_CellCount", "Metadata_FieldCount", "Metadata_CellsPerField", READOUT)  # not of latents
CORRECTIONS = ("none", "normalized", "sphered")
ALPHA = 0.05  # false discoveries among treatments whose replicates are said to find each other
ANNOTATION = ("Plate", "Batch", "Well", "Treatment", "Dose", "Unit", "Control")


def profile_latents(*, plate, settings, code, profiled, encoded, record):
    """Aggregate the latents of each well's cells and normalize them to the plate's controls, as profiles of features are.

    Parameters
    ----------
    plate : str
    settings : dict
        `parameters`: of profiling, as far as they say how wells are aggregated and normalized; `exclude_flagged`,
        `exclude_unlike_counts` and, if cells that are restored badly are left out, `error_limit`.
    code : str
    profiled : str
        Record of the plate's profiles: which wells there are, and what is in them.
    encoded : list of str
        Records of the latents of every part.
    record : str
    """
    params = profiling.Params(**settings["parameters"])

    def plan(inputs):
        encoded = wells_of(inputs["encoded"])
        made = recipe(
            "latent_profiling",
            parameters=settings,
            code=code,
            inputs=encoded | {"profiles": inputs["profiled"]["artefacts"]["profiles"]},
        )

        def work():
            known = read_metadata(plate_folder(plate) / "aggregates.parquet")
            wells = [well for well in known["Metadata_Well"] if well in encoded]
            bad = flagged_fields(plate) if settings["exclude_flagged"] else set()
            bad |= unlike_fields_of(plate, wells) if settings["exclude_unlike_counts"] else set()
            limit = limit_of_error(settings["error_limit"]) if "error_limit" in settings else math.nan
            rows = yield [
                (
                    aggregate_latents,
                    plate,
                    well,
                    sorted(field for other, field in bad if other == well),
                    params.aggregate,
                    limit,
                )
                for well in wells
            ]
            keys = [name for name in known if name not in OF_FEATURES]
            aggregates = known[keys].merge(pd.DataFrame(rows), on="Metadata_Well", validate="one_to_one")
            profiles, normalization = profiling.normalize_profiles(aggregates, params)
            write_table(plate_folder(plate) / "latent_aggregates.parquet", aggregates, made)
            return Outcome(profiles, facts={"normalization": plain(normalization)})

        beside = (plate_folder(plate) / "latent_aggregates.parquet",)
        return [Unit("profiles", plate_folder(plate) / "latent_profiles.parquet", made, work, beside=beside)]

    run_job(
        "latent_profiling",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={"profiled": profiled, "encoded": encoded},
        plate=plate,
    )


def aggregate_latents(plate, well, excluded, statistic, limit=math.nan):
    """One row of a well's cells, without those of some fields and those restored worse than the limit; runs in a worker."""
    cells = read_table(well_table(plate, "latent", well))
    cells = without_fields(cells, plate, well, excluded)
    if math.isfinite(limit):
        cells = cells[~(cells[ERROR] > limit)]
    return {"Metadata_Well": well} | profiling.aggregate_well(cells, latent_columns(cells), statistic=statistic)


def compare_screen(*, missing, settings, code, screened, profiled, encoded, record):
    """Say of each space of profiles how plates mix in it before and after correction, and which space serves better.

    Parameters
    ----------
    missing : list of str
        Plates that are not complete.
    settings : dict
        `comparison`, the config's section, and `parameters` of profiling.
    code : str
    screened : str
        Record of the screen's profiles of features.
    profiled : list of str
        Records of the plates' profiles of features.
    encoded : list of str
        Records of the plates' profiles of latents; empty where there are none.
    record : str
    """
    params = profiling.Params(**settings["parameters"])
    chosen = settings["comparison"]

    def plan(inputs):
        if inputs["screened"]["status"] != "done":
            raise PlateLayoutError(inputs["screened"]["reason"] or "the screen has no profiles")
        features = usable_plates(inputs["profiled"], "profiles")
        latents = {
            found["plate"]: found["artefacts"]["profiles"] for found in inputs["encoded"] if found["status"] == "done"
        }
        made = recipe(
            "comparison",
            parameters=settings,
            code=code,
            inputs={"screened": inputs["screened"]["artefacts"]["profiles"], "features": features, "latents": latents},
        )

        def work():
            yield []
            spaces = {FEATURES: read_features(sorted(features))}
            if latents:
                name, *found = read_latents(sorted(latents), params)
                spaces[name] = found
            found, scores = compare_profiles(spaces, **chosen)
            folder, profiles = screen_folder(), found.pop("profiles")
            write_table(folder / "corrected_profiles.parquet", profiles, made)
            write_table(folder / "treatments.parquet", profiling.summarize_treatments(profiles), made)
            write_table(folder / "retrieval.parquet", scores, made)
            found["content"] = file_digest((folder / "retrieval.parquet").read_bytes())
            left = left_out(inputs["profiled"]) | left_out(inputs["encoded"]) | dict.fromkeys(missing, "not complete")
            write_json(folder / "comparison.json", {"plateloom": made, "left_out": left} | plain(found))
            return Outcome(recipe=made, facts={"spaces": list(spaces)})

        return [Unit("comparison", screen_folder() / "comparison.json", made, work)]

    run_job(
        "comparison",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={"screened": screened, "profiled": profiled, "encoded": list(encoded)},
        strict=False,
    )


def compare_profiles(spaces, *, sphering=0.1, neighbors=mixing.NEIGHBORS, seed=0):
    """Compare spaces of profiles on the same wells, before and after each step of the correction.

    Parameters
    ----------
    spaces : dict of str to (DataFrame, DataFrame)
        Per space the profiles of all plates, normalized plate by plate, and the aggregates that they come from, which may have more
        rows and columns.
    sphering : float or None
        Regularization, see `plateloom.profiling.sphere_profiles`; None: do not sphere.
    neighbors : int
        See `plateloom.mixing.measure_mixing`.
    seed : int

    Returns
    -------
    found : dict
        `n_wells`, the wells that have a profile in every space; `replicates` ('other plates', 'same plate'); `spaces`, rows of `space`,
        `n_features`, `n_wells` (that have a profile in this space), `corrections` and `classes`;
        `better`, what `compare_spaces` says `by_retrieval` and `by_classes` of the spaces as far corrected as they could be; `profiles`,
        these in one table. Rows of `corrections`: `correction` (of `CORRECTIONS`), `reason` why it was not done, and
        if it was `retrieval`, `mixing` by `plate` and by `batch`, and `change` of the retrieval against the row before. Differences of
        retrieval are of what is beyond chance (see `plateloom.comparison.score_retrieval`). What cannot
        be told has a `reason` instead of numbers.
    scores : DataFrame
        What `score_retrieval` gives, with `space` and `correction`.
    """
    complete = {name: profiling.complete_profiles(normalized) for name, (normalized, _) in spaces.items()}
    wells = _shared_wells([*complete.values(), *(raw for _, raw in spaces.values())])
    if not wells:
        raise PlateLayoutError("no well has a profile" + (f" of {' and '.join(spaces)}" if len(spaces) > 1 else ""))
    rows, tables, final, by_treatment, by_plate, replicates = [], [], [], {}, {}, ""
    for name, (_, raw) in spaces.items():
        normalized = _of_wells(complete[name], wells)
        features = profiling.feature_columns(normalized)
        states, reasons, corrected = _correct(normalized, _of_wells(raw, wells), features, sphering)
        row = {"space": name, "n_features": len(features), "n_wells": len(complete[name]), "corrections": []}
        before = None
        for correction in CORRECTIONS:
            step = {"correction": correction, "reason": reasons.get(correction, "")}
            row["corrections"].append(step)
            if step["reason"]:
                continue
            scores, replicates, step["retrieval"] = _retrieve(states[correction], normalized, replicates, seed)
            if scores is not None:
                tables.append(scores.assign(space=name, correction=correction))
                by_treatment[name] = comparison.per_treatment(scores, "beyond")
                if before is not None:
                    pair = {"after": by_treatment[name], "before": before}
                    step["change"] = comparison.compare_spaces(pair, seed=seed)[0]
                before = by_treatment[name]
            step["mixing"] = _mix(states[correction], normalized, neighbors, seed)
        scores, row["classes"] = _classify(corrected[features].to_numpy(), normalized, seed)
        by_plate |= {} if scores is None else {name: scores}
        rows.append(row)
        final.append(corrected[features])
    better = {
        "by_retrieval": comparison.compare_spaces(
            by_treatment, unit="treatments with enough others on their plates to know chance", seed=seed
        ),
        "by_classes": comparison.compare_spaces(by_plate, unit="plates", seed=seed),
    }
    keys = normalized[[f"Metadata_{name}" for name in ANNOTATION if f"Metadata_{name}" in normalized]]
    found = {"n_wells": len(wells), "replicates": replicates, "spaces": rows, "better": better}
    scores = (
        pd.concat(tables, ignore_index=True)
        if tables
        else pd.DataFrame(columns=[*comparison.SCORES, "space", "correction"])
    )
    return found | {"profiles": pd.concat([keys, *final], axis=1)}, scores


def _correct(normalized, raw, features, sphering):
    """Values by correction, reasons of those that were not done, and the profiles as far corrected as they could be."""
    raw = profiling.complete_profiles(raw, features=features)
    states = {"none": comparison.standardize(raw[[name for name in features if name in raw]])}
    if not normalized["Metadata_Normalized"].all():
        reason = "too few negative controls"
        return states, {"normalized": reason, "sphered": reason}, normalized
    states["normalized"] = normalized[features].to_numpy()
    sphered, reason = normalized, "switched off"
    if sphering is not None:
        sphered, reason = profiling.sphere_profiles(normalized, regularization=sphering)
    if not reason:
        states["sphered"] = sphered[features].to_numpy()
    return states, {"sphered": reason}, sphered


def _shared_wells(tables):
    """Plate and well of the rows that all tables have, in order."""
    keys = [set(zip(table["Metadata_Plate"], table["Metadata_Well"], strict=True)) for table in tables]
    return sorted(set.intersection(*keys))


def _of_wells(table, wells):
    """The rows of these wells, in their order."""
    index = pd.MultiIndex.from_frame(table[["Metadata_Plate", "Metadata_Well"]])
    return table.iloc[index.get_indexer(pd.MultiIndex.from_tuples(wells, names=index.names))].reset_index(drop=True)


def _retrieve(values, wells, replicates, seed):
    """Scores per treatment and dose, where replicates are, and the figures or the reason why there are none."""
    try:
        scores, replicates = comparison.score_retrieval(values, wells, seed=seed)
    except ValueError as error:
        return None, replicates, {"reason": str(error)}
    mean, low, high = comparison.interval_of_mean(comparison.per_treatment(scores), seed=seed)
    figures = {"map": mean, "low": low, "high": high, "expected": scores["expected"].mean(), "n": len(scores)}
    figures |= {"n_treatments": scores["Metadata_Treatment"].nunique(), "n_found": int((scores["q"] <= ALPHA).sum())}
    return scores, replicates, figures


def _mix(values, wells, neighbors, seed):
    """Mixing by plate and by batch, or the reason why there is none."""
    found, treatments = {}, comparison.treatment_keys(wells)
    plates, batches = (wells[f"Metadata_{unit}"].fillna("").astype(str) for unit in ("Plate", "Batch"))
    for unit, names in (("plate", plates), ("batch", batches)):
        if unit == "batch" and batches.nunique() == plates.nunique():
            found[unit] = {"reason": "each plate is a batch of its own"}
            continue
        try:
            found[unit] = mixing.measure_mixing(values, names, treatments, neighbors=neighbors, seed=seed)
        except ValueError as error:
            found[unit] = {"reason": str(error)}
    return found


def _classify(values, wells, seed):
    """Balanced accuracy by held-out plate, and the figures or the reason why there are none."""
    names = wells["Metadata_Treatment"].where(wells["Metadata_Control"] != "empty").fillna("").astype(str)
    try:
        scores, facts = comparison.score_classes(
            values, names.to_numpy(), wells["Metadata_Plate"].astype(str).to_numpy()
        )
    except ValueError as error:
        return None, {"reason": str(error)}
    mean, low, high = comparison.interval_of_mean(scores, seed=seed)
    return scores, facts | {"balanced_accuracy": mean, "low": low, "high": high, "n_plates": len(scores)}


def read_features(plates, *, folder="."):
    """Profiles of features of a screen, normalized plate by plate, and the aggregates that they come from.

    Parameters
    ----------
    plates : list of str
    folder : path
        The screen's.

    Returns
    -------
    normalized, raw : DataFrame
    """
    folder = Path(folder)
    normalized = read_table(folder / screen_folder() / "profiles.parquet")
    features = profiling.feature_columns(normalized)
    columns = [*(f"Metadata_{name}" for name in ANNOTATION), *features]
    raw = [read_table(folder / plate_folder(plate) / "aggregates.parquet", columns) for plate in plates]
    return normalized, pd.concat([table for table in raw if len(table)] or raw[:1], ignore_index=True)


def read_latents(plates, params, *, folder="."):
    """Profiles of latents of a screen, with columns selected as those of features, and the aggregates that they come from.

    Parameters
    ----------
    plates : list of str
    params : plateloom.profiling.Params
        What is selected.
    folder : path
        The screen's.

    Returns
    -------
    method : str
        The encoder, by the names of the columns.
    normalized, raw : DataFrame

    Raises
    ------
    PlateLayoutError
        If the latents are of several encoders: columns of the same names mean different things.
    """
    folders = [Path(folder) / plate_folder(plate) for plate in plates]
    aggregates = [read_table(path / "latent_aggregates.parquet") for path in folders]
    wells = [(plate, well) for plate, table in zip(plates, aggregates, strict=True) for well in table["Metadata_Well"]]
    one_encoder(wells, folder=folder)
    tables = [read_table(path / "latent_profiles.parquet") for path in folders]
    normalized = [table for table in tables if table["Metadata_Normalized"].all() and len(table)]
    joined, _ = profiling.join_plates(normalized or tables)
    selected, _ = profiling.select_features(joined, params)
    raw, _ = profiling.join_plates(aggregates)
    return next(name for name in raw if name.startswith("Latent_")).split("_")[1].lower(), selected, raw
