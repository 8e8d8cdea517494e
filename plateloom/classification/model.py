"""A trained classifier: what it is, how it is applied and stored (skops, networks safetensors; never pickle, which runs what
it is given)."""

import hashlib
import importlib
import io
import json
import re
import sys
import threading
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from plateloom.classification import CROP_METHODS, REGRESSORS
from plateloom.classification.calibration import apply_temperature, set_members
from plateloom.classification.cnn import SAME_PIXEL
from plateloom.classification.evaluation import check_labels
from plateloom.classification.fitting import fit_method, fit_quietly, make_pipeline, search_params
from plateloom.classification.regression import check_numbers
from plateloom.errors import ModelMismatchError
from plateloom.latent.principal import principal_axes
from plateloom.registry import load_method
from plateloom.schema import schema_hash

# What skops may build beyond numpy's types and scikit-learn's losses: what every pipeline is made of, and what methods need.
TRUSTED = (
    "numpy.dtype",
    "sklearn.pipeline.Pipeline",
    "sklearn.impute._base.SimpleImputer",
    "sklearn.preprocessing._data.StandardScaler",
    "sklearn.linear_model._logistic.LogisticRegression",  # logistic
    "sklearn.linear_model._ridge.Ridge",  # ridge
    "sklearn.ensemble._forest.RandomForestClassifier",  # random_forest
    "sklearn.ensemble._forest.RandomForestRegressor",  # forest_regression
    "sklearn.tree._classes.DecisionTreeClassifier",
    "sklearn.tree._classes.DecisionTreeRegressor",
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingClassifier",  # gradient_boosting
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.preprocessing._label.LabelEncoder",
    "plateloom.classification.estimators.MarginSVM",  # linear_svm
    "plateloom.classification.estimators.VotingNeighbors",  # nearest_neighbors
)
FORMAT = "plateloom-classifier-5"
CROP_FORMAT = "plateloom-crop-classifier-3"
OLDER = {"plateloom-classifier-4", "plateloom-crop-classifier-2"}  # one unit of novelty for all classes
BLOCK = 512  # rows per matrix product; always full, so that no row's rounding depends on how many others came with it
REFERENCE_CELLS = 2000
MEASURED_CELLS = 10_000  # that units of novelty are told by
MOST_AXES = 20
NEIGHBOR = 5
NOVEL = 0.99
FEW_CELLS = 100  # have no quantile of their own
_IMPORTING = threading.Lock()


@dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Attributes
    ----------
    pipeline : sklearn.pipeline.Pipeline
        Imputer, scaler, estimator; of crops the estimator alone. Its classes are positions in ``card["classes"]``.
    card : dict
        JSON: `classes` (none where labels are numbers), `features` (of crops the channels), `schema` (their hash), `crops` (of
        crops `pixel_size_um`), `training` (of a network its losses and the epoch kept), `method`, `params`, `balance`, `tuned`,
        `groups`, `novelty` (what counts as 1, and `held_out`: rows of `class`, `cells`, `novel`, the share of cells that is novel
        to their fold of the test), `counts` (cells per class), `metrics` (of `evaluate` or `evaluate_numbers`, or None), `versions`, `warnings`.
    novelty : dict of str to ndarray
        `mean`, `axes`, `reference`, `group` and `class` (of each reference cell, its place in ``card["groups"]`` and
        ``card["classes"]``; 0 of numbers), `unit` per class, with errors `error_unit`: see `predict`.
    folds : list of sklearn.pipeline.Pipeline
        Of the test on the card, in the order of its `folds`: each has not seen that fold's groups.
    """

    pipeline: object
    card: dict
    novelty: dict
    folds: list = field(default_factory=list)

    def pipeline_for(self, group):
        """The pipeline for cells of a well or plate: of a labeled one the fold's that has not learned from it."""
        tested = (self.card["metrics"] or {}).get("folds", [])
        for fold, pipeline in zip(tested, self.folds, strict=False):
            if group in fold["groups"]:
                return pipeline
        return self.pipeline


