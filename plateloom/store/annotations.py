"""Fields that a person has annotated, as two folders of files: images of nuclei, and label images of the same names."""

from pathlib import Path

from plateloom.errors import ConfigError
from plateloom.store.provenance import digest, file_digest

SUFFIXES = (".tif", ".tiff", ".png", ".npy")


def list_pairs(images, labels):
    """Find which image belongs to which label image.

    Parameters
    ----------
    images, labels : path
        Folders.

    Returns
    -------
    list of (str, Path, Path)
        Name, image and labels, by name.

    Raises
    ------
    ConfigError
        If a folder is not there or empty, or holds something that the other lacks.
    """
    sides = [_list_files(Path(images)), _list_files(Path(labels))]
    problems = [
        f"{str(path)!r} has no {name!r}, which {str(other)!r} has"
        for path, other, missing in (
            (images, labels, sides[1].keys() - sides[0]),
            (labels, images, sides[0].keys() - sides[1]),
        )
        for name in sorted(missing)
    ]
    if problems:
        raise ConfigError(problems)
    return [(name, sides[0][name], sides[1][name]) for name in sorted(sides[0])]


def digest_pairs(images, labels):
    """Digests of what two folders hold, names and content: dict with `images` and `labels`; raises as `list_pairs`."""
    pairs = list_pairs(images, labels)
    return {
        side: digest({name: file_digest(paths[i].read_bytes()) for name, *paths in pairs})
        for i, side in enumerate(("images", "labels"))
    }


def read_pairs(images, labels):
    """Read two folders.

    Parameters
    ----------
    images, labels : path

    Returns
    -------
    fields : list of ndarray of float32, shape (Y, X)
        In [0, 1].
    truth : list of ndarray of int64, shape (Y, X)
        0 is background.

    Raises
    ------
    ConfigError
        Naming everything that is wrong at once.
    """
    import numpy as np

    fields, truth, problems = [], [], []
    for name, image, drawing in list_pairs(images, labels):
        try:
            field, drawn = read_image(image), read_labels(drawing)
        except ConfigError as error:
            problems += error.problems
            continue
        if field.shape != drawn.shape:
            problems.append(
                f"{name!r}: the image is {field.shape}, its labels are {drawn.shape}; expected one pixel grid"
            )
        elif drawn.dtype.kind not in "iu" or drawn.min() < 0:
            problems.append(f"{name!r}: labels are {drawn.dtype}; expected one number per nucleus, 0 for background")
        elif mask := explain_mask(drawn):
            problems.append(f"{str(drawing)!r}: {mask}")
        else:
            fields.append(field)
            truth.append(np.asarray(drawn, np.int64))
    if problems:
        raise ConfigError(problems)
    return fields, truth


def explain_mask(labels):
    """Say why an image shows where objects are and not which pixel belongs to which.

    One object may have broken into two, or have lost some pixels elsewhere: only pieces of a fiftieth of a value's largest
    count, and two pieces of an image's only value where it is 255, as masks have it.

    Parameters
    ----------
    labels : ndarray of int, shape (..., Y, X)
        0 is background.

    Returns
    -------
    str
        Empty where it does not look like a mask.
    """
    import numpy as np
    from scipy import ndimage

    # Where objects touch, one loses its rim: so the pieces of all of them are found at once.
    parted = (labels > 0) & (ndimage.maximum_filter(labels, 3) == labels)
    pieces, count = ndimage.label(parted, np.ones((3,) * labels.ndim, bool))
    sizes, of = np.bincount(pieces.ravel(), minlength=count + 1), np.zeros(count + 1, np.int64)
    of[pieces.ravel()] = labels.ravel()
    values, owner = np.unique(of[1:], return_inverse=True)
    largest = np.zeros(len(values), np.int64)
    np.maximum.at(largest, owner, sizes[1:])
    counts = np.bincount(owner[sizes[1:] * 50 >= largest[owner]], minlength=len(values)).tolist()
    several = sum(count > 1 for count in counts)
    if several * 2 <= len(counts) or (counts == [2] and values[0] != 255):
        return ""
    told = f"label {values[0]} is in {counts[0]} separate pieces"
    if len(counts) > 1:
        told = f"{several} of {len(counts)} labels are in several separate pieces"
    remedy = "label the connected parts first (Fiji: Analyze Particles, Count Masks; Python: scipy.ndimage.label)"
    return f"{told}, as in a mask; each object needs a number of its own: {remedy}"


