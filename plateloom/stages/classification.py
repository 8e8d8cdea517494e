"""Labelled wells or cells of the screen -> classifier; every cell -> class, probabilities, novelty, well by well."""

import functools
import hashlib

import pandas as pd

from plateloom import profiling
from plateloom.engine import parts as engine
from plateloom.engine.parts import Outcome, Unit, remover, run_job
from plateloom.errors import ConfigError, ModelMismatchError, PlateLayoutError
from plateloom.stages.profiling import flagged_fields
from plateloom.stages.sampling import sample_rows
from plateloom.store.layout import model_folder, plate_folder, well_table
from plateloom.store.provenance import read_json, recipe, write_bytes, write_json
from plateloom.store.sheets import read_sheet
from plateloom.store.tables import KEYS, read_table
from plateloom.wells import parse_well, well_name


def train_screen(*, plates, labels, settings, code, measured, profiled, flagged, record):
    """Train the classifier, tested on wells or plates that it has not seen.

    Parameters
    ----------
    plates : list of str
        Plates that are complete.
    labels : str
        Digest of the table of labels.
    settings : dict
        The config's section `classification`.
    code : str
    measured, profiled, flagged : list of str
        Records of all plates.
    record : str
    """
    folder = model_folder("classifier")

    def plan(inputs):
        cells = {
            (found["plate"], well): fingerprint
            for found in inputs["measured"]
            if found["status"] == "done" and found["plate"] in plates
            for well, fingerprint in found["artefacts"].items()
        }
        known = [
            found["plate"] for found in inputs["profiled"] if found["status"] == "done" and found["plate"] in plates
        ]
        wells = _labelled_wells(settings["labels"], known)
        wells = {key: rows for key, rows in sorted(wells.items()) if key in cells}
        if not wells:
            raise PlateLayoutError(f"no well of a complete plate is labelled ({settings['labels']})")
        bad = {plate: flagged_fields(plate) for plate in {plate for plate, _ in wells}}
        excluded = {(p, w): sorted(field for other, field in bad[p] if other == w) for p, w in wells}
        inputs_of = {f"{p}/{w}": [cells[p, w], excluded[p, w], wells[p, w]] for p, w in wells}
        made = recipe("classifier", parameters=settings, code=code, inputs=inputs_of)
        return [
            Unit("classifier", folder / "model.json", made, lambda: _train(folder, wells, excluded, settings, made))
        ]

    run_job(
        "classifier",
        record=record,
        plan=plan,
        code=code,
        settings=settings | {"labels": labels},
        upstream={"measured": measured, "profiled": profiled, "flagged": flagged},
        strict=False,
    )


def _labelled_wells(labels, plates):
    """Labels by (plate, well): list of [class, field, object]; field and object are None for a whole well."""
    found = {}
    if labels == "controls":
        for plate in plates:
            path = plate_folder(plate) / "profiles.parquet"
            if not path.exists():
                continue
            wells = read_table(path, ["Metadata_Well", "Metadata_Control"])
            for well, control in wells.itertuples(index=False):
                if control in ("negative", "positive"):
                    found[plate, well] = [[control, None, None]]
        return found
    rows, problems = read_sheet(labels, {"plate", "well", "class"}, None, usual=("field", "object"))
    for line, row in rows:
        try:
            key = row["plate"], well_name(*parse_well(row["well"]))
            which = [int(row[name]) if row.get(name) else None for name in ("field", "object")]
        except ValueError as error:
            problems.append(f"{labels}:{line}: {error}")
            continue
        found.setdefault(key, []).append([row["class"], *which])
    if problems:
        raise ConfigError(problems)
    return found