def train(
    X,
    y,
    groups,
    *,
    features,
    method,
    params,
    balance="weights",
    tune=False,
    metrics=None,
    folds=(),
    versions=None,
    pixel_size_um=None,
    errors=None,
    seed=0,
    threads=1,
):
    """Train on all labeled cells.

    Parameters
    ----------
    X : array of float, shape (N, F) or (N, F, H, W)
        Features of the labeled cells; NaN is imputed. Or crops of them.
    y : array of str or float, shape (N,)
        Their classes; numbers if `method` is one of `plateloom.classification.REGRESSORS`.
    groups : array of str, shape (N,)
        Their wells, plates or batches, as for `evaluate`.
    features : sequence of str, length F
        Names of the columns; of crops their channels.
    method : str
        A name in `plateloom.classification.METHODS`, `CROP_METHODS` or `REGRESSORS`.
    params : Params
        Of that method.
    balance, tune, seed
        As for `evaluate`; the settings found are on the card. Of no influence on numbers.
    metrics : dict, optional
        What `evaluate` or `evaluate_numbers` returned for the same cells: goes on the card. Probabilities are calibrated and
        sets are made by it.
    folds : sequence of sklearn.pipeline.Pipeline
        What was kept of its folds.
    versions : dict, optional
        Versions of software: goes on the card.
    pixel_size_um : float, optional
        Of the images that crops were cut from [µm/px].
    errors : array of float, shape (N,), optional
        How badly an autoencoder reconstructs each cell: `predict` calls those new, too, that are reconstructed worse.
    threads : int
        For methods on features that can use them; of no influence on the result. A network runs in as many as torch is set to,
        on which its last digits depend.

    Returns
    -------
    Classifier
    """
    features = list(features)
    if np.ndim(X) in (2, 4) and np.shape(X)[1] != len(features):
        raise ValueError(f"Found {np.shape(X)[1]} columns or channels and {len(features)} names.")
    if method in REGRESSORS:
        X, y, groups = check_numbers(X, y, groups)
        classes, counts = [], {}
        module = load_method(REGRESSORS, method, "regression method")
        pipeline, notes = fit_quietly(make_pipeline(module.build(params)), X, y, threads=threads)
    else:
        X, y, groups = check_labels(X, y, groups)
        classes, truth = np.unique(y, return_inverse=True)
        counts = {str(name): int((y == name).sum()) for name in classes}
        options = {"method": method, "balance": balance, "seed": seed}
        if tune:
            params = search_params(X, truth, groups, params=params, **options)
        pipeline, notes = fit_method(X, truth, groups, params=params, threads=threads, **options)
    card = {
        "classes": [str(name) for name in classes],
        "features": features,
        "schema": schema_hash(features),
        "method": method,
        "params": params.model_dump(mode="json"),
        "balance": balance,
        "tuned": bool(tune),
        "groups": sorted(set(groups.tolist())),
        "counts": counts,
        "metrics": metrics,
        "versions": dict(versions or {}),
        "warnings": notes,
    }
    if method in CROP_METHODS:
        network = pipeline["estimator"]
        card["crops"] = {"pixel_size_um": pixel_size_um}
        card["training"] = {"losses": network.history_, "epoch": network.epoch_}
    kind = np.zeros(len(y), int) if method in REGRESSORS else truth
    novelty = _fit_novelty(pipeline, X, kind, groups, errors)
    held = _test_novelty(novelty, folds, (metrics or {}).get("folds", ()), X, kind, groups, errors)
    units = {name: novelty[name].tolist() for name in ("unit", "error_unit") if name in novelty}
    card["novelty"] = {"quantile": NOVEL, "reference_cells": len(novelty["reference"])} | units
    card["novelty"]["held_out"] = [
        {"class": name, "cells": int(own.sum()), "novel": float((held[own] > 1).mean())}
        for c, name in enumerate(card["classes"] or [""])
        if (own := (kind == c) & np.isfinite(held)).any()
    ]
    return Classifier(pipeline, card, novelty, list(folds))


