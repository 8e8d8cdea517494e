"""Kernel locks: they die with their holder, on this machine and on network file systems that support flock."""

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from plateloom.errors import LockedError

RUN = Path(".plateloom.lock")  # of a whole run, in the screen's folder
GLANCES = 5  # tries before a lock counts as held: `is_held` takes it for a moment
GLANCE = 0.1  # [s]


@contextlib.contextmanager
def hold(path, *, wait):
    """Hold an exclusive lock while the block runs.

    Parameters
    ----------
    path : path
        The lock file. It stays, with what the last holder said of itself.
    wait : bool
        Wait for another holder to end, or raise at once.

    Yields
    ------
    Lock
        `previous`: what the last holder said of itself; `say`: what this one says.

    Raises
    ------
    LockedError
        If another process holds the lock and `wait` is false.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        for left in range(GLANCES, 0, -1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if left == 1:
                    raise LockedError(
                        f"{str(path)!r} is held by {describe(_said(file))}; wait for it, or end it"
                    ) from None
                time.sleep(GLANCE)
        lock = Lock(file)
        lock.say()
        yield lock


class Lock:
    """A lock that is held."""

    def __init__(self, file):
        self.file, self.previous = file, _said(file)
        self.holder = {"host": socket.gethostname(), "process": os.getpid(), "since": int(time.time())}

    def say(self, **note):
        """Replace what the lock file says: who holds it, and any JSON values beside."""
        self.file.seek(0)
        self.file.truncate()
        self.file.write(json.dumps(self.holder | note))
        self.file.flush()


def is_held(path):
    """Whether some process holds the lock; looks without taking it for longer than a moment."""
    try:
        with open(path) as file:  # whoever may read the screen may know who works on it
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read(path):
    """What the last holder said of itself; empty where there is no lock file."""
    try:
        with open(path) as file:
            return _said(file)
    except OSError:
        return {}


def describe(said):
    """`process 12 on host since …`, for messages."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(said["since"])) if "since" in said else "an unknown time"
    return f"process {said.get('process', '?')} on {said.get('host', '?')} since {since}"


def _said(file):
    file.seek(0)
    try:
        return json.loads(file.read() or "{}")
    except json.JSONDecodeError:
        return {}
