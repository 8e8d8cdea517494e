"""Train a pixel classifier from painted images, and test it on images that it has not seen."""

from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from plateloom.segmentation.filters import filter_image, filter_names, reach_px
from plateloom.segmentation.pixel_model import PixelModel, flatten_forest
from plateloom.segmentation.pixels import BLOCK_PX, PIXEL_SIZES, Gauge, predict_pixels, scale_channels, sigmas_px
from plateloom.tiling import cut_tiles

FOLDS = 5
SIGMAS_PX = (0.7, 1.6, 3.5, 7.0)


class TrainingParams(BaseModel):
    """Parameters of the training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sigmas_um: tuple[float, ...] | None = Field(
        None, min_length=1, description="Sigmas of the filters [µm]; none: 0.7, 1.6, 3.5 and 7 pixels of the images."
    )
    intensities: Literal["relative", "absolute"] = Field(
        "relative",
        description="relative: every image's background is 0 and the mean of what is brighter is 1, by channel; absolute: as "
        "they are, for images that are not bright on dark.",
    )
    trees: int = Field(50, ge=1, le=1000, description="Trees of the forest (number).")
    min_leaf: int = Field(3, ge=1, description="Painted pixels that a leaf has at least (number).")
    pixels: int = Field(
        2000, ge=10, description="Painted pixels that are learned from, by class and image, at most (number)."
    )
    seed: int = Field(0, ge=0, description="Every random number follows from it (number).")


class Painted(NamedTuple):
    """An image that a person has painted.

    Attributes
    ----------
    name : str
    group : str
        What is held out whole: the well, or the image.
    image : ndarray of float32, shape (C, Y, X)
        The classifier's channels, in [0, 1].
    paint : ndarray of uint8, shape (Y, X)
        1 … K are classes; 0 is not painted.
    pixel_size_um : float
        [µm/px]
    """

    name: str
    group: str
    image: np.ndarray
    paint: np.ndarray
    pixel_size_um: float


def train_pixels(examples, *, channels, classes, params=None, versions=None, threads=1, on_map=None):
    """Train a pixel classifier, and test it on groups of images that were held out whole.

    Parameters
    ----------
    examples : sequence of Painted
        Those without any paint are mapped, but neither learned from nor part of the test.
    channels : sequence of str, length C
    classes : sequence of str, length K
        What 1 … K mean.
    params : TrainingParams, optional
    versions : dict, optional
        Versions of software, for the card.
    threads : int
        Of no influence on the result.
    on_map : callable(Painted, ndarray of float32, shape (K, Y, X)), optional
        Is given each image's probabilities as they come: by a forest that has not seen its group, if there is a test.

    Returns
    -------
    PixelModel
        Trained on all images; its card has the test.

    Raises
    ------
    ValueError
        If fewer than two classes are painted, one of them nowhere, a number has no class, or pixel sizes differ by more than one
        classifier serves.

    Notes
    -----
    Pixels of one image share staining, focus and neighbors, so a test by pixel says nothing: groups (wells, or images) are
    dealt into up to five folds, and all painted pixels of a fold are predicted by a forest that was trained on the others.
    """
    params, classes = params or TrainingParams(), list(classes)
    _check(examples, channels, classes)
    learned = [one for one in examples if one.paint.any()]
    pixel_size_um = _typical_size(learned)
    card = {
        "channels": list(channels),
        "classes": classes,
        "sigmas_um": list(params.sigmas_um or [sigma * pixel_size_um for sigma in SIGMAS_PX]),
        "pixel_size_um": pixel_size_um,
        "intensities": params.intensities,
    }
    rng = np.random.default_rng(params.seed)
    drawn = [_sample(one, card, params.pixels, rng) for one in learned]
    groups = np.array([one.group for one in learned])
    model = PixelModel(_fit(drawn, np.ones(len(learned), bool), len(classes), params, threads), card)
    names, test, fold_of = np.unique(groups), None, {}
    if len(names) > 1:
        folds = min(FOLDS, len(names))
        fold_of = dict(zip(rng.permutation(names).tolist(), np.arange(len(names)) % folds, strict=True))
        fold = np.array([fold_of[group] for group in groups.tolist()])
        confusion = np.zeros((len(classes), len(classes)), np.int64)
        for number in range(folds):
            blind = PixelModel(_fit(drawn, fold != number, len(classes), params, threads), card)
            for one in examples:
                if fold_of.get(one.group) != number:
                    continue
                answer = map_image(blind, one.image, one.pixel_size_um)
                painted = one.paint > 0
                np.add.at(confusion, (one.paint[painted] - 1, answer.argmax(axis=0)[painted]), 1)
                if on_map:
                    on_map(one, answer)
        test = {
            "held_out": "groups",
            "groups": len(names),
            "folds": folds,
            "confusion": confusion.tolist(),
            "f1": dict(zip(classes, class_f1(confusion), strict=True)),
        }
    if on_map:
        for one in examples:
            if one.group not in fold_of:
                on_map(one, map_image(model, one.image, one.pixel_size_um))
    counts = np.bincount(np.concatenate([labels for _, labels in drawn]), minlength=len(classes))
    about = {
        "filters": filter_names(channels, card["sigmas_um"]),
        "training": params.model_dump(mode="json"),
        "images": [one.name for one in learned],
        "groups": names.tolist(),
        "pixels": dict(zip(classes, counts.tolist(), strict=True)),
        "test": test,
        "versions": dict(versions or {}),
    }
    return PixelModel(model.forest, card | about)


def class_f1(confusion):
    """F1 of each class from pooled counts.

    Parameters
    ----------
    confusion : ndarray of int, shape (K, K)
        Rows are the truth.

    Returns
    -------
    list of float
        None for a class that neither is there nor was found.

    Examples
    --------
    >>> class_f1(np.array([[3, 1], [1, 0]]))
    [0.75, 0.0]
    """
    confusion = np.asarray(confusion)
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    return [float(2 * right / all_) if all_ else None for right, all_ in zip(np.diag(confusion), both, strict=True)]


def _check(examples, channels, classes):
    """Refuse what cannot be learned from."""
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"classes are {', '.join(classes) or 'none'}; expected two or more different ones")
    problems = []
    for one in examples:
        if one.paint.shape != one.image.shape[1:] or len(one.image) != len(channels):
            problems.append(
                f"{one.name}: painted are {one.paint.shape}, the image is {one.image.shape}; expected one pixel grid and "
                f"the channels {', '.join(channels)}"
            )
        elif one.paint.max(initial=0) > len(classes):
            problems.append(f"{one.name}: class {one.paint.max()} is painted; there are {len(classes)} classes")
    if not problems:
        there = set().union(*(np.unique(one.paint).tolist() for one in examples)) if examples else set()
        problems = [f"class {name!r} ({i}) is painted nowhere" for i, name in enumerate(classes, 1) if i not in there]
    if problems := problems or _check_sizes([one for one in examples if one.paint.any()]):
        raise ValueError("; ".join(problems))


def _typical_size(examples):
    """The pixel size [µm/px] that a classifier of these images is for."""
    return float(np.median([one.pixel_size_um for one in examples]))


def _check_sizes(examples):
    """Say which images the classifier that they make would refuse, a line for each pixel size."""
    low, high = (factor * _typical_size(examples) for factor in PIXEL_SIZES)
    names = {}
    for one in examples:
        if not low <= one.pixel_size_um <= high:
            names.setdefault(one.pixel_size_um, []).append(one.name)
    return [
        f"{found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}: {size:g} µm/px; a classifier of all these images "
        f"would serve {low:.3g} to {high:.3g} µm/px only: train one for each pixel size"
        for size, found in names.items()
    ]


def map_image(model, image, pixel_size_um):
    """Say of every pixel of a whole image what it is.

    Parameters
    ----------
    model : PixelModel
    image : ndarray of float32, shape (C, Y, X)
        The classifier's channels, in [0, 1].
    pixel_size_um : float
        [µm/px]

    Returns
    -------
    ndarray of float32, shape (K, Y, X)
        Probability of each class.
    """
    return predict_pixels(model, _scale(image, model.card, pixel_size_um), pixel_size_um=pixel_size_um)


def _scale(image, card, pixel_size_um):
    """An image as the filters get it."""
    gauge = Gauge(card, card["channels"], pixel_size_um=pixel_size_um, shape=image.shape[1:])
    whole = tuple(slice(0, size) for size in image.shape[1:])
    known = gauge.combine([gauge.measure(image, (0, 0), whole)])
    return scale_channels(image, card["channels"], card, known)


def _sample(one, card, most, rng):
    """Features (N, F) and classes (N,) from 0 of some painted pixels of an example."""
    places = [rng.permutation(np.flatnonzero(one.paint == value))[:most] for value in range(1, one.paint.max() + 1)]
    chosen = np.zeros(one.paint.shape, bool)
    if places:
        chosen.ravel()[np.concatenate(places)] = True
    image, sigmas = _scale(one.image, card, one.pixel_size_um), sigmas_px(card, one.pixel_size_um)
    features, labels = [np.zeros((0, len(filter_names(card["channels"], sigmas))), np.float32)], [np.zeros(0, np.int64)]
    for tile in cut_tiles(one.paint.shape, BLOCK_PX, halo_px=reach_px(sigmas)):
        here = chosen[tile.core]
        if here.any():
            features.append(filter_image(image[:, *tile.window], sigmas)[:, *tile.inner][:, here].T)
            labels.append(one.paint[tile.core][here].astype(np.int64) - 1)
    return np.concatenate(features), np.concatenate(labels)


def _fit(drawn, chosen, classes, params, threads):
    """The forest of some examples; classes weigh the same, however much of each is painted."""
    from sklearn.ensemble import RandomForestClassifier

    parts = [drawn[i] for i in np.flatnonzero(chosen)]
    features, labels = (np.concatenate(some) for some in zip(*parts, strict=True))
    forest = RandomForestClassifier(
        params.trees,
        min_samples_leaf=params.min_leaf,
        max_features="sqrt",
        class_weight="balanced",
        random_state=params.seed,
        n_jobs=threads,
    )
    forest.fit(features, labels)
    return flatten_forest([one.tree_ for one in forest.estimators_], forest.classes_, classes)
