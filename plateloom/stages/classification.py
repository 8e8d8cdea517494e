"""Labeled wells or cells of the screen -> classifier; every cell -> class, probabilities, novelty, well by well."""

import contextlib
import functools
import hashlib
import io
import logging
import shutil
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

import plateloom
from plateloom.devices import choose_device
from plateloom.engine import parts as engine
from plateloom.engine.parts import Outcome, Unit, remover, run_job
from plateloom.errors import ConfigError, DataFault, LabelError, ModelMismatchError, PlateLayoutError
from plateloom.profiling import without_surroundings
from plateloom.stages.cell_crops import States, alike_plates, cut_cells, cut_picture, shared_channels
from plateloom.stages.cell_labels import assign_labels, is_asked, short_row
from plateloom.stages.fields import flagged_fields, quarantined_wells
from plateloom.stages.latent_tables import ERROR, input_columns, join_latents, one_encoder
from plateloom.stages.sampling import sample_rows
from plateloom.store import plate as store
from plateloom.store.cell_labels import read_cell_labels
from plateloom.store.layout import model_folder, plate_folder, plate_store, well_table
from plateloom.store.provenance import read_json, recipe, write_bytes, write_json
from plateloom.store.tables import KEYS, read_metadata, read_table
from plateloom.wells import parse_well, plate_format

log = logging.getLogger(__name__)
PICTURE_UM, PICTURE_PX = 40.0, 96  # side of the cells that the page shows
FILES = ("model.skops", "model.safetensors")


def train_screen(*, plates, labels, settings, code, measured, profiled, flagged, record, encoded=(), missing=()):
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
    missing : list of str
        Plates that are not complete, which the record names.
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
        wells = _labeled_wells(settings["labels"], known)
        wells = {key: rows for key, rows in sorted(wells.items()) if key in cells}
        held = {(plate, well) for plate in {plate for plate, _ in wells} for well in quarantined_wells(plate)}
        wells = {key: rows for key, rows in wells.items() if key not in held}
        if not wells:
            raise PlateLayoutError(f"no well of a complete plate is labeled ({settings['labels']})")
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
        facts={"missing": sorted(missing)},
    )


def _labeled_wells(labels, plates):
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
        plates[plate] += list(known.get("Metadata_Well", ()))
    shapes = {plate: plate_format(names) for plate, names in plates.items()}
    found = {}
    for plate, well in wells:
        row, column = parse_well(well)
        edge = row in (0, shapes[plate][0] - 1) or column in (0, shapes[plate][1] - 1)
        found[plate, well] = {"batch": batches[plate], "position": "edge" if edge else "inner"}
    return found


