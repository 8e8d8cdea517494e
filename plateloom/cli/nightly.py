"""`plateloom nightly`: take whole plates from an inbox, run what is left, and say in the morning what became of it."""

import contextlib
import functools
import shlex
import signal
import sys
import time
import traceback
from pathlib import Path

import click

from plateloom.errors import ConfigError, LockedError, PlateloomError

LOCK = Path(".plateloom/nightly.lock")
CLOSING = 0.1  # share of the hours that is kept for the results of the screen


@click.command()
@click.argument("folder", metavar="SCREEN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--inbox",
    "inboxes",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Folder that plates arrive in, each in a folder of its own; may be repeated.",
)
@click.option(
    "--hours",
    type=click.FloatRange(min=0, min_open=True),
    help="Time for all of it [h]: plates get nine tenths, what is left is for the screen's results. Default: no limit.",
)
@click.option("--profile", "profiles", multiple=True, metavar="NAME", help="As of `plateloom run`.")
@click.option("--cores", default=None, metavar="N", help="As of `plateloom run`.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Jobs of a cluster in the queue at once. Default: what the profile says.",
)
@click.option(
    "--acquisition",
    "acquisitions",
    multiple=True,
    metavar="FOLDER=NUMBER",
    help="Say once that a folder of the inbox is a plate that was imaged again: its second acquisition, or third …",
)
@click.option("--dry-run", "-n", is_flag=True, help="Only show what is found in the inbox.")
@click.argument("snakemake_options", metavar="[-- OPTION...]", nargs=-1, type=click.UNPROCESSED)
def command(folder, inboxes, hours, profiles, cores, jobs, acquisitions, dry_run, snakemake_options):
    """Take the plates of an inbox that are whole into SCREEN, run it, and write results/nights/DATE.html and .txt.

    To be started once a night by cron, a systemd timer or scrontab; docs/nightly.md shows how. A plate is whole when the
    end marker and the number of files are there that the config asks for, and two looks, `nightly.settle_minutes` apart,
    find the same files. Others wait for the next night. What stands behind `--` goes to snakemake. Exit code: as of `plateloom run`, where 3 also means that folders
    wait or were not taken.

    \b
    plateloom nightly screens/mine --inbox /data/microscope --hours 10
    plateloom nightly screens/mine --inbox /data/microscope --acquisition plate7_again=2
    plateloom nightly screens/mine --inbox /data/microscope --dry-run
    """
    from plateloom.cli.run import check_handed_on
    from plateloom.config import read_config
    from plateloom.engine import locks
    from plateloom.store.provenance import follow_folder

    check_handed_on(snakemake_options)
    try:
        config, mistakes = read_config(folder), []
    except ConfigError as error:
        if dry_run or not (folder / "config.yaml").exists():
            raise
        config, mistakes = _to_tell(folder), error.problems
    numbers = _read_acquisitions(acquisitions, inboxes)
    if dry_run:
        _show(folder, config, inboxes, numbers)
        return
    options = [*(text for name in profiles for text in ("--profile", name)), *(["--cores", cores] if cores else [])]
    options += [*(["--jobs", str(jobs)] if jobs else []), *snakemake_options]
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.hold(folder / LOCK, wait=False))
        except LockedError as error:
            raise LockedError(f"another night works on this screen: {error}; nothing was started") from None
        except OSError as error:
            raise ConfigError(f"{str(folder)!r} cannot be written: {error.strerror or error}") from None
        stack.enter_context(_listening())
        follow_folder(folder)
        night = Night(folder, config, hours, options)
        try:
            if mistakes:
                night.refuse(mistakes)
            else:
                night.take(inboxes, numbers)
                night.run()
        finally:
            # A signal that ends the night leaves time for its summary; one more ends it at once.
            code = night.close()
        sys.exit(code)


