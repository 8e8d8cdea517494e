"""Check a plate against what it vouches for; and damage one on purpose, to see that no read is silently wrong."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plateloom.errors import CorruptStoreError, PlateloomError
from plateloom.store.integrity import SEAL, VouchedStore
from plateloom.store.plate import (
    describe_image,
    foreign_image,
    forget_opened,
    group_version,
    image_shape,
    list_fields,
    list_labels,
    open_array,
    read_group,
    read_image,
    read_labels,
)
from plateloom.store.tables import read_record

METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
# Groups that other programs add to an image; nothing here reads them.
FOREIGN = ("tables", "plateloom")


class Problem(NamedTuple):
    """What is wrong with a plate.

    Attributes
    ----------
    file : str
        The file or folder concerned.
    reason : str
        What was found.
    stray : bool
        Nothing is damaged, but something lies there that nobody lists.
    """

    file: str
    reason: str
    stray: bool = False


def check_group(path, *, deep=False):
    """Check a plate, a well, a field, or a label image, with all below it.

    Parameters
    ----------
    path : path
        A group's folder.
    deep : bool
        Read, check and decode every chunk; else only metadata, the sizes of the files and the indexes of the shards.

    Returns
    -------
    list of Problem
        Empty where all is well. Of a group that is not Plateloom's only its structure is checked, and by `deep` that its chunks
        can be decoded.
    """
    forget_opened()
    return list(_check(Path(path), deep))


def check_chunks(path, attributes):
    """Check every stored chunk of an image, a label image or flat-fields by its checksum, without decoding it.

    Parameters
    ----------
    path : path
        The group's folder.
    attributes : dict
        Of the group; where they vouch for no array there is nothing to check.

    Raises
    ------
    CorruptStoreError
    """
    arrays = attributes.get(SEAL, {}).get("arrays", {})
    store = VouchedStore(path, arrays)
    for name in arrays:
        for number in range(len(arrays[name]["sizes"])):
            store.check_file(name, number, deep=True)


def table_fault(path, fingerprint=None, *, deep=False):
    """Say what is wrong with one of Plateloom's tables; empty if nothing is.

    Parameters
    ----------
    path : path
    fingerprint : str, optional
        What its record must say that it was made from.
    deep : bool
        Read every page and check it by its checksum.

    Returns
    -------
    str
    """
    try:
        record = read_record(path)
        if record is None:
            return "cannot be read, or is no table of Plateloom's" if Path(path).exists() else "is missing"
        if fingerprint is not None and record.get("fingerprint") != fingerprint:
            return "was made from something else than its record says"
        if deep:
            pq.read_table(path, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        return f"cannot be read: {' '.join(str(error).split())[:200]}"
    return ""


def _check(path, deep):
    try:
        attributes = read_group(path)
    except CorruptStoreError as error:
        yield Problem(error.file, error.reason)
        yield from _check_below(path, deep)
        return
    if attributes is None:
        yield Problem(str(path), "has no metadata: it was not finished" if path.is_dir() else "is missing")
        if path.is_dir():
            yield from _check_below(path, deep)
        return
    ome = attributes.get("ome", {})
    if "multiscales" in ome or attributes.get(SEAL, {}).get("arrays"):
        if reason := foreign_image(path, attributes):
            yield Problem(str(path), reason)
        yield from _check_arrays(path, attributes, deep)
        if group_version(path / "labels"):
            yield from _check(path / "labels", deep)
    elif "plate" in ome:
        yield from _check_plate(path, ome["plate"], deep)
    elif "well" in ome:
        yield from _check_listed(path, [image["path"] for image in ome["well"]["images"]], deep)
    elif "labels" in ome:
        yield from _check_listed(path, ome["labels"], deep)
    else:
        yield from _check_below(path, deep)


def _check_below(path, deep):
    """Check the groups in a folder whose own metadata cannot say which they are."""
    for child in sorted(path.iterdir()):
        if group_version(child) and not (child / "c").is_dir() and not (child / ".zarray").exists():
            yield from _check(child, deep)


def misplaced_wells(plate):
    """Wells that a plate's metadata list twice, or in another row or column than their path says.

    Parameters
    ----------
    plate : dict
        NGFF's `plate`.

    Returns
    -------
    list of str
        What is wrong, one sentence each.
    """
    rows, columns = ([entry["name"] for entry in plate[axis]] for axis in ("rows", "columns"))
    listed, wrong = [well["path"] for well in plate["wells"]], []
    for well in plate["wells"]:
        row, _, column = well["path"].partition("/")
        named = rows[well["rowIndex"] : well["rowIndex"] + 1] + columns[well["columnIndex"] : well["columnIndex"] + 1]
        if named != [row, column]:
            wrong.append(f"gives well {well['path']!r} the row and column {'/'.join(named)!r}")
    return wrong + [f"lists well {well!r} more than once" for well in sorted(set(listed)) if listed.count(well) > 1]


def _check_plate(path, plate, deep):
    for reason in misplaced_wells(plate):
        yield Problem(str(path), reason)
    rows, listed = [entry["name"] for entry in plate["rows"]], [well["path"] for well in plate["wells"]]
    for row in sorted({well.partition("/")[0] for well in listed}):
        if group_version(path / row) is None:
            yield Problem(str(path / row), "has no metadata: it was not finished")
            continue
        try:
            read_group(path / row)
        except CorruptStoreError as error:
            yield Problem(error.file, error.reason)
    for well in dict.fromkeys(listed):
        yield from _check(path / well, deep)
    yield from _find_extra(path, set(rows))
    for row in sorted({*rows} & {child.name for child in path.iterdir() if child.is_dir()}):
        yield from _find_extra(path / row, {well.partition("/")[2] for well in listed if well.startswith(f"{row}/")})


def _check_listed(path, names, deep):
    """Check the images of a well or the label images of a field."""
    for name in names:
        yield from _check(path / name, deep)
    yield from _find_extra(path, set(names))


def _check_arrays(path, attributes, deep):
    multiscale = attributes.get("ome", {}).get("multiscales", [{}])[0]
    names = [dataset["path"] for dataset in multiscale.get("datasets", [])] or list(attributes[SEAL]["arrays"])
    if SEAL not in attributes:
        for name in names:
            yield from _check_pixels(path, attributes, name, deep)
        return
    arrays = attributes[SEAL].get("arrays", {})
    store = VouchedStore(path, arrays)
    for name in names:
        if name not in arrays:
            yield Problem(str(path / name), "is a level that the image lists and does not vouch for")
            continue
        good = True
        try:
            layout = store.layout(name)
        except CorruptStoreError as error:
            yield Problem(error.file, error.reason)
            continue
        if multiscale and len(layout.shape) != len(multiscale["axes"]):
            yield Problem(str(path / name), f"has the shape {layout.shape}, its image {len(multiscale['axes'])} axes")
        for number in range(len(arrays[name]["sizes"])):
            try:
                store.check_file(name, number, deep=deep)
            except CorruptStoreError as error:
                good = False
                yield Problem(error.file, error.reason)
        expected = {f"{name}/{key}" for key in layout.keys()} | {f"{name}/{kind}" for kind in METADATA}  # noqa: SIM118
        found = {file.relative_to(path).as_posix() for file in (path / name).rglob("*") if file.is_file()}
        for key in sorted(found - expected):
            yield Problem(str(path / key), "is no file of its array")
        if deep and good:
            yield from _check_pixels(path, attributes, name, deep)
    yield from _find_extra(path, {*names, "labels"})


def _check_pixels(path, attributes, name, deep):
    """Open an array, and decode it chunk by chunk."""
    try:
        array = open_array(path, attributes, name)
        if deep:
            step = array.chunks
            for position in np.ndindex(*(-(-size // part) for size, part in zip(array.shape, step, strict=True))):
                array[tuple(slice(i * part, (i + 1) * part) for i, part in zip(position, step, strict=True))]
    except CorruptStoreError as error:
        yield Problem(error.file, error.reason)
    except Exception as error:  # a codec raises whatever it likes; any of it means that the array is bad
        yield Problem(str(path / name), f"cannot be decoded: {error}")


def _find_extra(path, known):
    """What lies in a group's folder and is not listed: nothing reads it."""
    for child in sorted(path.iterdir()):
        if child.name not in known and child.name not in METADATA and child.name not in FOREIGN:
            yield Problem(str(child), "is not listed in its group's metadata", stray=True)