def _train(folder, wells, excluded, places, settings, made):
    """Draw labeled cells through Dask, test, train, save; the unit of `train_screen`."""
    from plateloom import classification
    from plateloom.classification.evaluation import check_labels
    from plateloom.classification.model import dumps, file_name, train
    from plateloom.registry import load_method

    source, method, numbers = settings["inputs"], settings["method"], settings["target"] == "number"
    registry = classification.REGRESSORS if numbers else classification.METHODS | classification.CROP_METHODS
    params = load_method(registry, method, "classification method").Params(**settings["parameters"])
    work, cutting, pixel_size_um, left_out = folder / f".work-{made['fingerprint']}", {}, None, {}
    for old in folder.glob(".work-*"):
        if old != work:
            shutil.rmtree(old)
    if source == "crops":
        work.mkdir(parents=True, exist_ok=True)
        features, pixel_size_um, left_out = alike_plates(dict(sorted(Counter(plate for plate, _ in wells).items())))
        for plate, why in left_out.items():
            log.warning("%s is left out of the training: it has %s", plate, why)
        wells = {(plate, well): rows for (plate, well), rows in wells.items() if plate not in left_out}
        cutting = {"crop_um": params.crop_um, "out_px": params.out_px, "channels": features, "folder": str(work)}
    quota = -(-settings["cells"] // len(wells))
    drawn = yield [(draw_labeled, p, w, rows, excluded[p, w], quota, source, cutting) for (p, w), rows in wells.items()]
    tables, lost = [table for table, _ in drawn], sum(gone for _, gone in drawn)
    if lost:
        log.warning("left out: %d labels of cells that the present segmentation does not have", lost)
    cells = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    if source != "crops":
        features = input_columns(cells.drop(columns=["Label", "Metadata_CellsOfWell"]), source)
        if source == "features" and not settings["surroundings"]:
            features = without_surroundings(features)
    if not len(cells):
        raise PlateLayoutError("none of the labeled wells has a cell")
    keys = list(zip(cells["Metadata_Plate"], cells["Metadata_Well"], strict=True))
    learned = sorted({f"{plate}/{well}" for plate, well in keys})
    encoder = one_encoder(sorted(set(keys))) if source == "latent" else ""
    batches = {plate: places[plate, well]["batch"] for plate, well in keys}
    if settings["scheme"] == "batch" and not all(batches.values()):
        raise PlateLayoutError("classification.scheme: batch needs the batch of every labeled plate in plates.tsv")
    # A cell whose well lies in the training folds would be recognized by its well: whole wells, plates or batches are kept together.
    groups = np.array([group_of(settings["scheme"], plate, well, batches) for plate, well in keys], dtype=str)
    X = read_crops([crop_file(work, *key) for key in wells], len(cells)) if cutting else cells[features].to_numpy(float)
    y = cells["Label"].to_numpy(str)
    options, kept = {"method": method, "params": params}, []
    with _networks_here(work) if cutting else contextlib.nullcontext():
        try:
            test = _test_numbers if numbers else _test_classes
            metrics = test(X, y, groups, cells, places, settings, kept=kept, features=features, **options)
        except LabelError as error:
            raise PlateLayoutError(f"the labels do not allow an honest test: {error}") from error
        options |= {"balance": settings["balance"], "tune": settings["tune"], "versions": _versions(bool(cutting))}
        options |= {"pixel_size_um": pixel_size_um, "threads": engine.EXECUTION.threads}
        options["errors"] = cells[ERROR].to_numpy(float) if source == "latent" and ERROR in cells else None
        model = train(X, y, groups, features=features, metrics=metrics, folds=kept, **options)
        pictures = {}
        if not numbers:
            X, y, groups = check_labels(X, y, groups)
            metrics["pairs"] = _find_pairs(model, X, y, groups, cells)
        if cutting:
            metrics["attribution"], pictures = _explain_network(X, y, groups, kept, metrics["folds"])
    pairs = [(row[end]["row"], row[end]) for row in metrics.get("pairs", ()) for end in ("typical", "nearest")]
    shown = {"crop_um": params.crop_um, "channels": features} if cutting else {"crop_um": PICTURE_UM}
    found = yield from _cut_pictures(pairs, cells, **shown)
    if found:
        shown["channels"], pictures["pairs"] = found
    for _, end in pairs:
        del end["row"]
    data = dumps(model)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    _write_pictures(folder / "examples.safetensors", pictures)
    write_bytes(folder / file_name(model.card), data)
    content = hashlib.sha256(data).hexdigest()
    card = {"plateloom": made, "content": content, "card": model.card, "wells": learned, "inputs": source}
    card |= {"batches": batches, "encoder": encoder}
    card["whole"] = sum(any(row[2] is None for row in wells[key]) for key in set(keys))  # labeled with all their cells
    if left_out:
        card["left_out"] = left_out
    if found:
        card["pictures"] = shown
    write_json(folder / "model.json", card)
    shutil.rmtree(work, ignore_errors=True)
    score = "r2" if numbers else "balanced_accuracy"
    return Outcome(
        facts={score: metrics[score], "cells": len(cells)}
        | ({} if numbers else {"chance": metrics["chance"]})
        | ({"file": file_name(model.card)} if cutting else {})
        | ({"pictures": sum(len(values) for values in pictures.values())} if pictures else {})
        | ({"labels_without_cell": lost} if lost else {})
        | ({"left_out": left_out} if left_out else {})
    )


def _networks_here(folder):
    """Where networks are trained here: on which device, with a state per epoch."""
    import torch

    from plateloom.classification.crop_network import running

    torch.set_num_threads(engine.EXECUTION.threads)
    return running(device=choose_device(engine.EXECUTION.device), states=States(folder))


def _find_pairs(model, X, y, groups, cells):
    """Pairs of cells that are nearly alike and of different classes, with where they are; `row` is to be taken out."""
    from plateloom.classification.explanation import find_pairs, held_out_probability
    from plateloom.classification.model import input_space

    tested, classes = model.card["metrics"], model.card["classes"]
    options = {"pipelines": model.folds, "folds": tested["folds"]}
    probability = held_out_probability(X, groups, temperature=tested["calibration"]["temperature"], **options)
    named = {} if X.ndim == 4 else {"features": model.card["features"], "X": X}
    truth = np.searchsorted(classes, y)
    found = find_pairs(probability, truth, input_space(model.pipeline, X), **named)
    for one in found:
        one |= {"class": classes[one["class"]], "other": classes[one["other"]]}
        for end in ("typical", "nearest"):
            plate, well, field, number = cells.loc[one[end], list(KEYS)]
            place = {"plate": plate, "well": well, "field": int(field), "object": int(number)}
            one[end] = {"row": one[end], **place}
    return found


def _explain_network(X, y, groups, kept, folds):
    """What `explain_network` gives, with the labels of the cells in the pictures instead of their rows."""
    if find_spec("captum") is None:
        return {"reason": "the package captum is not installed"}, {}
    from plateloom.classification.attribution import explain_network

    found, pictures = explain_network(X, y, groups, pipelines=kept, folds=folds)
    found["examples"] = y[pictures.pop("examples")].tolist()
    return found, {f"attribution.{name}": values for name, values in pictures.items()}


def _cut_pictures(pairs, cells, *, crop_um, channels=None):
    """Cut out the cells (row, description) of pairs through Dask: channels and pictures, which the descriptions number; or None.

    What goes wrong is logged: no picture is worth a trained model.
    """
    rows = sorted({row for row, _ in pairs if plate_store(cells["Metadata_Plate"][row]).exists()})
    if not rows:
        return None
    try:
        channels = channels or shared_channels(sorted({cells["Metadata_Plate"][row] for row in rows}))
    except (DataFault, OSError):
        log.warning("there are no pictures for the page", exc_info=True)
        return None
    found = yield [(cut_picture, cells.loc[[row], list(KEYS)], crop_um, PICTURE_PX, channels) for row in rows]
    for failed in (one for one in found if isinstance(one, str)):
        log.warning("a picture for the page could not be cut: %s", failed)
    cut = {row: one for row, one in zip(rows, found, strict=True) if not isinstance(one, str)}
    for row, end in pairs if cut else ():
        end["picture"] = list(cut).index(row) if row in cut else None
    return (channels, _stretch(np.concatenate(list(cut.values())))) if cut else None


def _stretch(crops):
    """Crops to show side by side: what is not there black, all with the same contrast."""
    from plateloom.latent.crops import intensity_range, normalize_crops

    return normalize_crops(np.nan_to_num(crops), *intensity_range(crops, (0.5, 99.9)))


def _write_pictures(path, pictures):
    """Keep pictures for the page; remove those of an earlier model where there are none."""
    from safetensors.numpy import save

    if pictures:
        kept = {name: np.ascontiguousarray(values, np.float16) for name, values in pictures.items()}
        write_bytes(path, save(kept))
    else:
        path.unlink(missing_ok=True)


def _test_classes(X, y, groups, cells, places, settings, *, kept, features, method, params):
    """What `evaluate` says of classes, with what labels of single cells it doubts and whether more would help."""
    from plateloom.classification.evaluation import check_labels, evaluate
    from plateloom.classification.learning_curve import learn_by_steps
    from plateloom.classification.shift import grade_transfer

    categories = _categories(cells, places)
    chosen = {name: settings[name] for name in ("folds", "scheme", "balance", "tune", "coverage")}
    options = {"method": method, "params": params}
    wells = (cells["Metadata_Plate"] + "/" + cells["Metadata_Well"]).to_numpy(str)
    asked = cells["Metadata_Asked"].to_numpy(bool)
    metrics = evaluate(X, y, groups, categories=categories, wells=wells, asked=asked, kept=kept, **options, **chosen)
    classes, columns = (
        metrics["classes"],
        ["Metadata_Plate", "Metadata_Well", "Metadata_Field", "Metadata_ObjectNumber"],
    )
    for one in metrics["noise"]["suspects"]:
        plate, well, field, number = cells.loc[one.pop("row"), columns]
        one |= {"label": classes[one["label"]], "looks_like": classes[one["looks_like"]]}
        one |= {"plate": plate, "well": well, "field": int(field), "object": int(number)}
    X, y, groups = check_labels(X, y, groups)
    grounds, apart = (wells, *(categories[name].to_numpy(str) for name in ("plate", "batch"))), []
    metrics["graded"] = grade_transfer(
        X, y, *grounds, balance=settings["balance"], folds=settings["folds"], kept=apart, **options
    )
    by_plate = (grounds[1], *zip(*apart, strict=True)) if apart and settings["scheme"] == "well" else None
    metrics |= _explain(X, y, groups, method, by_plate, features=features, pipelines=kept, folds=metrics["folds"])
    metrics["importance_by"] = "plate" if by_plate else settings["scheme"]
    truth = np.unique(y, return_inverse=True)[1]
    return metrics | {"learning": learn_by_steps(X, truth, groups, balance=settings["balance"], **options)}


def _categories(cells, places):
    """What a model may be biased by: plate, batch, position and crowding of each labeled cell."""
    known = pd.DataFrame([places[key] for key in zip(cells["Metadata_Plate"], cells["Metadata_Well"], strict=True)])
    crowd = cells["Metadata_CellsOfWell"]
    few, many = np.quantile(crowd.groupby([cells["Metadata_Plate"], cells["Metadata_Well"]]).first(), [1 / 3, 2 / 3])
    names = np.select([crowd <= few, crowd > many], [f"up to {few:.0f}", f"more than {many:.0f}"], "between")
    return {
        "plate": cells["Metadata_Plate"],
        "batch": known["batch"],
        "position": known["position"],
        "cells of the well": names if few < many else np.full(len(cells), ""),
    }


def _test_numbers(X, y, groups, cells, places, settings, *, kept, features, method, params):
    """What `evaluate_numbers` says, and what the predictions go by."""
    from plateloom.classification.regression import check_numbers, evaluate_numbers

    chosen = {name: settings[name] for name in ("folds", "scheme", "coverage")}
    wells = (cells["Metadata_Plate"] + "/" + cells["Metadata_Well"]).to_numpy(str)
    chosen |= {"categories": _categories(cells, places), "wells": wells}
    metrics = evaluate_numbers(X, y, groups, method=method, params=params, kept=kept, **chosen)
    X, y, groups = check_numbers(X, y, groups)
    return metrics | _explain(X, y, groups, method, features=features, pipelines=kept, folds=metrics["folds"])


def _explain(X, y, groups, method, by_plate=None, **tested):
    """Which families of features count, and, of trees, how far each feature moves them; the former on plates held out, if there
    are any: the plate of each cell, pipelines, and folds."""
    from plateloom.classification.explanation import TREES, explain_trees, permute_families

    plates, pipelines, folds = by_plate or (groups, tested["pipelines"], tested["folds"])
    found = {"importance": permute_families(X, y, plates, **tested | {"pipelines": pipelines, "folds": folds})}
    if method in TREES:
        found["trees"] = {"reason": "the package shap is not installed"}
        if find_spec("shap") is not None:
            found["trees"] = explain_trees(X, y, groups, **tested)
    return found


def _versions(network):
    """Versions of what a model is made with."""
    names = ("plateloom", "scikit-learn", *(("torch", "safetensors") if network else ("skops",)), "numpy", "scipy")
    return {name: plateloom.__version__ if name == "plateloom" else version(name) for name in names}


def group_of(scheme, plate, well, batches):
    """What is kept together when a classifier is tested: the well, its plate, or its batch."""
    return {"well": f"{plate}/{well}", "plate": plate, "batch": batches.get(plate, "")}[scheme]


def crop_file(folder, plate, well):
    """Where the crops of a well's labeled cells lie while the classifier is trained."""
    return Path(folder) / f"{plate}-{well}.npy"


def read_crops(files, count):
    """All crops of some files, float16 of shape (count, C, H, W), of which never more than one file's are in memory twice."""
    crops, start = None, 0
    for file in files:
        some = np.load(file)
        crops = np.empty((count, *some.shape[1:]), some.dtype) if crops is None else crops
        crops[start : start + len(some)] = some
        start += len(some)
    return crops


def draw_labeled(plate, well, rows, excluded, quota, source, cutting):
    """What `labeled_cells` gives, with what is learned from and `Metadata_CellsOfWell`; runs in a worker.

    Of crops only the keys; the crops lie in a file, in the same order.
    """
    table, lost = labeled_cells(plate, well, rows, excluded, quota)
    crowd = len(read_table(well_table(plate, "features", well), ["Metadata_Well"]))
    if source == "crops":
        options = dict(cutting)
        path = crop_file(options.pop("folder"), plate, well)
        table = table[[*KEYS, "Label", "Metadata_Asked"]].reset_index(drop=True)
        crops = np.full((len(table), len(options["channels"]), *[options["out_px"]] * 2), np.nan, np.float16)
        for some, block in cut_cells(plate, well, table, **options):
            crops[some] = block
        there = np.isfinite(crops).all(axis=(1, 2, 3))
        buffer = io.BytesIO()
        np.save(buffer, crops[there])
        write_bytes(path, buffer.getvalue())
        return table[there].assign(Metadata_CellsOfWell=crowd), lost
    if source == "latent":  # cells of fields without every channel have none
        table = join_latents(plate, well, table[[*KEYS, "Label", "Metadata_Asked"]], error=True)
        table = table.dropna(subset=input_columns(table, source), how="all")
    return table.assign(Metadata_CellsOfWell=crowd), lost


def labeled_cells(plate, well, rows, excluded, quota):
    """Labeled cells of a well, with `Label` and `Metadata_Asked`, and how many labels have no cell any more; runs in a worker."""
    table = read_table(well_table(plate, "features", well))
    table = table[~table["Metadata_SourceField"].isin(excluded)]
    held, lost = assign_labels(plate, well, table, rows)
    names = np.array([*(row[0] for row in rows), ""], dtype=object)  # the last is that of cells without a label
    asked = np.array([*map(is_asked, rows), False])[held]
    table = table.assign(Label=pd.Series(names[held], index=table.index, dtype="str"), Metadata_Asked=asked)
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
        (table,) = yield [(classify_cells, plate, well, model, engine.EXECUTION.device)]
        return Outcome(table)

    return Unit(well, well_table(plate, "classes", well), made, work)


def classify_cells(plate, well, fingerprint, policy="cpu"):
    """Classes of a well's cells; runs in a worker."""
    from plateloom.classification.model import predict

    model = load_classifier(fingerprint)
    described = read_json(model_folder("classifier") / "model.json")
    if described["inputs"] == "crops":
        return _classify_by_crops(plate, well, model, described, policy)
    path = well_table(plate, "features", well)
    if described["inputs"] == "latent":
        cells = join_latents(plate, well, read_table(path, list(KEYS)), encoder=described["encoder"], error=True)
    else:
        cells = read_table(path)
    lacking = sorted(set(model.card["features"]) - set(cells.columns))
    if lacking:
        raise PlateLayoutError(
            f"the classifier needs {len(lacking)} features that are not measured here: {lacking[:3]}"
        )
    group = group_of(model.card["metrics"]["scheme"], plate, well, described["batches"])
    errors = cells[ERROR].to_numpy(float) if ERROR in cells else None
    found = predict(model, cells[model.card["features"]], group=group, errors=errors)
    return cells[list(KEYS)].join(found.assign(Class=found["Class"].fillna("").astype(str)))


def _classify_by_crops(plate, well, model, described, policy):
    """Classes of a well's cells by a network, block by block of crops."""
    from plateloom.classification.crop_network import running
    from plateloom.classification.model import predict_crops

    cells = read_table(well_table(plate, "features", well), list(KEYS))
    params, channels = model.card["params"], model.card["features"]
    cutting = {"crop_um": params["crop_um"], "out_px": params["out_px"], "channels": channels}
    group = group_of(model.card["metrics"]["scheme"], plate, well, described["batches"])
    options = {"channels": channels, "group": group}
    nothing = np.zeros((0, len(channels), params["out_px"], params["out_px"]), np.float16)
    found = []
    with running(device=choose_device(policy)):
        for field, own in cells.groupby("Metadata_Field"):
            path = store.field_path(plate_store(plate), well, int(field))
            size = store.describe_image(path)["pixel_size_um"]
            for rows, crops in cut_cells(plate, well, own, **cutting):
                crops = crops.astype(np.float16)  # as in training
                try:
                    classes = predict_crops(model, crops, pixel_size_um=size, index=own.index[rows], **options)
                except ModelMismatchError as error:
                    raise PlateLayoutError(f"{plate}: {error}") from error
                found.append(classes)
        if not found:  # a table with all columns
            found = [predict_crops(model, nothing, pixel_size_um=model.card["crops"]["pixel_size_um"], **options)]
    found = pd.concat(found)
    return cells.join(found.assign(Class=found["Class"].fillna("").astype(str)))


def load_classifier(fingerprint):
    """The screen's classifier, if it is the one expected.

    Raises
    ------
    ModelMismatchError
        If another model lies there, or its file was altered.
    """
    from plateloom.classification.model import file_name

    folder = model_folder("classifier")
    described = read_json(folder / "model.json")
    if described is None or described["plateloom"]["fingerprint"] != fingerprint:
        raise ModelMismatchError(f"{folder} does not hold the classifier {fingerprint}; run again")
    return _load_model(folder / file_name(described["card"]), described["content"])


@functools.lru_cache(maxsize=1)
def _load_model(path, content):
    """The classifier in a file that has this digest."""
    from plateloom.classification.model import loads

    return loads(path.read_bytes(), sha256=content)
