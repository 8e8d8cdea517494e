"""`plateloom run`: the snakemake command that runs a screen, printed and executed; its exit code says how it ended."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from plateloom.errors import INTERRUPTION, ConfigError, LockedError, SchedulerError, did_you_mean

SNAKEFILE = Path(__file__).resolve().parents[2] / "Snakefile"
PROFILES = sorted(path.parent.name for path in SNAKEFILE.parent.glob("profiles/*/profile.yaml"))
REPORT = "results/screen/report.html"
SHOWN = 10  # warnings; a screen of hundreds of plates may have one of each
AHEAD = 0.3  # [s] by which Snakemake is told to end before its jobs are
GRACE = 5.0  # [s] for jobs to end after Snakemake has


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME",
    help=f"A profile of Plateloom ({', '.join(PROFILES)}), or the path or the name of one of your own, or one of each; "
    "default: this machine.",
)
@click.option("--cores", default=None, metavar="N", help="Cores to use on this machine, or `all` (default).")
@click.option(
    "--until",
    multiple=True,
    metavar="STAGE",
    help="Stop after this stage, e.g. conversion, segmentation, features; may be repeated.",
)
@click.option("--dry-run", "-n", is_flag=True, help="Show what would run.")
@click.option("--recompute", is_flag=True, help="Make results again whose code has changed, however much work that is.")
@click.option("--unattended", is_flag=True, hidden=True, help="A source folder that is not there puts its plate off.")
@click.argument("snakemake_options", nargs=-1, type=click.UNPROCESSED)
def command(folder, profiles, cores, until, dry_run, recompute, unattended, snakemake_options):
    """Run the screen in FOLDER; more options go to snakemake as they are.

    Exit code: 0 complete; 1 work is left that the same command does later (an infrastructure failure, or another run
    holds the screen); 2 the configuration or the call is wrong, nothing was started; 3 finished, but data are at fault:
    plates or fields are quarantined or put off, a plate has lost its controls or lies apart from the others, or a step of
    the screen had nothing to work on; 130, 143 interrupted by Ctrl-C, SIGTERM. After an upgrade of Plateloom a run that would make much work again because of changed code ends
    with 2 and says what it would cost: --recompute does it, `plateloom accept` keeps the results.

    \b
    plateloom run screens/demo
    plateloom run screens/demo --until segmentation
    plateloom run screens/demo --cores 4 --dry-run
    plateloom run screens/demo --profile slurm --profile ~/mysite
    """
    from plateloom.driver import FROZEN
    from plateloom.planning import STAGES
    from plateloom.runs import note_exit
    from plateloom.status import read_screen, screen_state, states_until, warning_lines
    from plateloom.store.provenance import follow_folder, read_json

    follow_folder(folder)
    options = [*_profile_options(profiles), *_cores_options(cores), *(["--dry-run"] if dry_run else [])]
    _check_options(snakemake_options)
    if not dry_run:
        _look_for_cluster(profiles, snakemake_options)
        _look_at_lock(folder)
    warnings = check_screen(folder, sources=not unattended)
    last = [_last_stage(folder, stage) for stage in until]
    options += ["--until", *(STAGES[stage].script for stage in last)] if last else []
    if not recompute and (little := check_cost(folder, last, ask=not dry_run)):
        click.echo(little)
    _check_writable(folder)
    if not unattended:
        for line in warnings[:SHOWN]:
            click.echo(line, err=True)
        if len(warnings) > SHOWN:
            click.echo(f"{len(warnings) - SHOWN} more: plateloom check {shlex.quote(str(folder))}", err=True)
    given, folder = folder, folder.resolve()
    arguments = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--directory", str(folder)]
    arguments += [*options, *snakemake_options]
    click.echo(shlex.join(arguments))
    earlier, began = _time_of(folder / FROZEN), time.time()
    code = run_group(arguments)
    if code > 128:
        if not dry_run:
            _cancel_jobs(folder)
            note_exit(folder, code, since=began)
        click.echo(INTERRUPTION, err=True)
        sys.exit(code)
    if dry_run:
        sys.exit(1 if code else 0)
    # Where there was nothing to do, the frozen config is that of an earlier run.
    frozen = read_json(folder / FROZEN) if _time_of(folder / FROZEN) != earlier else None
    states = read_screen(folder, frozen=frozen)
    state = screen_state(states_until(states, last) if last else states)
    for line in [] if last else warning_lines(state):
        click.echo(line)
    click.echo(state["summary"] + (f" up to {', '.join(until)}" if until else ""))
    # Where nothing was started, options may have asked for less than the config does.
    judged = frozen is not None or not snakemake_options
    if code or (judged and state["open"]):
        click.echo(f"work is left; what and why: plateloom status {shlex.quote(str(given))}", err=True)
        note_exit(folder, 1, since=began)
        sys.exit(1)
    if not last and (folder / REPORT).exists():
        click.echo(f"report: {given / REPORT}")
    at_fault = ("with_failures", "quarantined", "deferred", "not_made", *([] if last else ["alarmed"]))
    code = 3 if any(state[name] for name in at_fault) else 0
    note_exit(folder, code, since=began)
    sys.exit(code)


def run_here(folder, profiles, cores, until=(), more=()):
    """Run a screen for another command in this process, which so hears every signal; returns the exit code."""
    options = [*(text for name in profiles for text in ("--profile", name)), *(["--cores", cores] if cores else [])]
    options += [text for stage in until for text in ("--until", stage)]
    try:
        command.main([str(folder), *options, *more], standalone_mode=False)
    except SystemExit as stop:
        return stop.code or 0
    return 0


def _cancel_jobs(folder):
    """Cancel the cluster's jobs that an interrupted Snakemake had no time to cancel; else the next run does."""
    from plateloom.engine import locks, schedulers

    if locks.is_held(folder / locks.RUN):  # by another run, whose jobs they are
        return
    with contextlib.suppress(SchedulerError):
        schedulers.cancel_orphans(folder, patience=GRACE, completing=GRACE)