def predict(model, table, *, group=None, errors=None):
    """Classify cells.

    Parameters
    ----------
    model : Classifier
    table : DataFrame, shape (N, ...)
        Exactly the model's features in their order; `Metadata_*` columns are left out of account.
    group : str, optional
        The well or plate that the cells are of, as it was given to `train`. Labeled cells would be given back their
        labels: where the model has learned from the group, that fold of its test decides that has not.
    errors : array of float, shape (N,), optional
        How badly an autoencoder reconstructs each cell; NaN where that is not known.

    Returns
    -------
    DataFrame, shape (N, 3 + number of classes)
        Index of the table; `Class` (str), `Probability_{class}` (float32, calibrated where the card has metrics) per class,
        `Set_size` (uint8): how many classes cannot be excluded at the coverage on the card; 1: the class is certain, more:
        it abstains, 0: the cell is unlike all classes. `Novelty` (float32): how far the
        cell is from the labeled ones; above 1 it is farther than 99 % of labeled cells near the same class are from those of
        other groups, and its class means little. A cell without any value has class None, set size 0 and NaN. Of numbers `Class` (None),
        `Predicted` (float32) and `Novelty`.

    Raises
    ------
    ModelMismatchError
        If the features are not those that the model was trained on.

    Notes
    -----
    Novelty is the distance to the 5th nearest of up to 2,000 labeled cells of other groups, drawn evenly over the classes, among
    the principal components (95 % of the variance, at most 20) of the scaled features (of crops: of the network's hidden
    layer), with the length of what the components leave over as one more coordinate. It is divided by the 0.99 quantile of the
    same distance of labeled cells that are nearest to the same class, or by as much as keeps 99 % of each class below 1: rare
    cells, and cells that differ much, are no less known than the others. Cells of other wells are expected to differ a little. A network
    has drawn the cells that it learned from together, so its units are as much larger as cells held out by the test lie farther.
    """
    features = [name for name in table.columns if not str(name).startswith("Metadata_")]
    card = model.card
    if features != card["features"]:
        odd = sorted(set(features) ^ set(card["features"]))[:3] or "their order"
        raise ModelMismatchError(
            f"The model was trained on the {len(card['features'])} features {card['schema']}, the table has the "
            f"{len(features)} features {schema_hash(features)}; they differ in {odd}."
        )
    X = table[features].to_numpy(float)
    X = np.where(np.isfinite(X), X, np.nan)
    return _classify(model, X, np.isfinite(X).any(axis=1), table.index, group, errors)


def predict_crops(model, crops, *, channels, pixel_size_um, index=None, group=None):
    """Classify cells by their crops.

    Parameters
    ----------
    model : Classifier
        Of crops.
    crops : array of float, shape (N, C, H, W)
        As they are cut out. A crop with NaN is of a cell that cannot be judged.
    channels : sequence of str, length C
    pixel_size_um : float
        Of the images [µm/px].
    index : Index, optional
        Of the table that is returned.
    group : str, optional
        As for `predict`.

    Returns
    -------
    DataFrame, shape (N, 3 + number of classes)
        As of `predict`.

    Raises
    ------
    ModelMismatchError
        If channels, crops or pixels are not like those that the model was trained on.
    """
    card = model.card
    if card["method"] not in CROP_METHODS:
        raise ModelMismatchError(f"The model ({card['method']}) was trained on features, not on crops.")
    if list(channels) != card["features"]:
        raise ModelMismatchError(
            f"The model was trained on the channels {', '.join(card['features'])}, the crops have {', '.join(channels)}."
        )
    trained = card["crops"]["pixel_size_um"]
    if trained and abs(pixel_size_um / trained - 1) > SAME_PIXEL:
        raise ModelMismatchError(
            f"The model was trained on images with {trained:g} µm/px, these have {pixel_size_um:g} µm/px."
        )
    shape = tuple(np.shape(crops)[1:])
    if shape != model.pipeline["estimator"].shape_:
        raise ModelMismatchError(
            f"The model was trained on crops of {model.pipeline['estimator'].shape_} (channels, rows, columns), these have {shape}."
        )
    index = pd.RangeIndex(len(crops)) if index is None else index
    return _classify(model, crops, np.isfinite(crops).all(axis=(1, 2, 3)), index, group)


