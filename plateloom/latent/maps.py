"""Maps of two coordinates: fitted on a sample of rows, then applied to any number of them, each on its own."""

from dataclasses import dataclass

import numpy as np

from plateloom.errors import ModelMismatchError
from plateloom.latent import MAPS
from plateloom.latent.neighbors import BLOCK, nearest_rows
from plateloom.latent.pca import first_two
from plateloom.registry import load_method
from plateloom.schema import schema_hash

NEIGHBORS = 15
MAD_TO_SD = 1.482602218505602


@dataclass(frozen=True)
class Map:
    """A fitted map.

    Attributes
    ----------
    config : dict
        JSON: `method`, `params`, `n_sample`, `explained` (share of the variance per component), `reason` (why it is
        another map than asked for, or ''), `dropped` (features without spread in the sample).
    features : list of str
        The columns that `transform` expects, in this order.
    median, scale : ndarray of float64, shape (F,)
        Robust scaling; scale 0 marks a dropped feature.
    mean : ndarray of float64, shape (F,)
        Of the scaled features.
    axes : ndarray of float64, shape (F, K)
        Principal axes; the largest loading of each is positive.
    sample : ndarray of float32, shape (n, K)
        Principal components of the sample; empty for a PCA map.
    embedding : ndarray of float32, shape (n, 2)
        Where the sample lies on the map; empty for a PCA map.
    """

    config: dict
    features: list
    median: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    axes: np.ndarray
    sample: np.ndarray
    embedding: np.ndarray

    def project(self, X, *, features):
        """Compute principal components; see `transform`.

        Parameters
        ----------
        X : array of float, shape (N, F)
        features : sequence of str

        Returns
        -------
        ndarray of float32, shape (N, K)
            NaN for a row without any finite value.
        """
        X = self._checked(X, features)
        components = np.empty((len(X), self.axes.shape[1]), dtype=np.float32)
        for start in range(0, len(X), BLOCK):
            rows = X[start : start + BLOCK]
            scaled = np.zeros((BLOCK, len(self.features)))
            scaled[: len(rows)] = _scale(rows, self.median, self.scale, self.config["params"]["clip"]) - self.mean
            components[start : start + BLOCK] = (scaled @ self.axes)[: len(rows)]
        components[~np.isfinite(X[:, self.scale > 0]).any(axis=1)] = np.nan
        return components

    def transform(self, X, *, features):
        """Place rows on the map.

        Parameters
        ----------
        X : array of float, shape (N, F)
            NaN and infinity count as the sample's median.
        features : sequence of str, length F
            The names of the columns.

        Returns
        -------
        ndarray of float32, shape (N, 2)
            NaN for a row without any finite value.

        Raises
        ------
        ModelMismatchError
            If the columns are not those of the sample.

        Notes
        -----
        PCA: the projection. UMAP: the mean of the embedding of the nearest rows of the sample in PCA space, weighted
        by UMAP's fuzzy memberships exp(-d / sigma) with sigma such that they sum to log2(k). That is how UMAP's own
        `transform` starts; the optimization that follows there is left out because it moves rows by all others in the
        call, needs the pickled object, and would place the same cell differently in another part of the plate. A row
        of the sample lies where the sample lies. Price: new rows never leave the hull of the sample, so what is unlike
        everything in it is drawn beside its nearest neighbors.
        """
        components = self.project(X, features=features)
        if not len(self.embedding):
            return first_two(components)
        placed = np.full((len(components), 2), np.nan, dtype=np.float32)
        usable = np.flatnonzero(np.isfinite(components).all(axis=1))
        for start in range(0, len(usable), BLOCK):
            rows = usable[start : start + BLOCK]
            placed[rows] = self._place(components[rows])
        return placed

    def to_arrays(self):
        """Take the map apart for `np.savez` and JSON.

        Returns
        -------
        arrays : dict of str to ndarray
            Numbers only, no pickle.
        config : dict
        features : list of str
        """
        names = ("median", "scale", "mean", "axes", "sample", "embedding")
        return {name: getattr(self, name) for name in names}, dict(self.config), list(self.features)

    @classmethod
    def from_arrays(cls, arrays, config, features):
        """Put a map together again; see `to_arrays`.

        Raises
        ------
        ModelMismatchError
            If the parts do not belong together.
        """
        names = {"median", "scale", "mean", "axes", "sample", "embedding"}
        if set(arrays) != names:
            raise ModelMismatchError(f"Found the arrays {sorted(arrays)}. Expected {sorted(names)}.")
        arrays = {name: np.asarray(value) for name, value in arrays.items()}
        shapes = [arrays["median"].shape, arrays["scale"].shape, arrays["mean"].shape, arrays["axes"].shape[:1]]
        if any(shape != (len(features),) for shape in shapes) or len(arrays["sample"]) != len(arrays["embedding"]):
            raise ModelMismatchError(f"The arrays do not fit {len(features)} features: {shapes}.")
        return cls(config=dict(config), features=list(features), **arrays)

    def _checked(self, X, features):
        """The array, if its columns are those of the sample."""
        X = np.asarray(X, dtype=float)
        features = list(features)
        if X.ndim != 2 or X.shape[1] != len(features):
            raise ValueError(
                f"Found an array of shape {X.shape} for {len(features)} names. Expected (N, {len(features)})."
            )
        if features != self.features:
            odd = sorted(set(features) ^ set(self.features))[:3] or "the order"
            raise ModelMismatchError(
                f"The map was fitted on {len(self.features)} features ({schema_hash(self.features)}), "
                f"the table has {len(features)} ({schema_hash(features)}); they differ in {odd}."
            )
        return X

    def _place(self, components):
        """Fuzzy-weighted mean of the embedding of each row's nearest sample rows."""
        k = self.config["params"].get("n_neighbors", NEIGHBORS)
        near, distance = nearest_rows(self.sample.astype(float), components.astype(float), k)
        weights = fuzzy_weights(distance)
        return (weights[:, :, None] * self.embedding[near]).sum(axis=1).astype(np.float32)