def _time_of(path):
    """When a file was written [ns]; 0 where it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _profile_options(names):
    """Snakemake's options for profiles: one of ours in place of `default`, a foreign one below it."""
    if not names:
        return []
    from snakemake.cli import get_profile_dir

    options = {}
    for name in names:
        own = name in PROFILES
        if not own and (not name or get_profile_dir(name) is None):
            raise ConfigError(
                f"--profile {name!r}: no such profile.{did_you_mean(name, PROFILES)} Plateloom has: {', '.join(PROFILES)}. "
                "Else give the path of a folder that holds a profile.yaml, or the name of such a folder in "
                "~/.config/snakemake"
            )
        option = "--workflow-profile" if own else "--profile"
        if option in options:
            raise ConfigError(
                f"--profile {name!r}: one profile of Plateloom and one of your own is the most there can be"
            )
        options[option] = str(SNAKEFILE.parent / "profiles" / name) if own else name
    return [text for option in options.items() for text in option]


def check_profiles(names):
    """Refuse profiles that are not there, or whose scheduler is not; for commands that remove something before they run."""
    _profile_options(names)
    _look_for_cluster(names)


def end_earlier_jobs(folder):
    """Cancel what a killed run has left on the cluster, and refuse while a job is at work; for commands that remove something."""
    from plateloom.engine import schedulers
    from plateloom.leftovers import find_worker

    if cancelled := schedulers.cancel_orphans(folder):
        click.echo(f"cancelled jobs of an earlier run: {', '.join(cancelled)}")
    if worker := find_worker(folder):
        raise LockedError(f"a job of an earlier run still works on this screen: {worker}")


def _look_for_cluster(names, options=()):
    """Refuse a profile of ours whose scheduler this machine has no command or no plugin for, unless options name another."""
    from importlib.util import find_spec

    import yaml

    if any(option.startswith(("--executor", "-e", "--cluster-generic")) for option in options):
        return
    for name in sorted(set(names) & set(PROFILES)):
        said = yaml.safe_load((SNAKEFILE.parent / "profiles" / name / "profile.yaml").read_text())
        executor = said.get("executor", "local")
        package = f"snakemake-executor-plugin-{executor}"
        if executor != "local" and find_spec(package.replace("-", "_")) is None:
            raise ConfigError(f"--profile {name}: the package {package} is not installed; pip install {package}")
        command = said.get("cluster-generic-cancel-cmd") or {"slurm": "scancel"}.get(executor)
        if command and shutil.which(command) is None:
            raise ConfigError(
                f"--profile {name}: this machine has no {command!r}; run it where the cluster's commands are"
            )


