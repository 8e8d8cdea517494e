"""Batch schedulers: submit the jobs that Snakemake writes, and find those that a killed run has left.

``python -m plateloom.engine.schedulers {slurm|lsf|sge} JOBSCRIPT`` submits one job and prints its number; profiles call it.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from plateloom.engine import locks
from plateloom.errors import SchedulerError, some_of

LEDGER = Path(".plateloom/jobs.tsv")  # number and log of every job that was submitted
OPEN = Path(
    ".plateloom/slurm/open"
)  # a file for each job of Slurm's that has not ended, as profiles/slurm/status.sh knows
SUBMITTED = (LEDGER, "logs/slurm", ".snakemake/slurm_logs")  # what a run on Slurm leaves, ours or the plugin's
PATIENCE = 900.0  # [s] for a scheduler that does not answer
PAUSE = 5.0  # [s] between two attempts
# What clients say while a scheduler is away or full; anything else is an error of the job's own.
AWAY = re.compile(
    r"unable to contact|connect failure|connection refused|timed out|zero bytes|communication|socket|temporarily"
    r"|try again|maxsubmit|jobs per user|not responding|cannot connect|unable to reach|unable to send message",
    re.I,
)


def screen_tag(folder="."):
    """What the names of a screen's jobs begin with; it follows from the folder's path."""
    from plateloom.store.provenance import digest

    return f"plateloom-{digest(str(Path(folder).resolve()))[:10]}"


def read_properties(jobscript):
    """What Snakemake says of a job at the head of its script.

    Returns
    -------
    dict
        `rule`, `wildcards`, `threads`, `resources`, `log` and more.
    """
    for line in Path(jobscript).read_text().splitlines():
        if line.startswith("# properties = "):
            return json.loads(line.removeprefix("# properties = "))
    raise ValueError(f"{str(jobscript)!r} has no line of properties: it is no script of Snakemake's")


def name_job(properties, tag):
    """The job's name: screen, rule and wildcards.

    Examples
    --------
    >>> name_job({"rule": "convert_plate", "wildcards": {"plate": "P1", "part": "0"}}, "plateloom-1")
    'plateloom-1.convert_plate.P1.0'
    """
    return ".".join([tag, properties["rule"], *properties.get("wildcards", {}).values()])


def log_of(properties):
    """Where the scheduler's own log of a job lies: beside the job's log.

    Examples
    --------
    >>> log_of({"log": ["logs/fit_map.log"]}).as_posix()
    'logs/fit_map.batch.log'
    """
    return Path(properties["log"][0]).with_suffix(".batch.log")


def slurm_command(properties, name):
    """The `sbatch` that submits a job.

    Parameters
    ----------
    properties : dict
        `threads`; `resources`: `mem_mb` [MB], `runtime` [min], `gpu`, and the site's `slurm_account`, `slurm_partition`,
        `slurm_gpu_partition`, `slurm_gres` (what a GPU is called: ``gpu`` or ``gpu:a100``; ``none`` asks by `--gpus`) and
        `slurm_extra` (any more options).
    name : str

    Returns
    -------
    list of str

    Examples
    --------
    >>> site = {"slurm_partition": "cpu", "slurm_gpu_partition": "gpu"}
    >>> job = {"log": ["logs/a.log"], "threads": 2, "resources": {"gpu": 1, "mem_mb": 900, "runtime": 60, **site}}
    >>> slurm_command(job, "a")[6:]
    ['--cpus-per-task=2', '--mem=900M', '--time=60', '--partition=gpu', '--gres=gpu:1']
    """
    asked = properties["resources"]
    gpus = asked.get("gpu", 0)
    command = ["sbatch", "--parsable", "--no-requeue", f"--job-name={name}", f"--output={log_of(properties)}"]
    command += ["--open-mode=append", f"--cpus-per-task={properties['threads']}"]
    partition = asked.get("slurm_partition")
    if gpus:
        partition = asked.get("slurm_gpu_partition", partition)
    given = {
        "mem": f"{asked['mem_mb']}M" if "mem_mb" in asked else None,
        "time": asked.get("runtime"),
        "account": asked.get("slurm_account"),
        "partition": partition,
    }
    if gpus:
        kind = asked.get("slurm_gres", "gpu")
        given |= {"gpus": gpus} if kind == "none" else {"gres": f"{kind}:{gpus}"}
    command += [f"--{option}={value}" for option, value in given.items() if value not in (None, "")]
    return command + shlex.split(asked.get("slurm_extra", ""))


def lsf_command(properties, name):
    """The `bsub` that submits a job; resources `lsf_queue`, `lsf_project`, `lsf_extra` are the site's.

    Memory is asked for per job, in the unit MB, as LSF has it where LSF_UNIT_FOR_LIMITS=MB and RESOURCE_RESERVE_PER_TASK=N.
    """
    asked = properties["resources"]
    command = [
        "bsub",
        "-J",
        name,
        "-oo",
        str(log_of(properties)),
        "-n",
        str(properties["threads"]),
        "-R",
        "span[hosts=1]",
    ]
    if "mem_mb" in asked:
        command += ["-M", f"{asked['mem_mb']}MB", "-R", f"rusage[mem={asked['mem_mb']}MB]"]
    command += ["-W", str(asked["runtime"])] if "runtime" in asked else []
    command += ["-q", asked["lsf_queue"]] if asked.get("lsf_queue") else []
    command += ["-P", asked["lsf_project"]] if asked.get("lsf_project") else []
    command += ["-gpu", f"num={asked['gpu']}"] if asked.get("gpu") else []
    return command + shlex.split(asked.get("lsf_extra", ""))


def sge_command(properties, name):
    """The `qsub` that submits a job; resources `sge_queue`, `sge_project`, `sge_pe` (`smp`), `sge_extra` are the site's.

    Memory is asked for per core.
    """
    asked, threads = properties["resources"], properties["threads"]
    command = ["qsub", "-terse", "-cwd", "-V", "-r", "n", "-N", name, "-j", "y", "-o", str(log_of(properties))]
    command += ["-pe", asked.get("sge_pe", "smp"), str(threads)] if threads > 1 else []
    command += ["-l", f"h_vmem={-(-asked['mem_mb'] // threads)}M"] if "mem_mb" in asked else []
    command += ["-l", f"h_rt={60 * asked['runtime']}"] if "runtime" in asked else []
    command += ["-q", asked["sge_queue"]] if asked.get("sge_queue") else []
    command += ["-P", asked["sge_project"]] if asked.get("sge_project") else []
    command += ["-l", f"gpu={asked['gpu']}"] if asked.get("gpu") else []
    return command + shlex.split(asked.get("sge_extra", ""))


COMMANDS = {"slurm": slurm_command, "lsf": lsf_command, "sge": sge_command}


def submit(scheduler, jobscript):
    """Submit a job, and wait for a scheduler that is away or full.

    Parameters
    ----------
    scheduler : {'slurm', 'lsf', 'sge'}
    jobscript : path
        Written by Snakemake.

    Returns
    -------
    str
        The job's number.

    Raises
    ------
    SchedulerError
        If it is refused, or the scheduler stays away.
    """
    properties = read_properties(jobscript)
    name = name_job(properties, screen_tag())
    command = COMMANDS[scheduler](properties, name)
    log_of(properties).parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    while True:
        done = _ask(command, jobscript)
        if done.returncode == 0:
            number = re.search(r"\d+", done.stdout).group()
            break
        said = done.stderr.strip()
        if not AWAY.search(said) or time.monotonic() > deadline:
            raise SchedulerError(f"{shlex.join(command)}: {said}")
        print(f"{command[0]}: {said}; trying again", file=sys.stderr, flush=True)
        time.sleep(PAUSE)
        if not locks.is_held(locks.RUN):
            raise SchedulerError("the run that this job belongs to has ended")
        if scheduler == "slurm" and (found := _accepted(name)):  # its answer was lost, not the job
            number = found
            break
    LEDGER.parent.mkdir(exist_ok=True)
    if scheduler == "slurm":
        OPEN.mkdir(parents=True, exist_ok=True)
        (OPEN / number).touch()
    with open(LEDGER, "a") as ledger:
        ledger.write(f"{number}\t{log_of(properties)}\t{name}\n")
    return number


def _ask(command, jobscript):
    """Run a submission; the job must not inherit what describes the job that this process may itself run in."""
    environment = {key: value for key, value in os.environ.items() if key == "SLURM_CONF" or key[:6] != "SLURM_"}
    with open(jobscript) as script:
        return subprocess.run(command, stdin=script, env=environment, capture_output=True, text=True, check=False)


def _accepted(name):
    """Number of the job of this name that Slurm has; None where it has none, or does not answer."""
    found = subprocess.run(
        ["squeue", "--noheader", "--name", name, "--states=PENDING,CONFIGURING,RUNNING", "--format=%A"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.split()[0] if found.returncode == 0 and found.stdout.split() else None


def find_slurm_jobs(folder, *, others=True):
    """Jobs of a screen that Slurm has not done with: ours by their name, those of Snakemake's plugin by folder and comment.

    Parameters
    ----------
    folder : path
        The screen's.
    others : bool
        Whether to look for those of other users, too: for once, since it lists all of the cluster's jobs.

    Returns
    -------
    dict of str to (str, str)
        Number -> state, and the user whose it is; empty where it is one's own.

    Raises
    ------
    SchedulerError
        If Slurm does not answer.
    """
    me = str(os.getuid())
    command = ["squeue", "--noheader", "--format=%A|%T|%U|%u|%j|%k|%Z", *([] if others else [f"--user={me}"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SchedulerError(done.stderr.strip())
    tag, here = screen_tag(folder), str(Path(folder).resolve())
    found = {}
    for line in done.stdout.splitlines():
        number, state, uid, user, name, comment, where = line.split("|", 6)
        if name.startswith(tag) or (comment.startswith("rule_") and where == here):
            found[number] = state, "" if uid == me else user
    return found


def cancel_orphans(folder=".", *, patience=PATIENCE, completing=120.0):
    """Cancel the Slurm jobs that an earlier run of a screen has left, and wait until they have ended.

    Parameters
    ----------
    folder : path
        The screen's.
    patience : float
        For a Slurm that does not answer [s].
    completing : float
        For jobs that have been cancelled but do not end, as on a dead node [s]; after that the locks of parts must do.

    Returns
    -------
    list of str
        Numbers of the jobs.

    Raises
    ------
    SchedulerError
        If Slurm stays away, or jobs are somebody else's: they may be at work then.
    """
    folder = Path(folder)
    if not shutil.which("squeue"):
        if numbers := sorted(path.name for path in (folder / OPEN).glob("*")):
            print(
                f"Jobs of an earlier run may still be at work, and this machine has no squeue to ask: {some_of(numbers)}",
                file=sys.stderr,
                flush=True,
            )
        return []
    if not any((folder / name).exists() for name in SUBMITTED):
        return []
    began, told, cancelled = time.monotonic(), False, set()
    while True:
        try:
            found = find_slurm_jobs(folder, others=not cancelled)
        except SchedulerError as error:
            if time.monotonic() - began > patience:
                raise SchedulerError(
                    f"Slurm does not answer, and jobs of an earlier run may still be at work: {error}"
                ) from None
            if not told:
                print(f"Waiting for Slurm, to ask for jobs of an earlier run: {error}", file=sys.stderr, flush=True)
            told = True
            time.sleep(PAUSE)
            continue
        if foreign := [f"{job} of {user}" for job, (state, user) in found.items() if user and state != "COMPLETING"]:
            raise SchedulerError(f"jobs of an earlier run are not yours to cancel: {some_of(foreign)}")
        states = {job: state for job, (state, user) in found.items() if not user}
        if not states:
            shutil.rmtree(folder / OPEN, ignore_errors=True)
            break
        if cancelled and time.monotonic() - began > completing and set(states.values()) == {"COMPLETING"}:
            break
        if time.monotonic() - began > patience:
            raise SchedulerError(f"jobs of an earlier run cannot be cancelled: {', '.join(sorted(states))}")
        subprocess.run(["scancel", *states], capture_output=True, check=False)
        cancelled |= set(states)
        time.sleep(1)
    return sorted(cancelled, key=int)


def main():
    """Submit one job."""
    scheduler, jobscript = sys.argv[1:]
    try:
        print(submit(scheduler, jobscript))
    except SchedulerError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