def _classify(model, X, usable, index, group, errors=None):
    """Table of `predict`; rows that are not usable have no class."""
    card, chosen = model.card, model.pipeline_for(group)
    novelty = np.full(len(X), np.nan, dtype=np.float32)
    if usable.any():
        own = X[usable]
        space = input_space(model.pipeline, own)
        novelty[usable] = _measure_novelty(model, space, group, None if errors is None else np.asarray(errors)[usable])
        known = {"hidden": space} if X.ndim == 4 and chosen is model.pipeline else {}
        if X.ndim == 2:
            own = space if chosen is model.pipeline else input_space(chosen, own)
    names = np.full(len(X), None, dtype=object)
    if card["classes"]:
        probability = np.full((len(X), len(card["classes"])), np.nan, dtype=np.float32)
        size = np.zeros(len(X), np.uint8)
        if usable.any():
            raw = np.zeros((usable.sum(), len(card["classes"])))
            raw[:, chosen["estimator"].classes_] = chosen["estimator"].predict_proba(own, **known)
            names[usable] = np.asarray(card["classes"], dtype=object)[raw.argmax(axis=1)]
            tested = card["metrics"] or {}
            calibrated = apply_temperature(raw, tested.get("calibration", {}).get("temperature", 1))
            limits = tested.get("sets", {}).get("limits", [None] * raw.shape[1])
            probability[usable], size[usable] = calibrated, set_members(calibrated, limits).sum(axis=1)
        columns = {f"Probability_{name}": probability[:, c] for c, name in enumerate(card["classes"])}
        columns["Set_size"] = size
    else:
        columns = {"Predicted": np.full(len(X), np.nan, np.float32)}
        if usable.any():
            columns["Predicted"][usable] = chosen["estimator"].predict(own)
    columns = {"Class": pd.Series(names, index=index, dtype=object)} | columns
    return pd.DataFrame(columns | {"Novelty": novelty}, index=index)


def _measure_novelty(model, space, group, errors):
    """Distance of cells to labeled ones of other groups, in units of the class that they are nearest to; so labeled wells are
    judged as others are.

    Or the error of the reconstruction, where that says more: what an autoencoder has no latents for, lies nowhere new in them.
    """
    others = None
    if group in (known := model.card["groups"]):
        others = model.novelty["group"] != known.index(group)
    return _in_units(model.novelty, *_nearest(_coordinates(space, model.novelty), model.novelty, others), errors)


def _in_units(novelty, distance, near, errors=None):
    """Novelty of cells at this distance from labeled ones, the nearest of which are of these classes, shape (N,)."""
    found = distance / novelty["unit"][near]
    if errors is None or "error_unit" not in novelty:
        return found
    return np.fmax(found, errors / novelty["error_unit"][near])


def input_space(pipeline, X):
    """Compute where distances between cells are measured.

    Parameters
    ----------
    pipeline : sklearn.pipeline.Pipeline
    X : array of float, shape (N, F) or (N, C, H, W)

    Returns
    -------
    ndarray of float64, shape (N, ...)
        Imputed and scaled features, as the estimator gets them; of crops the network's hidden layer.
    """
    if X.ndim == 4:
        return pipeline["estimator"].embed(X)
    return pipeline["scaler"].transform(pipeline["imputer"].transform(X))


def _skops_io():
    """`skops.io`, which trusts no estimator by itself where nobody has imported it before.

    To list those of scikit-learn, it would import every module of it, and torch and dask with them: seconds in each process.
    """
    with _IMPORTING:
        if "skops.io" in sys.modules:
            return sys.modules["skops.io"]
        import sklearn.utils

        listed = sklearn.utils.all_estimators
        sklearn.utils.all_estimators = list
        try:
            return importlib.import_module("skops.io")
        finally:
            sklearn.utils.all_estimators = listed