def flip_bits(store, *, flips=1000, seed=0):
    """Flip single bits of a plate's files, one at a time, and read whatever each can affect.

    The plate is left as it was. Every file is as likely as another, so that metadata have their share.

    Parameters
    ----------
    store : path
        A small plate.
    flips : int
    seed : int

    Returns
    -------
    dict
        `refused` and `equal`: number of flips after which a read raised, or gave what it had given before; `metadata`:
        how many of the flips hit metadata; `silent`: file, byte and bit of every flip after which a read was wrong.
    """
    store, rng = Path(store), np.random.default_rng(seed)
    files = sorted(path for path in store.rglob("*") if path.is_file())
    groups = {path.parent for path in files if path.name in METADATA and not _is_array(path.parent)}
    expected, found = {}, {"refused": 0, "equal": 0, "metadata": 0, "silent": []}
    for _ in range(flips):
        path = files[rng.integers(len(files))]
        group = next(parent for parent in path.parents if parent in groups)
        below = path.relative_to(group).parts
        affected = store, group, below[0] if len(below) > 1 else None
        if affected not in expected:
            expected[affected] = _read_affected(*affected)
        good = path.read_bytes()
        byte, bit = int(rng.integers(len(good))), int(rng.integers(8))
        damaged = bytearray(good)
        damaged[byte] ^= 1 << bit
        found["metadata"] += path.name in METADATA
        try:
            path.write_bytes(damaged)
            if _same(_read_affected(*affected), expected[affected]):
                found["equal"] += 1
            else:
                found["silent"].append((str(path), byte, bit))
        except (PlateloomError, OSError):
            found["refused"] += 1
        finally:
            path.write_bytes(good)
    return found


def _is_array(path):
    """Whether a folder that has metadata is an array's."""
    if (path / ".zarray").exists():
        return True
    return (path / "zarr.json").exists() and json.loads((path / "zarr.json").read_bytes())["node_type"] == "array"


def _read_affected(store, group, name):
    """Everything that our own functions read from a group, or from one of its arrays, whole and in part."""
    forget_opened()
    found = [group_version(group), read_group(group), list_labels(group)]
    if group == store or group.parent.parent == store:
        found.append(list_fields(store))
    ome = (found[1] or {}).get("ome", {})
    datasets = [dataset["path"] for dataset in ome["multiscales"][0]["datasets"]] if "multiscales" in ome else []
    corner = (slice(0, 3), slice(2, 5))
    for level, dataset in enumerate(datasets):
        if name not in (None, dataset):
            continue
        if "image-label" in ome:
            where = group.parent.parent, group.name
            found += [read_labels(*where, level=level), read_labels(*where, level=level, window=corner)]
        else:
            found += [read_image(group, level=level), read_image(group, level=level, window=corner)]
            found += [describe_image(group), image_shape(group, level)]
    return found


def _same(one, two):
    return len(one) == len(two) and all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(one, two, strict=True)
    )
