"""Labelled wells or cells of the screen -> classifier; every cell -> class, probabilities, novelty, well by well."""

import functools
import hashlib
import logging
import re
from importlib.metadata import version

import numpy as np
import pandas as pd

import plateloom
from plateloom import profiling
from plateloom.engine import parts as engine
from plateloom.engine.parts import Outcome, Unit, remover, run_job
from plateloom.errors import ConfigError, ModelMismatchError, PlateLayoutError
from plateloom.stages.cell_labels import assign_labels, short_row
from plateloom.stages.profiling import flagged_fields, quarantined_wells
from plateloom.stages.sampling import sample_rows
from plateloom.store.cell_labels import read_cell_labels
from plateloom.store.layout import model_folder, plate_folder, well_table
from plateloom.store.provenance import read_json, recipe, write_bytes, write_json
from plateloom.store.tables import KEYS, read_metadata, read_record, read_table
from plateloom.wells import parse_well, plate_format

log = logging.getLogger(__name__)
LATENT = re.compile(r"Latent_\w+_\d+")  # not the error of a reconstruction


def train_screen(*, plates, labels, settings, code, measured, profiled, flagged, record, encoded=()):
    """Train the classifier, tested on wells, plates or batches that it has not seen.

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
    encoded : list of str
        Records of the latents of all plates, where it is they that are learned from.
    """
    folder = model_folder("classifier")

    def plan(inputs):
        cells, latents = (
            {
                (found["plate"], well): fingerprint
                for found in inputs[name]
                if found["status"] == "done" and found["plate"] in plates
                for well, fingerprint in found["artefacts"].items()
            }
            for name in ("measured", "encoded")
        )
        if settings["inputs"] == "latent":
            cells = {key: [fingerprint, latents[key]] for key, fingerprint in cells.items() if key in latents}
        known = [
            found["plate"] for found in inputs["profiled"] if found["status"] == "done" and found["plate"] in plates
        ]
        wells = _labelled_wells(settings["labels"], known)
        wells = {key: rows for key, rows in sorted(wells.items()) if key in cells}
        held = {(plate, well) for plate in {plate for plate, _ in wells} for well in quarantined_wells(plate)}
        wells = {key: rows for key, rows in wells.items() if key not in held}
        if not wells:
            raise PlateLayoutError(f"no well of a complete plate is labelled ({settings['labels']})")
        bad = {plate: flagged_fields(plate) for plate in {plate for plate, _ in wells}}
        excluded = {(p, w): sorted(field for other, field in bad[p] if other == w) for p, w in wells}
        places = _describe_places(wells)
        inputs_of = {f"{p}/{w}": [cells[p, w], excluded[p, w], wells[p, w], *places[p, w].values()] for p, w in wells}
        made = recipe("classifier", parameters=settings, code=code, inputs=inputs_of)
        work = lambda: _train(folder, wells, excluded, places, settings, made)  # noqa: E731
        return [Unit("classifier", folder / "model.json", made, work)]

    run_job(
        "classifier",
        record=record,
        plan=plan,
        code=code,
        settings=settings | {"labels": labels},
        upstream={"measured": measured, "profiled": profiled, "flagged": flagged, "encoded": list(encoded)},
        strict=False,
    )


def _labelled_wells(labels, plates):
    """Labels by (plate, well): lists of `short_row`; field and object are None for a whole well."""
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
    rows, problems = read_cell_labels(labels)
    for row in rows:
        found.setdefault((row["plate"], row["well"]), []).append(short_row(row))
    if problems:
        raise ConfigError(problems)
    return found


def _describe_places(wells):
    """Batch and place on the plate of wells (plate, well): what a classifier may be biased by."""
    plates = {}
    for plate, well in wells:
        plates.setdefault(plate, []).append(well)
    batches = {}
    for plate in plates:
        path = plate_folder(plate) / "profiles.parquet"
        known = read_metadata(path) if path.exists() else {}
        batches[plate] = str(known["Metadata_Batch"].iloc[0]) if "Metadata_Batch" in known and len(known) else ""
    shapes = {plate: plate_format(names) for plate, names in plates.items()}
    found = {}
    for plate, well in wells:
        row, column = parse_well(well)
        edge = row in (0, shapes[plate][0] - 1) or column in (0, shapes[plate][1] - 1)
        found[plate, well] = {"batch": batches[plate], "position": "edge" if edge else "inner"}
    return found