def dumps(model):
    """Serialize a classifier.

    Parameters
    ----------
    model : Classifier

    Returns
    -------
    bytes
        A skops archive, of a network safetensors; the same bytes for the same classifier (but for the padding in a forest's
        trees).
    """
    if model.card["method"] in CROP_METHODS:
        return _network_bytes(model)
    skops_io = _skops_io()
    card = json.dumps(model.card, sort_keys=True, allow_nan=False)
    parts = {
        "format": FORMAT,
        "card": card,
        "pipeline": model.pipeline,
        "novelty": dict(model.novelty),
        "folds": list(model.folds),
    }
    return _without_addresses(skops_io.dumps(parts))


def file_name(card):
    """Name of the file that a classifier with this card is stored in."""
    return "model.safetensors" if card["method"] in CROP_METHODS else "model.skops"


def _network_bytes(model):
    """A classifier of crops as safetensors: tensors of all networks and of novelty, and all else as JSON in the header."""
    import torch
    from safetensors.torch import save

    parts = {"format": CROP_FORMAT, "card": model.card, "networks": []}
    tensors = {f"novelty.{name}": torch.from_numpy(np.array(value)) for name, value in model.novelty.items()}
    for number, pipeline in enumerate([model.pipeline, *model.folds]):
        config, own = pipeline["estimator"].to_tensors()
        parts["networks"].append(config)
        tensors |= {f"{number}.{name}": value for name, value in own.items()}
    return save(tensors, metadata={"plateloom": json.dumps(parts, sort_keys=True, allow_nan=False)})


def _network_from(data):
    """A classifier of crops from its bytes."""
    from safetensors import SafetensorError
    from safetensors.torch import load
    from sklearn.pipeline import Pipeline

    from plateloom.classification.crop_network import CropNetwork
    from plateloom.latent.training_state import below

    try:
        length = int.from_bytes(data[:8], "little")
        parts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["plateloom"])
        tensors = load(data)
        if parts["format"] not in {CROP_FORMAT, *OLDER}:
            raise ModelMismatchError(f"The file holds no classifier of ours (format {CROP_FORMAT!r}).")
        card = _check_schema(parts["card"])
        pipelines = [
            Pipeline([("estimator", CropNetwork.from_tensors(config, below(tensors, f"{number}.")))])
            for number, config in enumerate(parts["networks"])
        ]
        for network in (pipeline["estimator"] for pipeline in pipelines):
            described = len(card["features"]), list(range(len(card["classes"])))
            if (network.shape_[0], network.classes_.tolist()) != described:
                raise ModelMismatchError("A network in the file has other channels or classes than its card says.")
        novelty = {name: value.numpy() for name, value in below(tensors, "novelty.").items()}
        return Classifier(pipelines[0], card, _by_class(novelty), pipelines[1:])
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ModelMismatchError):
            raise
        raise ModelMismatchError(f"The model file cannot be read: {error}") from error


def _check_schema(card):
    """The card, if its digest of the features is that of its features."""
    if card["schema"] != schema_hash(card["features"]):
        raise ModelMismatchError(
            f"The card says schema {card['schema']}, its features have {schema_hash(card['features'])}."
        )
    return card


def _without_addresses(data):
    """The same archive with its objects numbered as they appear: skops numbers them by their place in memory."""
    numbers = {}
    number = lambda found: numbers.setdefault(found[0], str(len(numbers)))  # noqa: E731
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as new:
        schema = re.sub(r'(?<="__id__": )\d+|(?<=")\d+(?=\.npy")', number, old.read("schema.json").decode())
        files = {
            f"{numbers[name.stem]}{name.suffix}": name for name in map(Path, old.namelist()) if name.stem in numbers
        }
        for name in sorted(files):
            new.writestr(zipfile.ZipInfo(name), old.read(str(files[name])), zipfile.ZIP_DEFLATED)
        new.writestr(zipfile.ZipInfo("schema.json"), schema, zipfile.ZIP_DEFLATED)
    return written.getvalue()