def _train(folder, wells, excluded, settings, made):
    """Draw labelled cells through Dask, test, train, save; the unit of `train_screen`."""
    from plateloom import classification
    from plateloom.classification.evaluation import evaluate
    from plateloom.classification.model import dumps, train
    from plateloom.registry import load_method

    quota = -(-settings["cells"] // len(wells))
    tables = yield [(labelled_cells, p, w, rows, excluded[p, w], quota) for (p, w), rows in wells.items()]
    cells = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    features = profiling.feature_columns(cells)
    if not len(cells):
        raise PlateLayoutError("none of the labelled wells has a cell")
    # A cell whose well lies in the training folds would be recognised by its well: whole wells or plates are kept together.
    groups = (
        cells["Metadata_Plate"]
        if settings["scheme"] == "plate"
        else cells["Metadata_Plate"] + "/" + cells["Metadata_Well"]
    )
    X, y = cells[features].to_numpy(float), cells["Label"].to_numpy(str)
    method, groups = settings["method"], groups.to_numpy(str)
    params = load_method(classification.METHODS, method, "classification method").Params(**settings["parameters"])
    options, kept = {"folds": settings["folds"], "scheme": settings["scheme"]}, []
    try:
        metrics = evaluate(X, y, groups, method=method, params=params, kept=kept, **options)
    except ValueError as error:
        raise PlateLayoutError(f"the labels do not allow an honest test: {error}") from None
    threads = engine.EXECUTION.threads
    options = {"features": features, "method": method, "params": params, "metrics": metrics}
    model = train(X, y, groups, folds=kept, threads=threads, **options)
    data = dumps(model)
    write_bytes(folder / "model.skops", data)
    content = hashlib.sha256(data).hexdigest()
    learned = sorted((cells["Metadata_Plate"] + "/" + cells["Metadata_Well"]).unique())
    card = {"plateloom": made, "content": content, "card": model.card, "wells": learned}
    write_json(folder / "model.json", card)
    return Outcome(
        facts={"balanced_accuracy": metrics["balanced_accuracy"], "chance": metrics["chance"], "cells": len(cells)}
    )


def labelled_cells(plate, well, rows, excluded, quota):
    """Labelled cells of a well, with their class as `Label`; runs in a worker."""
    table = read_table(well_table(plate, "features", well))
    table = table[~table["Metadata_SourceField"].isin(excluded)]
    label = pd.Series("", index=table.index, dtype="str")
    for name, field, number in rows:
        chosen = pd.Series(True, index=table.index)
        if field is not None:
            chosen &= table["Metadata_Field"] == field
        if number is not None:
            chosen &= table["Metadata_ObjectNumber"] == number
        label[chosen] = name
    table = table.assign(Label=label)
    table = table[table["Label"] != ""]
    return table.iloc[sample_rows(f"{plate}/{well}", len(table), quota)]


def classify_part(*, plate, part, parts, code, trained, measured, record):
    """Classify the cells of a part's wells.

    Parameters
    ----------
    plate : str
    part, parts : int
    code : str
    trained, measured : str
        Records.
    record : str
    """

    def plan(inputs):
        model = inputs["trained"]["artefacts"]["classifier"]
        return [_unit(plate, well, found, model, code) for well, found in inputs["measured"]["artefacts"].items()]

    run_job(
        "classes",
        record=record,
        plan=plan,
        code=code,
        upstream={"trained": trained, "measured": measured},
        plate=plate,
        part=part,
        parts=parts,
        remove=remover(plate_folder(plate) / "classes", part=part, parts=parts),
    )


def _unit(plate, well, cells, model, code):
    made = recipe("classes", parameters={}, code=code, inputs={"cells": cells, "model": model})

    def work():
        (table,) = yield [(classify_cells, plate, well, model)]
        return Outcome(table)

    return Unit(well, well_table(plate, "classes", well), made, work)


def classify_cells(plate, well, fingerprint):
    """Classes of a well's cells; runs in a worker."""
    from plateloom.classification.model import predict

    model = load_classifier(fingerprint)
    cells = read_table(well_table(plate, "features", well))
    lacking = sorted(set(model.card["features"]) - set(cells.columns))
    if lacking:
        raise ModelMismatchError(
            f"the classifier needs {len(lacking)} features that are not measured here: {lacking[:3]}"
        )
    group = plate if model.card["metrics"]["scheme"] == "plate" else f"{plate}/{well}"
    found = predict(model, cells[model.card["features"]], group=group)
    return cells[list(KEYS)].join(found.assign(Class=found["Class"].fillna("").astype(str)))


@functools.lru_cache(maxsize=1)
def load_classifier(fingerprint):
    """The screen's classifier, if it is the one expected.

    Raises
    ------
    ModelMismatchError
        If another model lies there, or its file was altered.
    """
    from plateloom.classification.model import loads

    folder = model_folder("classifier")
    described = read_json(folder / "model.json")
    if described is None or described["plateloom"]["fingerprint"] != fingerprint:
        raise ModelMismatchError(f"{folder} does not hold the classifier {fingerprint}; run again")
    return loads((folder / "model.skops").read_bytes(), sha256=described["content"])
