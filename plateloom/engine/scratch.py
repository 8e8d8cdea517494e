"""A job's own folder on the node's disk, for files that only its own tasks read and no other job needs."""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

from plateloom.store.provenance import digest

log = logging.getLogger(__name__)

FRESH = 60.0  # [s] in which a folder may be there whose job has not locked it yet


@contextlib.contextmanager
def open_scratch(base, record):
    """Make a job's folder, and remove it with all that is in it in the end; what killed jobs have left goes first.

    Parameters
    ----------
    base : str
        Folder on the node's disk; variables of the environment are those of the node, as in ``$TMPDIR``. Empty: none.
    record : path
        Of the job, which holds its lock: what lies there of the same job is nobody's.

    Yields
    ------
    Path or None
        None where there is no such folder: the base is empty, names a variable that is not set, or cannot be written.
    """
    folder = _make(os.path.expandvars(base), record) if base else None
    if folder is None:
        yield None
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # dies with this process, and tells others that the folder is in use
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _make(base, record):
    """Make the folder after what was left is gone; None where that is not possible."""
    if "$" in base:
        log.warning("no scratch folder: %s is not set here; files lie beside the results", base)
        return None
    mine = f"plateloom-{digest(str(Path(record).resolve()))[:12]}-"
    try:
        Path(base).mkdir(parents=True, exist_ok=True)
        for old in Path(base).glob("plateloom-*"):
            if old.name.startswith(mine) or _is_left(old):
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=mine, dir=base))
    except OSError as error:
        log.warning("no scratch folder: %s; files lie beside the results", error)
        return None


def _is_left(folder):
    """Whether the job of a folder is dead."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # gone by now, or somebody else's
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return time.time() - os.fstat(handle).st_mtime > FRESH
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