def fit_map(sample, *, features, method="umap", params, rescale=True):
    """Fit a map on a sample of cells, or on all wells of a screen.

    Parameters
    ----------
    sample : array of float, shape (n, F)
        NaN counts as the median of its column.
    features : sequence of str, length F
        The names of the columns.
    method : str
        A name in `plateloom.latent.MAPS`.
    params : Params
        Of that method.
    rescale : bool
        False: the features have one scale already, around 0, and are clipped only.

    Returns
    -------
    Map

    Raises
    ------
    ValueError
        If there is no row, or no feature varies.

    Notes
    -----
    Each feature is scaled by its median and MAD (by its standard deviation where more than half of the values are
    equal), features that do not vary are dropped, and scaled values are clipped, so that a handful of broken cells do
    not own an axis. Products of matrices run in one thread: of several, each number of threads rounds in its own way, and
    a layout makes much of the last digit.
    """
    from threadpoolctl import threadpool_limits

    module = load_method(MAPS, method, "map")
    sample = np.asarray(sample, dtype=float)
    features = list(features)
    if sample.ndim != 2 or sample.shape[1] != len(features):
        raise ValueError(
            f"Found a sample of shape {sample.shape} for {len(features)} names. Expected (n, {len(features)})."
        )
    if not len(sample):
        raise ValueError("No rows to fit a map on.")
    with threadpool_limits(1):
        return _fit(module, sample, features, method, params, rescale)


