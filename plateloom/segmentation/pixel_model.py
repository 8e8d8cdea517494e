"""A pixel classifier: a random forest as plain arrays, its card, and its file (safetensors; nothing in it is code)."""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plateloom.compilation import kernel
from plateloom.errors import ModelMismatchError

KIND = "plateloom pixel classifier"
FORMAT = 1
LARGEST = 512 * 2**20  # bytes
WHOLE = 65535  # votes of a tree; whole numbers, so that their sum is exact
TOGETHER = 2048  # pixels that stay in the processor's cache while all trees vote
LEAF = -1
CARD = ("channels", "classes", "sigmas_um", "pixel_size_um", "intensities")


class Forest(NamedTuple):
    """Trees as arrays of their nodes; the left child of a node is the next one.

    Attributes
    ----------
    roots : ndarray of int32, shape (T,)
        First node of each tree.
    feature : ndarray of int32, shape (M,)
        Which feature a node asks for; -1 for a leaf.
    limit : ndarray of float32, shape (M,)
        Values up to this go left.
    right : ndarray of int32, shape (M,)
        Right child; of a leaf the row of its votes.
    votes : ndarray of uint16, shape (L, K)
        Votes for each class, 65,535 in all but for rounding.
    """

    roots: np.ndarray
    feature: np.ndarray
    limit: np.ndarray
    right: np.ndarray
    votes: np.ndarray


class PixelModel(NamedTuple):
    """A trained pixel classifier.

    Attributes
    ----------
    forest : Forest
    card : dict
        JSON: `channels`, `classes`, `sigmas_um` [µm], `pixel_size_um` of the training images [µm/px], `intensities`
        ('relative' or 'absolute'), and what else is to be known of the training.
    """

    forest: Forest
    card: dict


def flatten_forest(trees, places, classes):
    """Take the trees of scikit-learn apart.

    Parameters
    ----------
    trees : sequence of sklearn.tree._tree.Tree
        Of a classifier, in its order.
    places : sequence of int
        Number of each class that the trees know, among all.
    classes : int
        How many classes there are.

    Returns
    -------
    Forest
        It finds the same leaf for every pixel; votes are rounded to 1/65,535 of a tree.
    """
    roots, feature, limit, right, votes = [], [], [], [], []
    for tree in trees:
        roots.append(len(feature))
        pending = [(0, None)]
        while pending:
            node, parent = pending.pop()
            if parent is not None:
                right[parent] = len(feature)
            leaf = tree.children_left[node] < 0
            feature.append(LEAF if leaf else tree.feature[node])
            limit.append(0.0 if leaf else _round_down(tree.threshold[node]))
            right.append(len(votes) if leaf else 0)
            if leaf:
                share = np.zeros(classes)
                share[places] = tree.value[node][0] / tree.value[node][0].sum()
                votes.append(np.rint(share * WHOLE).astype(np.uint16))
            else:
                pending.append((tree.children_right[node], len(feature) - 1))
                pending.append((tree.children_left[node], None))
    return Forest(
        np.array(roots, np.int32),
        np.array(feature, np.int32),
        np.array(limit, np.float32),
        np.array(right, np.int32),
        np.array(votes, np.uint16),
    )


def _round_down(value):
    """The largest float32 that is no larger: a float32 is below the one exactly where it is below the other."""
    rounded = np.float32(value)
    return np.nextafter(rounded, np.float32(-np.inf)) if rounded > value else rounded


def apply_forest(forest, features):
    """Ask a forest for the probabilities of pixels.

    Parameters
    ----------
    forest : Forest
    features : ndarray of float32, shape (F, N)

    Returns
    -------
    ndarray of float32, shape (K, N)
        They sum to 1 but for rounding.
    """
    votes = np.zeros((forest.votes.shape[1], features.shape[1]), np.uint32)
    _vote(*forest, np.ascontiguousarray(features, np.float32), votes)
    return votes / np.float32(WHOLE * len(forest.roots))