def _list_files(folder):
    """Stem to path of the image files of a folder."""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {str(folder)!r}")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    if not files:
        raise ConfigError(f"{str(folder)!r} holds no images ({', '.join(SUFFIXES)})")
    found = {}
    for path in files:
        if (stem := path.stem.removesuffix(".ome")) in found:
            raise ConfigError(f"{found[stem].name!r} and {path.name!r} in {str(folder)!r} are one image; remove one")
        found[stem] = path
    return found


def read_image(path):
    """Read an image of one channel from a file.

    Parameters
    ----------
    path : Path
        TIFF, PNG or NPY.

    Returns
    -------
    ndarray of float32, shape (Y, X)
        In [0, 1].

    Raises
    ------
    ConfigError
        If it cannot be read as one.
    """
    import numpy as np

    try:
        if path.suffix.lower() == ".npy":
            pixels = np.load(path, allow_pickle=False)
        elif path.suffix.lower() == ".png":
            from PIL import Image

            pixels = np.asarray(Image.open(path))
        else:
            from tifffile import imread

            pixels = imread(path)
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder finds wrong
        raise ConfigError(f"{str(path)!r} cannot be read as an image: {error or type(error).__name__}") from None
    pixels = pixels.reshape(pixels.shape[-2:]) if pixels.ndim > 2 and pixels[..., 0, 0].size == 1 else pixels
    if pixels.ndim != 2 or pixels.dtype.kind not in "uif":
        raise ConfigError(
            f"{str(path)!r} is {pixels.dtype} {pixels.shape}; expected one channel, rows and columns of numbers"
        )
    # Brightness does not matter, its range does: histograms end at 2.
    largest = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "ui" else max(float(pixels.max(initial=0)), 1.0)
    pixels = pixels.astype(np.float32) / np.float32(largest)
    if not np.isfinite(pixels).all():
        raise ConfigError(f"{str(path)!r} has pixels that are not finite numbers")
    return pixels


def read_labels(path):
    """Read a label image from a file.

    Parameters
    ----------
    path : Path
        TIFF, PNG or NPY.

    Returns
    -------
    ndarray

    Raises
    ------
    ConfigError
        If it cannot be read as one.
    """
    import numpy as np

    try:
        labels = {".npy": _read_npy, ".png": _read_png}.get(path.suffix.lower(), _read_tiff)(path)
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder finds wrong
        raise ConfigError(f"{str(path)!r} cannot be read as a label image: {error or type(error).__name__}") from None
    labels = np.asarray(labels)
    while labels.ndim > 2 and labels.shape[0] == 1:
        labels = labels[0]
    if labels.ndim < 2:
        raise ConfigError(f"{str(path)!r} has the shape {labels.shape}; expected rows and columns of labels")
    return labels


def _read_npy(path):
    import numpy as np

    return np.load(path, allow_pickle=False)


def _read_png(path):
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
            raise ValueError(f"its pixels are {image.mode}; expected one number per pixel, gray or of a palette")
        return np.asarray(image)


def _read_tiff(path):
    from tifffile import TiffFile

    with TiffFile(path) as tiff:
        if len(tiff.series) != 1:
            raise ValueError(f"it holds {len(tiff.series)} images; expected one")
        if (samples := tiff.pages.first.samplesperpixel) > 1:
            raise ValueError(f"it has {samples} samples per pixel; expected one number")
        return tiff.series[0].asarray()