def loads(data, *, sha256=None):
    """Read a classifier back.

    Parameters
    ----------
    data : bytes
        From `dumps`.
    sha256 : str, optional
        The digest that the bytes must have.

    Returns
    -------
    Classifier

    Raises
    ------
    ModelMismatchError
        If the digest differs, the bytes are no skops archive and no safetensors (a pickle is not looked into), or the archive
        wants to build anything but the few types that our methods need.
    """
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise ModelMismatchError(
            f"The model file has the SHA-256 {found}, expected {sha256}. It was changed or exchanged."
        )
    if data[8:24] == b'{"__metadata__":':
        return _network_from(data)
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise ModelMismatchError(
            "This is no skops archive. Pickle and joblib files are not read: they run what they hold."
        )
    skops_io = _skops_io()
    try:
        unknown = sorted(set(skops_io.get_untrusted_types(data=data)) - set(TRUSTED))
        if unknown:
            raise ModelMismatchError(
                f"The model file wants to build {', '.join(unknown)}, which no method of ours needs."
            )
        parts = skops_io.loads(data, trusted=list(TRUSTED))
    except (KeyError, ValueError, TypeError, AttributeError, ImportError, zipfile.BadZipFile) as error:
        if isinstance(error, ModelMismatchError):
            raise
        raise ModelMismatchError(f"The model file cannot be read: {error}") from error
    if not isinstance(parts, dict) or parts.get("format") not in {FORMAT, *OLDER}:
        raise ModelMismatchError(f"The archive holds no classifier of ours (format {FORMAT!r}).")
    card = _check_schema(json.loads(parts["card"]))
    return Classifier(parts["pipeline"], card, _by_class(parts["novelty"]), parts["folds"])


def _by_class(novelty):
    """Novelty as it is kept now: of an older model all reference cells are of one class."""
    units = {name: np.atleast_1d(novelty[name]) for name in ("unit", "error_unit") if name in novelty}
    kind = {} if "class" in novelty else {"class": np.zeros(len(novelty["reference"]), int)}
    return novelty | units | kind


def _fit_novelty(pipeline, X, kind, groups, errors=None):
    """Principal axes, reference cells, and per class the distance that counts as 1; with errors of a reconstruction that, too.

    `kind` (N,) is the class of each cell as int.
    """
    rows = _deal(kind)[:MEASURED_CELLS]
    n_classes, scaled, kind = kind.max() + 1, input_space(pipeline, X[rows]), kind[rows]
    member = np.unique(groups, return_inverse=True)[1][rows]  # as the card lists the groups
    # Of thousands of features all axes would take half a minute, in each fold; their directions are enough to six digits.
    mean, axes, shares = (found.astype(float) for found in principal_axes(lambda: [scaled], MOST_AXES))
    kept = int(np.searchsorted(np.cumsum(shares), 0.95)) + 1
    space = {"mean": mean, "axes": np.ascontiguousarray(axes[:, :kept])}
    places = _coordinates(scaled, space)
    few = slice(REFERENCE_CELLS)
    space |= {"reference": places[few], "group": member[few], "class": kind[few]}
    apart, near = np.full(len(rows), np.nan), kind.copy()
    for group in np.unique(member):
        own, others = member == group, space["group"] != group
        if others.any():
            apart[own], near[own] = _nearest(places[own], space, others)
    measured = kind, near, n_classes
    errors = None if errors is None else np.asarray(errors, dtype=float)[rows]
    space["unit"] = _units_of(apart, *measured)
    if errors is not None:
        space["error_unit"] = _units_of(errors, *measured)
        # Two ways of being new, and still 1 % of the labeled cells that are.
        both = _units_of(_in_units(space, apart, near, errors), *measured)
        space |= {name: space[name] * both for name in ("unit", "error_unit")}
    return space


