"""Painted fields of a screen, or painted images of a folder -> a pixel classifier for the segmentation method `pixels`."""

import hashlib
import json
from pathlib import Path

import numpy as np
import tifffile

from plateloom.errors import ConfigError, DataFault, did_you_mean
from plateloom.segmentation.pixel_model import pack_pixel_model
from plateloom.segmentation.pixel_training import Painted
from plateloom.segmentation.pixels import CELLS, NUCLEI
from plateloom.stages.illumination import read_corrected
from plateloom.store import plate as store
from plateloom.store.annotations import list_pairs, read_labels
from plateloom.store.layout import plate_folder, plate_store
from plateloom.store.provenance import write_bytes

PAINT = "pixels"  # name of the file of scribbles, without suffix
MASKS = {"Nuclei": NUCLEI, "Cells": CELLS}  # whole objects, as `plateloom labels export` writes them
MAPS = "probabilities.ome.tif"
CLASSES = ("background", NUCLEI, CELLS)
SUFFIXES = (".ome.tif", ".ome.tiff", ".tif", ".tiff")


def read_classes(folder):
    """Names of the classes 1 … K by the file classes.json of a folder; None where there is none.

    Raises
    ------
    ConfigError
        If it is neither a list of names nor an object of numbers and names.
    """
    path = Path(folder) / "classes.json"
    if not path.exists():
        return None
    expected = 'expected ["background", "nuclei"] or {"1": "background", "2": "nuclei"}'
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            found = [found[str(i)] for i in range(1, len(found) + 1)]
    except (ValueError, KeyError):
        raise ConfigError(f"{str(path)!r}: {expected}") from None
    if not isinstance(found, list) or not all(isinstance(name, str) and name for name in found):
        raise ConfigError(f"{str(path)!r}: {expected}")
    return found


def read_painted_fields(folder, *, classes, channels):
    """Read what was painted on fields of a screen; the current folder is the screen's.

    Parameters
    ----------
    folder : Path
        PLATE/WELL/FIELD/pixels.tif (1 … K are classes, 0 is not painted); if there is none at all, Nuclei.tif and Cells.tif,
        whose pixels are all painted: nuclei, cells, and else the first class. Exported labels beside strokes are no masks.
    classes, channels : sequence of str

    Returns
    -------
    list of Painted
        Pixels as segmentation sees them: corrected and restored. Fields of one well are one group.

    Raises
    ------
    ConfigError
        Naming everything that is wrong at once.
    """
    examples, problems = [], []
    found = _find_files(folder, problems)
    strokes = {place: files for place, files in found.items() if PAINT in files}
    for (plate, well, field), files in (strokes or found).items():
        try:
            number = check_place(plate, well, field)
            image, pixel_size_um = read_field(plate, well, number, channels)
            paint = _read_paint(files, classes, image.shape[1:])
        except (ConfigError, DataFault, ValueError) as error:
            problems.append(f"{plate}/{well}/{field}: {error}")
        else:
            examples.append(Painted(f"{plate}/{well}/{number}", f"{plate}/{well}", image, paint, pixel_size_um))
    if problems or not examples:
        raise ConfigError(problems or f"{str(folder)!r} holds no PLATE/WELL/FIELD/{PAINT}.tif")
    return examples


def check_place(plate, well, field):
    """Number of a field, if the screen has it; `ConfigError` names the nearest one."""
    try:
        fields = store.list_fields(plate_store(plate))
    except DataFault:
        known = sorted(path.parent.name for path in Path().glob(str(plate_store("*"))))
        raise ConfigError(
            f"no plate {plate!r}.{did_you_mean(plate, known)} Plates: {', '.join(known) or 'none'}"
        ) from None
    if well not in fields or str(field) not in map(str, fields[well]):
        raise ConfigError(f"plate {plate!r} has no field {field!r} of well {well!r}")
    return int(field)


def read_field(plate, well, field, channels):
    """Channels of a field as segmentation sees them, float32 (C, Y, X), and its pixel size [µm/px]."""
    described = store.describe_image(store.field_path(plate_store(plate), well, field))
    if lacking := [name for name in channels if name not in described["channels"] or name in described["missing"]]:
        raise ConfigError(f"the field has no channel {', '.join(map(repr, lacking))}")
    light = store.read_group(plate_folder(plate) / "illumination.zarr")
    if light is None:
        raise ConfigError("illumination is not estimated yet: `plateloom run SCREEN --until illumination`")
    image = read_corrected(plate, well, field, light["plateloom"]["fingerprint"], channels=channels, uncovered=np.nan)
    return image, described["pixel_size_um"]