def _cores_options(cores):
    """Snakemake's option for a number of cores."""
    if cores is None:
        return []
    if cores != "all" and not (cores.isdecimal() and int(cores) > 0):
        raise ConfigError(f"--cores {cores!r}: expected a number from 1 on, or `all`")
    return ["--cores", cores]


def _last_stage(folder, until):
    """The stage that a run ends with, which is known by its own name or by its rule's."""
    from plateloom.config import read_config
    from plateloom.planning import STAGES, Screen

    stage = next((name for name, stage in STAGES.items() if until in (name, stage.script)), None)
    if stage is None:
        raise ConfigError(f"--until {until!r}: no such stage.{did_you_mean(until, STAGES)} Stages: {', '.join(STAGES)}")
    if stage not in Screen(read_config(folder).model_dump(mode="json"), folder).stages():
        raise ConfigError(f"--until {until!r}: the screen's config.yaml switches this stage off")
    # A stage has done its work when the plate is whole: its list of wells is written, its fields are flagged.
    closing = {"conversion": "assembly", "quality": "flagging"}
    return closing.get(stage, stage)


def check_handed_on(options):
    """Refuse what stands behind `--` of another command and is no option of Snakemake's, or leaves the run undone."""
    if options and not options[0].startswith("-"):
        raise ConfigError(f"unexpected {options[0]!r}; options of Snakemake's stand behind `--`")
    if {"-n", "--dry-run", "--dryrun"} & set(options):
        raise ConfigError("--dry-run stands before `--`")
    _check_options(options)