def _test_novelty(novelty, pipelines, tested, X, kind, groups, errors=None):
    """Novelty of each cell to what its fold of a test has learned from, shape (N,); NaN where none has tested it.

    The units of a network's `novelty` are made larger by what cells that it has learned from lie nearer than others.
    """
    found, near, fold_of = np.full(len(X), np.nan), kind.copy(), np.full(len(X), -1)
    for number, (pipeline, fold) in enumerate(zip(pipelines, tested, strict=False)):
        own = np.isin(groups, fold["groups"])
        part = lambda rows: None if errors is None else np.asarray(errors, float)[rows]  # noqa: E731
        learned = _fit_novelty(pipeline, X[~own], kind[~own], groups[~own], part(~own))
        distance, near[own] = _nearest(_coordinates(input_space(pipeline, X[own]), learned), learned)
        found[own], fold_of[own] = _in_units(learned, distance, near[own], part(own)), number
    if np.ndim(X) == 4 and np.isfinite(found).any():
        whole = found.copy()
        wider = lambda rows: np.maximum(_units_of(whole[rows], kind[rows], near[rows], len(novelty["unit"])), 1)  # noqa: E731
        for number in np.unique(fold_of[fold_of >= 0]):
            own = fold_of == number
            found[own] /= wider(~own)[near[own]]
        novelty["unit"] = novelty["unit"] * wider(slice(None))
    return found


def _units_of(values, kind, near, n_classes):
    """Per class what the known values of cells nearest to it are below, but for 1 %, shape (K,); 1 where there are none.

    Of few cells no less than that of all. Larger where more than 1 % of a class would lie above: rare cells that differ much.
    """
    known = np.isfinite(values)
    values, kind, near = values[known], kind[known], near[known]
    units = np.full(n_classes, _bound(values))
    for c in np.unique(near):
        own = values[near == c]
        units[c] = _bound(own) if len(own) >= FEW_CELLS else max(_bound(own), units[c])
    units = np.where(units > 0, units, 1.0)
    scaled, factor = values / units[near], np.ones(n_classes)
    for c in np.unique(kind):
        places = np.unique(near[(kind == c) & (scaled > 1)])
        factor[places] = np.maximum(factor[places], _bound(scaled[kind == c]))
    return units * factor


def _bound(values):
    """What one more value is expected to be above in 1 % of cases, or the largest of few; 0 without any."""
    beyond = int((1 - NOVEL) * (len(values) + 1))
    return float(np.sort(values)[-1 - beyond]) if len(values) else 0.0


def _deal(kind):
    """Rows in an order of chance of which any beginning is as even over the classes as they allow, shape (N,)."""
    rows = np.random.default_rng(0).permutation(len(kind))
    turn = pd.Series(kind[rows]).groupby(kind[rows]).cumcount().to_numpy()
    return rows[np.argsort(turn, kind="stable")]


def _coordinates(scaled, space):
    """Principal components, and the length of what they leave over, shape (N, K + 1)."""
    coordinates = np.empty((len(scaled), space["axes"].shape[1] + 1))
    for start in range(0, len(scaled), BLOCK):
        rows = scaled[start : start + BLOCK]
        centered = np.zeros((BLOCK, scaled.shape[1]))
        centered[: len(rows)] = rows - space["mean"]
        components = centered @ space["axes"]
        rest = np.sqrt(((centered - components @ space["axes"].T) ** 2).sum(axis=1))
        coordinates[start : start + BLOCK] = np.column_stack([components, rest])[: len(rows)]
    return coordinates


def _nearest(coordinates, novelty, others=None):
    """Distance to the 5th nearest reference cell (the last, if there are fewer), and the class of the nearest, shape (N,) each.

    Of those that `others` chooses, if it chooses any.
    """
    chosen = slice(None) if others is None or not others.any() else others
    reference, kind = novelty["reference"][chosen], novelty["class"][chosen]
    k = min(NEIGHBOR, len(reference)) - 1
    distance, near = np.empty(len(coordinates)), np.empty(len(coordinates), int)
    for start in range(0, len(coordinates), BLOCK):
        rows = coordinates[start : start + BLOCK]
        block = np.zeros((BLOCK, coordinates.shape[1]))
        block[: len(rows)] = rows
        products = (2 * block @ reference.T)[: len(rows)]
        squares = (block**2).sum(axis=1)[: len(rows), None] - products + (reference**2).sum(axis=1)
        distance[start : start + BLOCK] = np.sqrt(np.partition(squares, k, axis=1)[:, k].clip(min=0))
        near[start : start + BLOCK] = kind[squares.argmin(axis=1)]
    return distance, near