def read_painted_images(images, labels, *, channels, pixel_size_um):
    """Read painted images from two folders, matched by name; each is a group.

    Parameters
    ----------
    images, labels : path
        Images: (Y, X) or (C, Y, X), TIFF, PNG or NPY. Labels: 1 … K are classes, 0 is not painted.
    channels : sequence of str
    pixel_size_um : float
        Of all images [µm/px].

    Returns
    -------
    list of Painted

    Raises
    ------
    ConfigError
        Naming everything that is wrong at once.
    """
    examples, problems = [], []
    for name, file, painted in list_pairs(images, labels):
        try:
            image = _read_planes(file, len(channels))
            paint = _check_paint(painted, read_labels(painted), image.shape[1:])
        except ConfigError as error:
            problems += error.problems
        else:
            examples.append(Painted(name, name, image, paint, float(pixel_size_um)))
    if problems:
        raise ConfigError(problems)
    return examples


def write_pixel_model(path, model):
    """Write a model's file, and its card as JSON beside it for people to read; each takes the place of an old one at once.

    Parameters
    ----------
    path : path
    model : PixelModel

    Returns
    -------
    str
        SHA-256 of the file.

    Raises
    ------
    ModelMismatchError
        If it is too large to be loaded; nothing is written.
    """
    data = pack_pixel_model(model)
    sha256 = hashlib.sha256(data).hexdigest()
    write_bytes(path, data)
    text = json.dumps({"sha256": sha256} | model.card, indent=1, ensure_ascii=False)
    write_bytes(Path(path).with_suffix(".json"), (text + "\n").encode())
    return sha256


def write_maps(path, maps, classes, pixel_size_um):
    """Write probabilities as OME-TIFF, a channel per class.

    Parameters
    ----------
    path : Path
    maps : ndarray of float32, shape (K, Y, X)
    classes : sequence of str, length K
    pixel_size_um : float
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {f"PhysicalSize{axis}": pixel_size_um for axis in "XY"} | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    metadata = {"axes": "CYX", "Channel": {"Name": list(classes)}} | size
    tifffile.imwrite(path, maps.astype(np.float32), ome=True, metadata=metadata, compression="zlib")


def _find_files(folder, problems):
    """Plate, well and field to the files of what was painted there, by name."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
        inside = path.relative_to(folder).parts
        if suffix is None or any(part.startswith(".") for part in inside):
            continue
        name = path.name[: -len(suffix)]
        if name not in (PAINT, *MASKS):
            continue
        if len(inside) == 4:
            found.setdefault(inside[:3], {})[name] = path
        else:
            problems.append(f"{path}: expected PLATE/WELL/FIELD/{PAINT}.tif")
    return found


def _read_paint(files, classes, shape):
    """Classes of a field's pixels: scribbles where there are any, else masks."""
    if PAINT in files:
        return _check_paint(files[PAINT], read_labels(files[PAINT]), shape)
    wanted = {file: name for file, name in MASKS.items() if name in classes}
    if lacking := [file for file in wanted if file not in files]:
        raise ConfigError(f"no {PAINT}.tif, and no {lacking[0]}.tif for the class {MASKS[lacking[0]]!r}")
    if not wanted or set(classes) - set(wanted.values()) != {classes[0]}:
        raise ConfigError(f"masks show {', '.join(MASKS.values())}; paint {', '.join(classes)} in {PAINT}.tif")
    paint = np.ones(shape, np.uint8)
    for file in reversed(wanted):  # nuclei lie in cells
        paint[_check_paint(files[file], read_labels(files[file]) > 0, shape) > 0] = 1 + classes.index(wanted[file])
    return paint


def _check_paint(path, paint, shape):
    """Painted classes as uint8."""
    if paint.shape != tuple(shape):
        raise ConfigError(f"{str(path)!r} is {paint.shape} and the image {tuple(shape)}; expected one pixel grid")
    if paint.dtype.kind not in "uib" or paint.min(initial=0) < 0 or paint.max(initial=0) > 255:
        raise ConfigError(f"{str(path)!r}: expected whole numbers, 0 for what is not painted and 1 … K for the classes")
    return paint.astype(np.uint8)


def _read_planes(path, count):
    """An image of so many channels: float32 (C, Y, X) in [0, 1]."""
    try:
        if path.suffix.lower() == ".npy":
            pixels = np.load(path, allow_pickle=False)
        elif path.suffix.lower() == ".png":
            from PIL import Image

            pixels = np.asarray(Image.open(path))
        else:
            pixels = tifffile.imread(path)
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder finds wrong
        raise ConfigError(f"{str(path)!r} cannot be read as an image: {error or type(error).__name__}") from None
    pixels = np.squeeze(pixels)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or len(pixels) != count or pixels.dtype.kind not in "uif":
        raise ConfigError(
            f"{str(path)!r} is {pixels.dtype} {pixels.shape}; expected {count} channel(s), rows and columns"
        )
    largest = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "ui" else max(float(pixels.max(initial=0)), 1.0)
    return pixels.astype(np.float32) / np.float32(largest)
