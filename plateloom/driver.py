"""One run of a screen: its lock, its frozen config, and the second phase on the plates that are complete."""

import atexit
import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path

from plateloom.engine import locks
from plateloom.errors import ConfigError, LockedError
from plateloom.planning import Screen
from plateloom.store.provenance import PACKAGE, read_json, write_json

log = logging.getLogger(__name__)

LOCK = Path(".plateloom.lock")
FROZEN = Path(".plateloom/config.json")
PHASE = "PLATELOOM_RUN"  # process that holds the lock, for the second phase that it starts


def open_screen(config, *, main):
    """Check the config that Snakemake merged, and give the screen in the current folder.

    Parameters
    ----------
    config : dict
        Snakemake's; replaced in place by the full one.
    main : bool
        Whether this is the process that the user started. Others, which run single jobs on other machines, get the
        config that the run began with, so that an edit under way changes nothing before the next run.

    Returns
    -------
    Screen
    """
    _reach_interpreters()
    frozen = None if main else read_json(FROZEN)
    try:
        screen = Screen(frozen or dict(config))
    except ConfigError as error:
        from snakemake.exceptions import WorkflowError

        lines = "\n".join(f"  {problem}" for problem in error.problems)
        raise WorkflowError(f"The screen's configuration is wrong:\n{lines}") from None
    config.clear()
    config.update(screen.config.model_dump(mode="json"))
    return screen


def _reach_interpreters():
    """Let the interpreters that jobs start, and Dask's workers, import this package without an install."""
    paths = [str(PACKAGE.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


def begin_run(screen):
    """Take the screen's lock, which dies with this process, and freeze its config."""
    if os.environ.get(PHASE) != str(locks.read(LOCK).get("process")):
        holder = contextlib.ExitStack()
        try:
            holder.enter_context(locks.hold(LOCK, wait=False))
        except LockedError as error:
            print(f"Another run works on this screen: {error}", file=sys.stderr, flush=True)
            os._exit(1)  # an exception here would be printed as if the workflow had a bug
        atexit.register(holder.close)
    write_json(FROZEN, screen.config.model_dump(mode="json"))


def finish_complete_plates(log_files):
    """After a failed job: run what needs all plates on those that are complete, with the same command.

    Parameters
    ----------
    log_files : list of path
        Snakemake's logs, to tell a failed job from a run that was ended by a signal.
    """
    if PHASE in os.environ or not any("Error in rule" in Path(path).read_text(errors="replace") for path in log_files):
        return
    command = second_phase(sys.argv)
    log.info("Some plates failed; finishing the complete ones: %s", " ".join(command))
    subprocess.run(command, env=os.environ | {PHASE: str(os.getpid())}, check=False)


def second_phase(arguments):
    """The same snakemake command, on the complete plates only.

    >>> second_phase(["snakemake", "--cores", "2", "--config", "parts=2"])[1:]
    ['-m', 'snakemake', '--cores', '2', '--config', 'complete_only=1', 'parts=2']
    """
    rest = list(arguments[1:])
    for name in ("--config", "-C"):
        if name in rest:
            rest.insert(rest.index(name) + 1, "complete_only=1")
            break
    else:
        rest += ["--config", "complete_only=1"]
    return [sys.executable, "-m", "snakemake", *rest]
