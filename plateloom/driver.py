"""One run of a screen: its lock, its frozen config, and the second phase on the plates that are complete."""

import atexit
import contextlib
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

from plateloom import runs
from plateloom.engine import locks, schedulers
from plateloom.errors import ConfigError, LockedError, SchedulerError
from plateloom.planning import OF_THE_RUN, SOURCES, Screen
from plateloom.store.provenance import PACKAGE, follow_folder, read_json, write_json

log = logging.getLogger(__name__)

LOCK = locks.RUN
FROZEN = Path(".plateloom/run.json")
PHASE = "PLATELOOM_RUN"  # process that holds the lock, for the second phase that it starts
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_ended_by = 0  # the first signal that told this process to end
_outcome = None  # exit code as far as Snakemake has told it


def read_frozen(*, main):
    """What the run began with, where this process is one of a run under way; None where a run begins here.

    Its jobs and its second phase get the config, plate list and listings that it began with: an edit under way holds
    from the next run on, and config.yaml, which may be half written, is not even read.

    Parameters
    ----------
    main : bool
        Whether this is no process of a single job.

    Returns
    -------
    dict or None
        From `Screen.freeze`.
    """
    if not main:
        return read_json(FROZEN)
    return _freeze_complete() if _in_second_phase() else None


def open_screen(config, *, main):
    """Check the config that Snakemake merged, and give the screen in the current folder.

    Parameters
    ----------
    config : dict
        Snakemake's; replaced in place by the full one.
    main : bool
        Whether this is no process of a single job; see `read_frozen`.

    Returns
    -------
    Screen
    """
    _reach_interpreters()
    follow_folder()  # also in the process of each job, on whatever machine
    if main:
        _listen()
    try:
        screen = Screen(dict(config), frozen=read_frozen(main=main))
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
    # For the commands of profiles, which must find our scripts, and the interpreter to run them with.
    os.environ |= {"PLATELOOM_HOME": str(PACKAGE.parent), "PLATELOOM_PYTHON": sys.executable}


def begin_run(screen):
    """Take the screen's lock, which dies with this process, and freeze its config."""
    _listen()  # once more: Snakemake's scheduler has put its own handler in place of ours
    if not _in_second_phase():
        holder = contextlib.ExitStack()
        try:
            holder.enter_context(locks.hold(LOCK, wait=False))
        except LockedError as error:
            print(f"Another run works on this screen: {error}", file=sys.stderr, flush=True)
            os._exit(1)  # an exception here would be printed as if the workflow had a bug
        atexit.register(holder.close)
        _cancel_orphans()
        folder = runs.begin(screen, sys.argv).resolve()
        atexit.register(lambda: runs.end(folder, 128 + _ended_by if _ended_by else _outcome))
        write_json(SOURCES, screen.remember_sources())
    write_json(FROZEN, screen.freeze())


def _in_second_phase():
    """Whether the run that holds the lock has started this process to finish what is complete."""
    return os.environ.get(PHASE) == str(locks.read(LOCK).get("process"))


def end_run():
    """Remember that all jobs have been done."""
    global _outcome
    _outcome = 0


def _cancel_orphans():
    """Cancel the cluster's jobs that a killed run has left, before their work is given to others."""
    try:
        cancelled = schedulers.cancel_orphans()
    except SchedulerError as error:
        print(f"{error}; nothing was started", file=sys.stderr, flush=True)
        os._exit(1)
    if cancelled:
        print(f"Cancelled jobs of an earlier run: {', '.join(cancelled)}", file=sys.stderr, flush=True)


def _listen():
    """Let a signal end this process with 128 + its number, silently, and be remembered.

    Handlers are set even where SIGINT is ignored, as it is in the background of a shell script. Only `nohup` is heard.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number, frame):
    """Leave whatever is under way; Snakemake then cancels its jobs. A second signal must not cut that short."""
    global _ended_by
    if not _ended_by:
        _ended_by = number
        # Jobs that end because they were told to are no errors, and their logs need not be shown.
        logging.getLogger("snakemake.logging").addFilter(lambda record: record.levelno < logging.ERROR)
        raise SystemExit(128 + number)


def finish_complete_plates(log_files):
    """After a failed job: run what needs all plates on those that are complete, with the same command.

    Where a job fails on one of these, once more without what would follow from it.

    A run that a signal has ended ends here, with 128 + the signal's number.

    Parameters
    ----------
    log_files : list of path
        Snakemake's logs, to tell a failed job from whatever else ended the run.
    """
    global _outcome
    _outcome = 1
    if _ended_by:
        sys.exit(128 + _ended_by)
    if PHASE in os.environ or not any("Error in rule" in Path(path).read_text(errors="replace") for path in log_files):
        return
    # Snakemake works in the screen's folder by now; the shell that it was called from tells where its options' paths begin.
    command = second_phase(sys.argv, screen=Path.cwd(), called_from=Path(os.environ.get("PWD", ".")))
    tried = []
    while (left_out := _left_out()) not in tried:  # what fails there leaves out more, until nothing more fails
        tried.append(left_out)
        log.info("Some plates failed; finishing the complete ones: %s", shlex.join(command))
        process = subprocess.Popen(command, env=os.environ | {PHASE: str(os.getpid())})
        try:
            code = process.wait()
        except SystemExit:
            process.terminate()
            process.wait()
            raise
        if not code:
            return
    print(f"What needs all plates could not be finished on the complete ones: {shlex.join(command)}", file=sys.stderr)


def _freeze_complete():
    """What the run began with, for the plates that are complete now."""
    frozen = {name: value for name, value in read_json(FROZEN).items() if name not in OF_THE_RUN}
    return frozen | {"config": frozen["config"] | {"complete_only": True}}


def _left_out():
    """What the second phase would do without now: plates, and stages of plates."""
    screen = Screen({}, frozen=_freeze_complete())
    return sorted(set(screen.plates) - set(screen.complete_plates)), screen.failed_stages


def second_phase(arguments, *, screen, called_from):
    """The same snakemake command, on the complete plates only.

    Parameters
    ----------
    arguments : list of str
        Of the first phase.
    screen : Path
        The screen's folder.
    called_from : Path
        The folder that relative paths in the arguments begin at.

    Returns
    -------
    list of str

    Examples
    --------
    >>> first = ["snakemake", "-d", "demo", "--cores", "2", "--config=parts=2"]
    >>> second_phase(first, screen=Path("/s/demo"), called_from=Path("/s"))[5:]
    ['--directory', '/s/demo', '--cores', '2', '--config', 'complete_only=1', 'parts=2']
    """
    rest, config, waiting = [], ["complete_only=1"], list(arguments[1:])
    while waiting:
        name, joined, value = waiting.pop(0).partition("=")
        if name in ("--directory", "-d", "--snakefile", "-s"):
            if not joined:
                waiting.pop(0)
        elif name in ("--config", "-C"):
            config += [value] if joined else []
            while waiting and not waiting[0].startswith("-"):
                config.append(waiting.pop(0))
        elif name in ("--profile", "--workflow-profile"):
            value = value if joined else waiting.pop(0)
            rest += [name, str(called_from / value) if (called_from / value).exists() else value]
        else:
            rest.append(f"{name}{joined}{value}")
    where = ["--snakefile", str(PACKAGE.parent / "Snakefile"), "--directory", str(screen)]
    return [sys.executable, "-m", "snakemake", *where, *rest, "--config", *config]
