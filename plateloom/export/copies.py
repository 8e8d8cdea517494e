"""Files and plates taken over into another folder; what they were taken from is never changed.

Three ways: a clone shares its blocks with the original until either is written to (Btrfs, XFS, bcachefs …), a hard link
is the same file under a second name, a copy is bytes of its own. Only the pixels of a plate are ever hard links: everything
else, metadata first of all, is a file of its own, since programs rewrite it in place.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from plateloom.errors import ConfigError
from plateloom.store.plate import read_group, well_path, write_group
from plateloom.store.verification import FOREIGN, METADATA, check_chunks

CLONE, LINK, COPY = "clones", "hard links", "copies"
FICLONE = 0x40049409  # Linux: share all blocks of another file
THREADS = 8  # a network file system answers slowly
NOT_HERE = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EACCES)


@dataclass
class CopiedPlate:
    """What was taken over of a plate.

    Attributes
    ----------
    fields : dict of str to list
        Fields by well.
    size : int
        Of all files [bytes].
    left_out : list of str
        Wells that the plate lists and that are not finished.
    """

    fields: dict
    size: int
    left_out: list


def choose_way(sample, folder, link):
    """Find out how pixels can be taken over.

    Parameters
    ----------
    sample : Path
        A file to try with.
    folder : Path
        Where files are to go.
    link : bool or None
        True: hard links. False: copies. None: the first that works of clones, hard links, copies.

    Returns
    -------
    str
        `CLONE`, `LINK` or `COPY`.

    Raises
    ------
    ConfigError
        If hard links are asked for and cannot be made.
    """
    if link is False:
        return COPY
    with tempfile.TemporaryDirectory(dir=folder, prefix=".plateloom-") as trial:
        if link is None and _clone(sample, Path(trial, "clone")):
            return CLONE
        try:
            os.link(sample, Path(trial, "link"))
            return LINK
        except OSError as error:
            if error.errno not in NOT_HERE:
                raise
            if link:
                raise ConfigError(
                    f"--link: {str(folder)!r} cannot hold hard links to the screen's files ({error.strerror}); choose a "
                    "folder on the screen's disk, or --copy"
                ) from None
    return COPY


def take_file(source, target, way, *, pixels=False):
    """Take a file over.

    Parameters
    ----------
    source, target : Path
    way : str
        See `choose_way`.
    pixels : bool
        Whether it may become a hard link; other files are cloned or copied.

    Returns
    -------
    int
        Size [bytes].
    """
    if way == CLONE and _clone(source, target):
        return target.stat().st_size
    if way == LINK and pixels:
        try:
            os.link(source, target)
            return target.stat().st_size
        except OSError as error:
            if error.errno != errno.EMLINK:  # as many names as a file can have: then bytes of its own
                raise
    shutil.copyfile(source, target)
    return target.stat().st_size


def _clone(source, target):
    """Clone a file; False, and no file, where the file system cannot."""
    with open(source, "rb") as original, open(target, "wb") as clone:
        try:
            fcntl.ioctl(clone.fileno(), FICLONE, original.fileno())
            return True
        except OSError as error:
            if error.errno not in NOT_HERE:
                raise
    target.unlink()
    return False


def take_tree(source, target, way, *, pixels=False):
    """Take a folder over with all below it; files whose name begins with a dot are leftovers, save zarr's own.

    Returns
    -------
    int
        Size [bytes].
    """
    size = 0
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(target, os.path.relpath(folder, source))
        below.mkdir(parents=True, exist_ok=True)
        for name in sorted(files):
            if name in METADATA or not name.startswith("."):
                size += take_file(Path(folder, name), below / name, way, pixels=pixels and name not in METADATA)
    return size


def measure_tree(folder):
    """Size of all files below a folder [bytes]."""
    return sum(Path(path, name).stat().st_size for path, _, files in os.walk(folder) for name in files)


def take_plate(store, target, way, *, incomplete):
    """Take a plate over: what its metadata list, and tables that others have added; nothing else. Every chunk is checked.

    Parameters
    ----------
    store, target : Path
        OME-Zarr plates, the second to be written.
    way : str
    incomplete : bool
        Leave out wells that are listed and not there, instead of refusing the plate.

    Returns
    -------
    CopiedPlate

    Raises
    ------
    CorruptStoreError
        If metadata or a chunk are not those that were written, or a listed well is missing.
    """
    attributes = read_group(store)
    listed = attributes["ome"]["plate"]["wells"]
    there, fields, left_out = [], {}, []
    for entry in listed:
        name = entry["path"].replace("/", "")
        well = read_group(store / entry["path"])
        if well is None and incomplete:
            left_out.append(name)
            continue
        there.append(entry)
        images = [image["path"] for image in (well or {"ome": {"well": {"images": []}}})["ome"]["well"]["images"]]
        fields[name] = [int(image) if image.isdigit() else image for image in images]
    size = _take_metadata(store, target, way)
    for row in sorted({entry["path"].split("/")[0] for entry in there}):
        size += _take_metadata(store / row, target / row, way)
    for entry in there:
        size += _take_metadata(store / entry["path"], target / entry["path"], way)
    size += _take_foreign(store, target, way)
    images = [well_path("", well) / str(field) for well in fields for field in fields[well]]
    with ThreadPoolExecutor(THREADS) as pool:
        size += sum(pool.map(lambda image: _take_image(store / image, target / image, way), images))
    if left_out:
        attributes["ome"]["plate"]["wells"] = there
        write_group(target, attributes)
    return CopiedPlate(fields, size, left_out)


def _take_image(source, target, way):
    """Take an image or a label image over, with its labels."""
    attributes = read_group(source)
    if attributes is None:
        raise FileNotFoundError(errno.ENOENT, "a listed image is not there", str(source))
    check_chunks(source, attributes)
    size = _take_metadata(source, target, way)
    for pyramid in attributes["ome"].get("multiscales", []):
        for dataset in pyramid["datasets"]:
            size += take_tree(source / dataset["path"], target / dataset["path"], way, pixels=True)
    labels = read_group(source / "labels")
    if labels is not None:
        size += _take_metadata(source / "labels", target / "labels", way)
        for name in labels["ome"].get("labels", []):
            size += _take_image(source / "labels" / name, target / "labels" / name, way)
    return size + _take_foreign(source, target, way)


def _take_metadata(source, target, way):
    """Take a group's own metadata over, as files of their own."""
    target.mkdir(parents=True, exist_ok=True)
    there = [name for name in METADATA if (source / name).exists()]
    return sum(take_file(source / name, target / name, way) for name in there)


def _take_foreign(source, target, way):
    """Take over what other programs have added to a group."""
    there = [name for name in FOREIGN if (source / name).is_dir()]
    return sum(take_tree(source / name, target / name, way) for name in there)


@contextlib.contextmanager
def whole_or_not_at_all(out):
    """Give a folder to write to, which becomes `out` when the block ends well, and is removed when it does not.

    Parameters
    ----------
    out : Path
        Must not exist; the folder that it is to lie in must.

    Yields
    ------
    Path
    """
    holder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        partial = holder / out.name
        partial.mkdir()  # with the usual rights; a temporary folder is its owner's alone
        yield partial
        os.rename(partial, out)
    finally:
        shutil.rmtree(holder, ignore_errors=True)