class Night:
    """One night of a screen, step by step.

    Parameters
    ----------
    folder : Path
        The screen's.
    config : Config
    hours : float or None
        [h].
    options : list of str
        Of `plateloom run`.
    """

    def __init__(self, folder, config, hours, options):
        from plateloom.inbox import read_state

        self.folder, self.config, self.hours, self.began = folder, config, hours, time.time()
        self.options, self.state = options, read_state(folder)
        self.arrivals, self.registered, self.problems = [], [], []
        self.code, self.over = 0, False

    def left(self, share=1.0):
        """Time that is left of a share of the hours [s]; None: no limit."""
        return None if self.hours is None else self.began + 3600 * self.hours * share - time.time()

    def take(self, inboxes, numbers):
        """Look at the inboxes, twice where that tells more, and register the plates that are whole."""
        from plateloom import inbox
        from plateloom.nights import made_plates
        from plateloom.status import read_screen

        with self._faults():
            if "told" not in self.state:  # a screen that was there before its first night
                there = inbox.read_registered(self.folder, self.config)
                self.state["told"] = made_plates(self.folder, read_screen(self.folder)) if there else {}
                self.state["known"] = [plate.plate for plate in there]
            look = functools.partial(_look, self.folder, self.config, inboxes, self.state, numbers)
            self.arrivals = look()
            inbox.write_state(self.folder, self.state)
            settling = [one for one in self.arrivals if one.state == inbox.SETTLING]
            if settling:
                wait = 60 * self.config.nightly.settle_minutes
                wait += max(one.unchanged for one in settling) - time.time()
                if wait > 1:
                    click.echo(f"{len(settling)} folders are new; looking again in {wait / 60:.0f} min")
                if self.hours is None or wait < self.left(1 - CLOSING):
                    time.sleep(max(0.0, wait))
                    self.arrivals = look()
                    inbox.write_state(self.folder, self.state)
            whole = [one for one in self.arrivals if one.state == inbox.COMPLETE]
            inbox.register(self.folder, self.config, whole)
            self.registered = whole
            self.arrivals = [one for one in self.arrivals if one.state != inbox.COMPLETE]
        for one in [*self.registered, *self.arrivals]:
            click.echo(_line(one))

    def refuse(self, mistakes):
        """Do nothing, since the config is wrong, but say so in the morning."""
        self._tell(*mistakes)
        self.code = 2

    def run(self):
        """Run what is new and what is left; where the hours are over, the screen's results of the complete plates."""
        from plateloom import inbox
        from plateloom.config import read_config
        from plateloom.planning import Screen

        if self.code == 2:
            return
        with self._faults():
            if not inbox.read_registered(self.folder, self.config):
                click.echo("no plate yet")
                return
            code, self.over = self._run(self.options, self.left(1 - CLOSING))
            self.code = max(self.code, code) if code != 3 else self.code or 3
            if self.over:
                click.echo("the time for plates is over")
                screen = Screen(read_config(self.folder).model_dump(mode="json"), self.folder)
                left = self.left()
                if left > 0 and any(map(screen.is_complete, screen.plates)):
                    self._run([*self.options, "--config", "complete_only=1"], left)
                self.code = 1

    def _run(self, options, seconds):
        """Run the screen in this process, which so hears every signal; (exit code, whether the time was over)."""
        from plateloom.cli.run import command as run

        arguments = [str(self.folder), "--unattended", *options]
        click.echo(shlex.join(["plateloom", "run", *arguments]))
        over = []

        def ring(number, frame):
            over.append(True)
            signal.raise_signal(signal.SIGTERM)  # whoever listens to that ends what it does

        before = signal.signal(signal.SIGALRM, ring)
        code = 0
        try:
            if seconds is not None:
                signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
            run.main(arguments, standalone_mode=False)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        if code > 128 and not over:
            raise SystemExit(code)
        return (1, True) if code > 128 else (code, False)

    @contextlib.contextmanager
    def _faults(self):
        """Keep what goes wrong for the summary, and its exit code."""
        try:
            yield
        except ConfigError as error:
            self._tell(*error.problems)
            self.code = 2
        except (PlateloomError, OSError) as error:
            self._tell(str(error))
            self.code = max(self.code, 1)
        except SystemExit as stop:  # a signal
            self.code = stop.code
            raise
        except Exception as error:  # a fault of ours: the summary is to say it, too
            traceback.print_exc()
            self._tell(f"{type(error).__name__}: {error}")
            self.code = max(self.code, 1)

    def _tell(self, *problems):
        """Say what is wrong at once, and keep it for the summary."""
        self.problems += problems
        for problem in problems:
            click.echo(problem, err=True)

    def close(self):
        """Write the summary, call the hook, and give the exit code."""
        from plateloom import nights
        from plateloom.inbox import write_state

        if self.code == 0 and self.arrivals:
            self.code = 3
        html = None
        for describe in (self._describe, self._describe_failure):
            try:
                report, news = describe()
                html, txt = nights.write_summary(self.folder, report)
                break
            except Exception as error:  # whatever it is, somebody waits for the line in the morning
                if not isinstance(error, OSError):
                    traceback.print_exc()
                self._tell(f"the summary cannot be written: {error if isinstance(error, OSError) else repr(error)}")
                self.code = self.code if self.code not in (0, 3) else 1
        click.echo(nights.summary_line(report))
        self.state |= news
        for one in self.registered:
            self.state["folders"].pop(str(one.source), None)
        if html is None:
            return self.code
        try:
            write_state(self.folder, self.state)
        except OSError as error:
            click.echo(f"what was told cannot be kept: {error}", err=True)
            self.code = self.code if self.code not in (0, 3) else 1
        click.echo(f"summary: {html}")
        hook = self.config.nightly.hook
        if hook and (failure := nights.call_hook(hook, folder=self.folder, html=html, txt=txt, code=self.code)):
            click.echo(failure, err=True)
        return self.code

    def _describe(self):
        """The report of this night, and what is to be kept of it for the next one."""
        from plateloom import nights

        report, told, known = nights.describe_night(
            self.folder,
            self.config,
            arrivals=self.arrivals,
            registered=self.registered,
            told=self.state.get("told", {}),
            known=self.state.get("known", []),
            code=self.code,
            over=self.over,
            began=self.began,
            took=time.time() - self.began,
            hours=self.hours,
            problems=self.problems,
            options=self.options,
        )
        # Without `told`, plates.tsv could not be read.
        return report, {"told": told, "known": known} if "told" in self.state else {}

    def _describe_failure(self):
        """The report of a night that cannot be described, since a record or what else it tells of is unusual; nothing to keep."""
        from plateloom import nights

        took = time.time() - self.began
        return nights.describe_failure(
            self.folder, code=self.code, began=self.began, took=took, problems=self.problems
        ), {}