@kernel
def _vote(roots, feature, limit, right, leaves, features, votes):
    count, size = features.shape
    classes = votes.shape[0]
    block = np.empty((TOGETHER, count), np.float32)
    for first in range(0, size, TOGETHER):
        some = min(TOGETHER, size - first)
        for f in range(count):
            for i in range(some):
                block[i, f] = features[f, first + i]
        for root in roots:
            for i in range(some):
                row, node = block[i], np.uint64(root)  # without a sign no place is counted from the end
                while feature[node] >= 0:
                    left = row[np.uint64(feature[node])] <= limit[node]
                    node = node + np.uint64(1) if left else np.uint64(right[node])
                for k in range(classes):
                    votes[k, first + i] += leaves[right[node], k]


def pack_pixel_model(model):
    """Content of a model's file; the same model gives the same bytes.

    Parameters
    ----------
    model : PixelModel

    Returns
    -------
    bytes

    Raises
    ------
    ModelMismatchError
        If it is larger than what `load_pixel_model` takes.
    """
    from safetensors.numpy import save

    about = {"kind": KIND, "format": FORMAT, "card": model.card}
    data = save(model.forest._asdict(), {"plateloom": json.dumps(about, sort_keys=True, allow_nan=False)})
    if len(data) > LARGEST:
        raise ModelMismatchError(
            f"the classifier has {len(data):,} bytes, expected at most {LARGEST:,}: grow fewer trees, or learn from fewer pixels"
        )
    return data


def load_pixel_model(path):
    """Read a model's file, once per process while it stays as it is.

    Parameters
    ----------
    path : path

    Returns
    -------
    PixelModel

    Raises
    ------
    ModelMismatchError
        If there is none, or it is no pixel classifier of ours; a pickle is not looked into.
    """
    try:
        found = Path(path).stat()
    except OSError as error:
        raise ModelMismatchError(f"no pixel classifier at {str(path)!r}: {error.strerror}") from None
    if found.st_size > LARGEST:
        raise ModelMismatchError(f"{str(path)!r} has {found.st_size:,} bytes, expected at most {LARGEST:,}")
    return _load(str(path), found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=4)
def _load(path, changed, size):
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = Path(path).read_bytes()
    expected = "expected a file of `plateloom train-pixels`"
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length]) if length <= len(data) - 8 else {}
        about = json.loads(header["__metadata__"]["plateloom"])
        kind, version, card = about["kind"], about["format"], about["card"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ModelMismatchError(f"{path!r} is no pixel classifier; {expected}") from None
    if (kind, version) != (KIND, FORMAT):
        raise ModelMismatchError(f"{path!r} holds a {kind!r} of format {version}; {expected} of format {FORMAT}")
    try:
        forest = Forest(**load(data))
        _check(forest, card)
    except (SafetensorError, TypeError, ValueError, KeyError, IndexError) as error:
        raise ModelMismatchError(f"{path!r} is not whole ({error}); {expected}") from None
    return PixelModel(forest, card)


def _check(forest, card):
    """Refuse what would lead the kernel astray; `ValueError`."""
    from plateloom.segmentation.filters import filter_names

    if lacking := [name for name in CARD if name not in card]:
        raise ValueError(f"its card lacks {', '.join(lacking)}")
    nodes = len(forest.feature)
    kinds = [array.dtype.name for array in forest]
    features = len(filter_names(card["channels"], card["sigmas_um"]))
    if kinds != ["int32", "int32", "float32", "int32", "uint16"] or forest.votes.shape[1:] != (len(card["classes"]),):
        raise ValueError("its arrays are of other types or shapes")
    leaf, place = forest.feature < 0, np.arange(nodes)
    inside = np.where(leaf, forest.right < len(forest.votes), (forest.right > place + 1) & (forest.right < nodes))
    if not (len(forest.limit) == len(forest.right) == nodes > 0 and (forest.right >= 0).all() and inside.all()):
        raise ValueError("a tree leads out of the file")
    if (
        not leaf[-1]
        or forest.feature.max() >= features
        or not (forest.roots >= 0).all()
        or (forest.roots >= nodes).any()
    ):
        raise ValueError("a tree asks for what there is not")