def _check_options(options):
    """Refuse what Snakemake's command line would: it says so with code 1 or 2, and at length."""
    if not options:
        return
    import io

    from snakemake.cli import get_argument_parser

    from plateloom.planning import STAGES

    parser, said = get_argument_parser(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found, unknown = parser.parse_known_args(list(options))
    except SystemExit as stop:
        if stop.code:
            problem = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
            raise ConfigError(f"snakemake: {problem}") from None
        sys.exit()  # it has shown its help or its version
    except Exception as error:
        raise ConfigError(f"snakemake: {error}") from None
    known = [name for action in parser._actions for name in action.option_strings]
    if isinstance(found.jobs, int) and found.jobs < 1:
        raise ConfigError(f"--jobs: expected a number from 1 on, found {found.jobs}")
    if names := [text for text in found.targets or () if text in STAGES]:
        raise ConfigError(f"{names[0]!r} is no file to make: write --until {names[0]}")
    if unknown := [text for text in unknown if text.startswith("-")]:
        raise ConfigError([f"no option {text!r}.{did_you_mean(text.split('=')[0], known)}" for text in unknown])


def check_screen(folder, *, sources=True):
    """Refuse a screen that `plateloom check` refuses.

    A plate whose files cannot be decoded is quarantined by the run, and stops no other. Once a plate was converted, all of
    its raw files are its own affair: only a plate that was never converted must have its source folder then, since that
    of others may have been archived. Without `sources` no plate must: nobody is there to mount it, and others can go on.

    Returns
    -------
    list of str
        Warnings of `plateloom check`, as far as it was asked.
    """
    from plateloom.cli.check import check_files, find_problems, find_strange_plates
    from plateloom.config import read_config
    from plateloom.planning import list_plates

    began = {path.parents[2].name for path in folder.glob("results/plates/*/records/conversion/*.json")}
    problems, notes = find_problems(folder, files=sources and not began, decode=False)
    if sources and began and not problems:
        config = read_config(folder)
        plates, _ = list_plates(folder / config.plates)
        problems = find_strange_plates(config, [plate.plate for plate in plates])
        new = [plate for plate in plates if plate.plate not in began]
        absent = [plate for plate in new if not (folder / plate.source).is_dir()]
        problems += [f"{plate.plate}: no folder {str(folder / plate.source)!r}" for plate in absent]
        faults = []
        for plate in [] if problems else new:
            check_files(folder, config, plate, None, faults, notes, decode=False)
        notes += [f"warning: {fault}; a run quarantines this plate, and goes on with the others" for fault in faults]
    if problems:
        raise ConfigError(problems)
    return [note for note in notes if "warning: " in note]


def check_cost(folder, last=(), *, ask=True):
    """Refuse a run that would make much work again only because code has changed; without `ask`, just say it.

    Returns
    -------
    str
        What to say of a little work; empty where there is none, or was said.
    """
    from plateloom.config import read_config
    from plateloom.planning import Screen
    from plateloom.upgrades import core_hours, describe, find_changed

    screen = Screen(read_config(folder).model_dump(mode="json"), folder)
    changed = find_changed(screen, last)
    if not changed:
        return ""
    if core_hours(changed) <= screen.config.engine.recompute_without_asking_hours:
        stages = ", ".join(one.stage for one in changed)
        return f"Plateloom's code has changed; made again: {stages} ({core_hours(changed):.2g} core-hours)"
    name = shlex.quote(str(folder))
    stages = " ".join(f"--stage {one.stage}" for one in changed if one.codes)
    lines = [
        "Plateloom's code has changed since these results were made, and a run makes them again:",
        *(f"  {line}" for line in describe(changed)),
        f"make them again: plateloom run {name} --recompute",
        f"keep them:       plateloom accept {name} {stages}",
    ]
    if ask:
        raise ConfigError("\n".join(lines))
    click.echo("\n".join(lines))
    return ""


def _look_at_lock(folder):
    """Refuse a screen that another run holds, before anything is planned."""
    from plateloom.driver import LOCK
    from plateloom.engine import locks

    if (folder / LOCK).exists() and locks.is_held(folder / LOCK):
        raise LockedError(
            f"another run works on this screen: {locks.describe(locks.read(folder / LOCK))}; nothing was started"
        )


def _check_writable(folder):
    """Refuse a screen whose results cannot be written."""
    names = (".", ".plateloom", ".plateloom.lock", ".snakemake", "logs", "benchmarks", "results", "results/screen")
    places = [folder / name for name in names] + [folder / "results/plates", *folder.glob("results/plates/*")]
    problems = []
    for place in places:
        if not place.exists():
            continue
        if place.name != ".plateloom.lock" and not place.is_dir():
            problems.append(f"{str(place)!r} is a file; a folder must be there")
        elif not os.access(place, os.W_OK):
            problems.append(f"{str(place)!r} cannot be written: make it writable, or copy the screen's files elsewhere")
    if problems:
        raise ConfigError(problems)


def run_group(arguments):
    """Run a command in a process group of its own, and end the whole group when this process is told to end.

    SIGINT, SIGTERM and (but under `nohup`) SIGHUP end the command with SIGTERM, a second one with SIGKILL. It returns when
    nothing of the group is left. Handlers are set even where SIGINT is ignored, as in the background of a shell script.

    Parameters
    ----------
    arguments : list of str

    Returns
    -------
    int
        The command's exit code; 128 + the signal's number where a signal has ended it.
    """
    from plateloom.driver import ENDING

    told, process = [], None

    def end(number, frame):
        told.append(number)
        if len(told) == 1:
            click.echo("ending the run; once more kills it at once", err=True)
        if process is not None:
            end_command(signal.SIGTERM if len(told) == 1 else signal.SIGKILL)

    def end_command(number):
        if number == signal.SIGTERM and process.poll() is None:
            process.terminate()  # Snakemake is to know before its jobs do, lest it take them for failed ones
            time.sleep(AHEAD)
        _signal_group(process.pid, number)

    heard = [number for number in ENDING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heard}
    try:
        process = subprocess.Popen(arguments, env=_environment(), stdin=subprocess.DEVNULL, start_new_session=True)
        if told:  # before there was a process
            end_command(signal.SIGTERM)
        code = process.wait()
        if told or code < 0:
            _end_group(process.pid)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if told:
        return 128 + told[0]
    return 128 - code if code < 0 else code


def _environment():
    """Environment of the command: nothing buffered, and no word of semaphores that an ended job could not give back."""
    quiet = ["ignore:resource_tracker:UserWarning", *filter(None, [os.environ.get("PYTHONWARNINGS")])]
    return os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": ",".join(quiet)}


def _end_group(group):
    """End what is left of a process group after its leader."""
    deadline = time.monotonic() + GRACE
    _signal_group(group, signal.SIGTERM)
    while _signal_group(group, 0):
        if time.monotonic() > deadline:
            _signal_group(group, signal.SIGKILL)
            return
        time.sleep(0.05)


def _signal_group(group, number):
    """Send a signal to a process group; whether there was any process to get it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True