@contextlib.contextmanager
def _listening():
    """Let a signal leave whatever is under way with 128 + its number; only `nohup` is heard."""
    from plateloom.driver import ENDING

    def end(number, frame):
        raise SystemExit(128 + number)

    heard = [number for number in ENDING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _to_tell(folder):
    """A config that serves to tell of mistakes in the screen's own: its section `nightly`, if that is right."""
    import yaml

    from plateloom.config import load_config

    channels = {"channels": {"DNA": {"source": "none"}}}
    try:
        given = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8-sig"))
        return load_config(channels | {"nightly": given["nightly"]})
    except (ConfigError, OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return load_config(channels)


def _read_acquisitions(texts, inboxes):
    """``FOLDER=NUMBER`` as a dict of Path to int; the folder by its path or by its name in an inbox."""
    numbers, problems = {}, []
    for text in texts:
        name, _, number = text.rpartition("=")
        places = [path for path in [Path(name), *(inbox / name for inbox in inboxes)] if name and path.is_dir()]
        if not name:
            problems.append(f"--acquisition {text!r}: expected FOLDER=NUMBER with a number from 1 on")
        elif not places:
            problems.append(f"--acquisition {text!r}: no folder {name!r}, neither here nor in the inbox")
        elif not number.isdecimal() or int(number) < 1:
            problems.append(f"--acquisition {text!r}: expected FOLDER=NUMBER with a number from 1 on")
        else:
            numbers[places[-1].resolve()] = int(number)
    if problems:
        raise ConfigError(problems)
    return numbers


def _look(folder, config, inboxes, state, numbers, ahead=False):
    """See `inbox.look`; what cannot be listed is said in words."""
    from plateloom import inbox

    try:
        return inbox.look(folder, config, inboxes, state, acquisitions=numbers, ahead=ahead)
    except OSError as error:
        raise OSError(
            f"--inbox: {str(error.filename or '')!r} cannot be listed (not mounted?): {error.strerror}"
        ) from error


def _show(folder, config, inboxes, numbers):
    """Say what the inbox holds, and change nothing."""
    from plateloom import inbox

    try:
        arrivals = _look(folder, config, inboxes, inbox.read_state(folder), numbers, ahead=True)
    except OSError as error:
        raise ConfigError(str(error)) from None
    for one in arrivals:
        click.echo(_line(one))
    if not arrivals:
        click.echo("nothing new in the inbox")


def _line(one):
    """One folder of the inbox, for the log."""
    what = "new" if one.state == "complete" else one.state
    more = f": {one.reason}" if one.reason else ""
    return f"{what}: {one.name or '?'} from {str(one.source)!r}, {one.files} files{more}"