def _train(folder, wells, excluded, places, settings, made):
    """Draw labelled cells through Dask, test, train, save; the unit of `train_screen`."""
    from plateloom import classification
    from plateloom.classification.model import dumps, train
    from plateloom.registry import load_method

    quota = -(-settings["cells"] // len(wells))
    source = settings["inputs"]
    drawn = yield [(draw_labelled, p, w, rows, excluded[p, w], quota, source) for (p, w), rows in wells.items()]
    tables, lost = [table for table, _ in drawn], sum(gone for _, gone in drawn)
    if lost:
        log.warning("left out: %d labels of cells that the present segmentation does not have", lost)
    cells = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    features = input_columns(cells.drop(columns=["Label", "Metadata_CellsOfWell"]), source)
    if not len(cells):
        raise PlateLayoutError("none of the labelled wells has a cell")
    keys = list(zip(cells["Metadata_Plate"], cells["Metadata_Well"], strict=True))
    batches = {plate: places[plate, well]["batch"] for plate, well in keys}
    if settings["scheme"] == "batch" and not all(batches.values()):
        raise PlateLayoutError("classification.scheme: batch needs the batch of every labelled plate in plates.tsv")
    # A cell whose well lies in the training folds would be recognised by its well: whole wells, plates or batches are kept together.
    groups = np.array([group_of(settings["scheme"], plate, well, batches) for plate, well in keys], dtype=str)
    numbers = settings["target"] == "number"
    X, y, method = cells[features].to_numpy(float), cells["Label"].to_numpy(str), settings["method"]
    registry = classification.REGRESSORS if numbers else classification.METHODS
    params = load_method(registry, method, "classification method").Params(**settings["parameters"])
    options, kept = {"method": method, "params": params}, []
    try:
        test = _test_numbers if numbers else _test_classes
        metrics = test(X, y, groups, cells, places, settings, kept=kept, **options)
    except ValueError as error:
        raise PlateLayoutError(f"the labels do not allow an honest test: {error}") from None
    options |= {"balance": settings["balance"], "tune": settings["tune"], "versions": _versions()}
    model = train(
        X, y, groups, features=features, metrics=metrics, folds=kept, threads=engine.EXECUTION.threads, **options
    )
    data = dumps(model)
    write_bytes(folder / "model.skops", data)
    content = hashlib.sha256(data).hexdigest()
    learned = sorted({f"{plate}/{well}" for plate, well in keys})
    card = {"plateloom": made, "content": content, "card": model.card, "wells": learned, "inputs": source}
    card |= {"batches": batches, "encoder": encoder_of(learned) if source == "latent" else ""}
    write_json(folder / "model.json", card)
    score = "r2" if numbers else "balanced_accuracy"
    return Outcome(
        facts={score: metrics[score], "cells": len(cells)}
        | ({} if numbers else {"chance": metrics["chance"]})
        | ({"labels_without_cell": lost} if lost else {})
    )


def _test_classes(X, y, groups, cells, places, settings, *, kept, method, params):
    """What `evaluate` says of classes, with what labels of single cells it doubts and whether more would help."""
    from plateloom.classification.evaluation import check_labels, evaluate
    from plateloom.classification.explanation import permute_families
    from plateloom.classification.learning_curve import learn_by_steps
    from plateloom.classification.shift import grade_transfer

    known = pd.DataFrame([places[key] for key in zip(cells["Metadata_Plate"], cells["Metadata_Well"], strict=True)])
    crowd = cells["Metadata_CellsOfWell"]
    few, many = np.quantile(crowd.groupby([cells["Metadata_Plate"], cells["Metadata_Well"]]).first(), [1 / 3, 2 / 3])
    names = np.select([crowd <= few, crowd > many], [f"up to {few:.0f}", f"more than {many:.0f}"], "between")
    categories = {
        "plate": cells["Metadata_Plate"],
        "batch": known["batch"],
        "position": known["position"],
        "cells of the well": names if few < many else np.full(len(cells), ""),
    }
    chosen = {name: settings[name] for name in ("folds", "scheme", "balance", "tune", "coverage")}
    options = {"method": method, "params": params}
    metrics = evaluate(X, y, groups, categories=categories, kept=kept, **options, **chosen)
    classes, columns = (
        metrics["classes"],
        ["Metadata_Plate", "Metadata_Well", "Metadata_Field", "Metadata_ObjectNumber"],
    )
    for one in metrics["noise"]["suspects"]:
        plate, well, field, number = cells.loc[one.pop("row"), columns]
        one |= {"label": classes[one["label"]], "looks_like": classes[one["looks_like"]]}
        one |= {"plate": plate, "well": well, "field": int(field), "object": int(number)}
    X, y, groups = check_labels(X, y, groups)
    wells = (cells["Metadata_Plate"] + "/" + cells["Metadata_Well"]).to_numpy(str)
    grounds = wells, cells["Metadata_Plate"].to_numpy(str), known["batch"].to_numpy(str)
    metrics["graded"] = grade_transfer(X, y, *grounds, balance=settings["balance"], folds=settings["folds"], **options)
    names = input_columns(cells.drop(columns=["Label", "Metadata_CellsOfWell"]), settings["inputs"])
    metrics["importance"] = permute_families(X, y, groups, features=names, pipelines=kept, folds=metrics["folds"])
    truth = np.unique(y, return_inverse=True)[1]
    return metrics | {"learning": learn_by_steps(X, truth, groups, balance=settings["balance"], **options)}


def _test_numbers(X, y, groups, cells, places, settings, *, kept, method, params):
    """What `evaluate_numbers` says."""
    from plateloom.classification.regression import evaluate_numbers

    chosen = {name: settings[name] for name in ("folds", "scheme", "coverage")}
    return evaluate_numbers(X, y, groups, method=method, params=params, kept=kept, **chosen)


def _versions():
    """Versions of what a model is made with."""
    names = ("plateloom", "scikit-learn", "skops", "numpy", "scipy")
    return {name: plateloom.__version__ if name == "plateloom" else version(name) for name in names}


def group_of(scheme, plate, well, batches):
    """What is kept together when a classifier is tested: the well, its plate, or its batch."""
    return {"well": f"{plate}/{well}", "plate": plate, "batch": batches.get(plate, "")}[scheme]


def input_columns(table, source):
    """Columns that a classifier may learn from: what features measure, or the latents."""
    if source == "features":
        return profiling.feature_columns(table)
    return [name for name in table.columns if LATENT.fullmatch(name)]


def read_inputs(plate, well, table, source):
    """Cells of a well with what a classifier learns from: the table of features itself, or its keys with the latents."""
    if source == "features":
        return table
    latents = read_table(well_table(plate, "latent", well))
    latents = latents[[*KEYS, *input_columns(latents, source)]]
    kept = table[[name for name in table.columns if name.startswith("Metadata_") or name == "Label"]]
    return kept.merge(latents, on=list(KEYS), how="left", validate="one_to_one")


def encoder_of(wells):
    """Fingerprint of the encoder that the latents of wells (`P1/A01`) are of.

    Raises
    ------
    ModelMismatchError
        If they are of several: their columns have the same names and another meaning.
    """
    tables = [well_table(plate, "latent", well) for plate, _, well in (name.partition("/") for name in wells)]
    found = sorted({str((read_record(table) or {}).get("inputs", {}).get("model")) for table in tables})
    if len(found) != 1:
        raise ModelMismatchError(f"the latents of the labelled wells are of different encoders ({', '.join(found)})")
    return found[0]


def draw_labelled(plate, well, rows, excluded, quota, source):
    """What `labelled_cells` gives, with what is learned from and `Metadata_CellsOfWell`; runs in a worker."""
    table, lost = labelled_cells(plate, well, rows, excluded, quota)
    crowd = len(read_table(well_table(plate, "features", well), ["Metadata_Well"]))
    table = read_inputs(plate, well, table, source)
    if source == "latent":  # cells of fields without every channel have none
        table = table.dropna(subset=input_columns(table, source), how="all")
    return table.assign(Metadata_CellsOfWell=crowd), lost


def labelled_cells(plate, well, rows, excluded, quota):
    """Labelled cells of a well, with their class as `Label`, and how many labels have no cell any more; runs in a worker."""
    table = read_table(well_table(plate, "features", well))
    table = table[~table["Metadata_SourceField"].isin(excluded)]
    held, lost = assign_labels(plate, well, table, rows)
    names = np.array([*(row[0] for row in rows), ""], dtype=object)  # the last is that of cells without a label
    table = table.assign(Label=pd.Series(names[held], index=table.index, dtype="str"))
    table = table[table["Label"] != ""]
    return table.iloc[sample_rows(f"{plate}/{well}", len(table), quota)], len(lost)


def classify_part(*, plate, part, parts, code, trained, measured, record, encoded=()):
    """Classify the cells of a part's wells.

    Parameters
    ----------
    plate : str
    part, parts : int
    code : str
    trained, measured : str
        Records.
    record : str
    encoded : list of str
        Record of the latents of the part, where the classifier has learned from latents.
    """

    def plan(inputs):
        model = inputs["trained"]["artefacts"]["classifier"]
        cells = inputs["measured"]["artefacts"]
        for found in inputs["encoded"]:
            cells = {well: [made, found["artefacts"][well]] for well, made in cells.items()}
        return [_unit(plate, well, found, model, code) for well, found in cells.items()]

    run_job(
        "classes",
        record=record,
        plan=plan,
        code=code,
        upstream={"trained": trained, "measured": measured, "encoded": list(encoded)},
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
    described = read_json(model_folder("classifier") / "model.json")
    cells = read_table(well_table(plate, "features", well))
    if described["inputs"] == "latent":
        encoder = encoder_of([f"{plate}/{well}"])
        if encoder != described["encoder"]:
            raise ModelMismatchError(
                f"the classifier has learned from latents of the encoder {described['encoder']}, these are of {encoder}"
            )
        cells = read_inputs(plate, well, cells, "latent")
    lacking = sorted(set(model.card["features"]) - set(cells.columns))
    if lacking:
        raise ModelMismatchError(
            f"the classifier needs {len(lacking)} features that are not measured here: {lacking[:3]}"
        )
    group = group_of(model.card["metrics"]["scheme"], plate, well, described["batches"])
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