def _fit(module, sample, features, method, params, rescale):
    """The map; see `fit_map`."""
    median, scale = _robust_moments(sample)
    if not (scale > 0).any():
        raise ValueError(f"None of {len(features)} features varies among {len(sample)} rows; no map can be fitted.")
    if not rescale:
        median, scale = np.zeros_like(median), np.where(scale > 0, 1.0, 0.0)
    scaled = _scale(sample, median, scale, params.clip)
    mean = scaled.mean(axis=0)
    axes, explained = _principal_axes(scaled - mean, params.n_components)
    config = {
        "method": method,
        "params": params.model_dump(mode="json"),
        "n_sample": len(sample),
        "explained": explained,
        "dropped": [name for name, width in zip(features, scale, strict=True) if width == 0],
        "reason": "",
    }
    empty = np.zeros((0, axes.shape[1]), np.float32), np.zeros((0, 2), np.float32)
    projected = Map(config, features, median, scale, mean, axes, *empty)
    components = projected.project(sample, features=features)
    components = components[np.isfinite(components).all(axis=1)]
    embedding, reason = module.embed(components, params)
    config["reason"] = reason
    if embedding is None:
        return projected
    return Map(config, features, median, scale, mean, axes, components, embedding)


def fuzzy_weights(distance):
    """Turn the distances to the nearest rows of the sample into weights.

    Parameters
    ----------
    distance : array of float64, shape (N, k)
        Sorted; at least 0.

    Returns
    -------
    ndarray of float64, shape (N, k)
        exp(-d / sigma), sigma per row such that they sum to log2(k), then normalized to 1. A distance of 0 takes all
        weight.

    Examples
    --------
    >>> fuzzy_weights(np.array([[0.0, 1.0], [2.0, 2.0]]))
    array([[1. , 0. ],
           [0.5, 0.5]])
    """
    k = distance.shape[1]
    same = distance == 0
    exact = same.any(axis=1)
    # Relative to the nearest, which changes no normalized weight and cannot underflow.
    beyond = distance - distance[:, :1]
    target = max(np.log2(k), 1.0)
    low = np.zeros(len(distance))
    high = np.full(len(distance), np.inf)
    width = np.maximum(distance.mean(axis=1), np.finfo(float).tiny)
    for _ in range(64):
        total = np.exp(-distance / width[:, None]).sum(axis=1)
        too_wide = total > target
        high, low = np.where(too_wide, width, high), np.where(too_wide, low, width)
        width = np.where(np.isinf(high), 2 * width, (low + np.where(np.isinf(high), low, high)) / 2)
    weights = np.exp(-beyond / np.maximum(width, np.finfo(float).tiny)[:, None])
    weights[exact] = same[exact]
    return weights / weights.sum(axis=1, keepdims=True)


def _robust_moments(sample):
    """Median and robust standard deviation per column; 0 where a column does not vary."""
    median, scale = np.zeros(sample.shape[1]), np.zeros(sample.shape[1])
    for column in range(sample.shape[1]):
        values = sample[:, column]
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        median[column] = np.median(values)
        rounding = 1e-12 * np.abs(values).max()
        width = MAD_TO_SD * np.median(np.abs(values - median[column]))
        width = width if width > rounding else values.std()
        scale[column] = width if width > rounding else 0.0
    return median, scale


def _scale(X, median, scale, clip):
    """Robustly scaled, NaN as 0 (the median), dropped features as 0."""
    scaled = (X - median) / np.where(scale > 0, scale, 1.0)
    scaled = np.where(np.isfinite(scaled) & (scale > 0), scaled, 0.0)
    return np.clip(scaled, -clip, clip)


def _principal_axes(centered, n_components):
    """Principal axes (F, K) with deterministic signs, and the share of the variance of each."""
    n, features = centered.shape
    if n > features:
        variance, axes = np.linalg.eigh(centered.T @ centered)
        variance, axes = variance[::-1], axes[:, ::-1]
    else:
        _, singular, rows = np.linalg.svd(centered, full_matrices=False)
        variance, axes = singular**2, rows.T
    total = variance.clip(min=0).sum()
    rank = max(int((variance > 1e-10 * max(total, np.finfo(float).tiny)).sum()), 1)
    axes = axes[:, : min(n_components, rank)]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    axes = np.ascontiguousarray(axes * np.where(largest < 0, -1.0, 1.0))
    shares = variance[: axes.shape[1]] / total if total > 0 else np.zeros(axes.shape[1])
    return axes, [float(share) for share in shares]
