"""Whether a run that is killed at a random time ends, once it is run again, as a clean run does: `python benchmarks/soak.py`.

A reduced screen runs through all of its stages. At a random time something is killed, and the same command is given again until it
ends with 0. Then everything below ``results/`` must be as a clean run left it: the same files with the same bytes, records up to times,
hosts and attempts, and a trained network with what it encodes within a tolerance. Prints a table in Markdown; exit code 1 on any difference.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SCREEN = {"plates": ("P1",), "rows": 3, "columns": 4, "fields": 1, "size_px": 128, "cells_per_field": 8.0}
REDUCED = """
illumination: {fields: 6}
features: {families: [AreaShape, Location, Intensity, Correlation, Neighbors]}
latent:
  autoencoder: {cells: 100, parameters: {epochs: 3, out_px: 32, latent_dim: 8}}
  maps: {method: pca, cells: 200}
report: {montage_wells: 2}
"""
WAYS = {
    "group": "driver and jobs, kill -9",
    "driver": "driver alone, kill -9",
    "job": "a job, kill -9",
    "worker": "a Dask worker, kill -9",
    "term": "plateloom run, SIGTERM",
}
RUNS = 5  # of the same command, at most
TOLERANCE = 1e-5  # of a network's weights and of what it encodes, relative to 1
KEPT = ("stage", "status", "reason", "plate", "part", "artefacts", "failures", "removed")  # what records must agree in


def main():
    """Kill, run again, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50, help="kills; default 50")
    parser.add_argument("--seed", type=int, default=None, help="of what is killed and when; default: another each time")
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave there what did not end equal")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    with tempfile.TemporaryDirectory(dir=options.keep) as name, contextlib.closing(Soak(Path(name), seed)) as soak:
        print(f"seed {seed}; a clean run takes {soak.seconds:.0f} s here\n")
        print(
            "| | killed | after [s] | at work | runs | attempts of a job | equal |\n|---|---|---|---|---|---|---|",
            flush=True,
        )
        unequal = 0
        for number in range(1, options.times + 1):
            trial = soak.kill_once()
            print(f"| {number} {trial.line()}", flush=True)
            unequal += not trial.equal
            if trial.equal or not options.keep:
                shutil.rmtree(trial.screen.parent)
            else:
                shutil.move(trial.screen.parent, options.keep)
        print(f"\n{options.times - unequal} of {options.times} equal a clean run")
    sys.exit(1 if unequal else 0)


@dataclasses.dataclass
class Trial:
    """One kill and what came of it.

    Attributes
    ----------
    screen : Path
    way : str
        One of `WAYS`.
    seconds : float
        From the start to the kill [s].
    at_work : list of str
        Jobs that ran at that moment, each with the wells that it had done.
    codes : list of int
        Exit codes of the same command, one run after the other.
    attempts : int
        The highest number of attempts that a job's record tells.
    differences : list of str
        From `compare`.
    """

    screen: Path
    way: str
    seconds: float
    at_work: list
    codes: list
    attempts: int
    differences: list

    @property
    def equal(self):
        """Whether the last run ended with 0 and left what a clean run leaves."""
        return self.codes[-1] == 0 and not self.differences

    def line(self):
        """The trial as a row of the table, without its number."""
        what = "yes" if self.equal else "**no**: " + "; ".join(self.differences[:3] or [f"exit code {self.codes[-1]}"])
        where = ", ".join(self.at_work) or "no job"
        runs = " ".join(map(str, self.codes))
        return f"| {WAYS[self.way]} | {self.seconds:.1f} | {where} | {runs} | {self.attempts} | {what} |"


class Soak:
    """A reduced screen, what a clean run makes of it, and copies of it in which something is killed.

    Parameters
    ----------
    folder : Path
        Where all of it is done.
    seed : int or str
    base : Path, optional
        What `make_base` has made; default: it is made here.
    """

    def __init__(self, folder, seed, base=None):
        self.folder, self.random, self.trials, self.process = folder, random.Random(seed), 0, None
        base = base or make_base(folder / "base")
        self.project, self.raw = base / "project", base / "raw"
        self.seconds = float((base / "seconds").read_text())
        self.expected = read_results(base / "clean/screen")

    def kill_once(self, way=None):
        """Run a fresh copy of the screen, kill something at a random time, and run it again until it ends with 0.

        Parameters
        ----------
        way : str, optional
            One of `WAYS`; default: any.

        Returns
        -------
        Trial
        """
        way = way or self.random.choice(list(WAYS))
        after = self.random.uniform(0.02, 0.95) * self.seconds
        self.trials += 1
        screen = shutil.copytree(self.raw, self.folder / f"trial-{self.trials}/screen")
        process = self.process = start(self.project, screen, way)
        began = time.monotonic()
        seen, at_work = False, []
        while process.poll() is None and not seen:
            time.sleep(0.01)
            if time.monotonic() - began >= after:
                at_work = jobs_at_work(screen)
                seen = strike(process, way, self.random)
        seconds = time.monotonic() - began
        if not seen:  # it was faster than the clean run, and has ended before
            end(process)
            shutil.rmtree(screen.parent)
            self.seconds = min(self.seconds, seconds)
            return self.kill_once(way)
        codes = [end(process)]
        while codes[-1] != 0 and len(codes) < RUNS:
            self.process = start(self.project, screen, way)
            codes.append(end(self.process))
        found = read_results(screen)
        attempts = max((record["attempts"] for record in found.records.values()), default=0)
        return Trial(screen, way, seconds, at_work, codes, attempts, compare(found, self.expected))

    def close(self):
        """End what is under way."""
        if self.process and self.process.poll() is None:
            strike(self.process, "group", self.random)
            self.process.wait()


def make_base(folder):
    """A clean run of the reduced screen and how long it took [s]; with a copy of Plateloom, so that no edit changes anything."""
    project = copy_project(folder / "project")
    clean = shutil.copytree(make_screen(folder / "raw"), folder / "clean/screen")  # pages name the folder
    began = time.monotonic()
    code = end(start(project, clean, "group"))
    if code:
        raise RuntimeError(f"a clean run ends with {code}:\n{(clean / 'said.txt').read_text()}")
    (folder / "seconds").write_text(f"{time.monotonic() - began:.1f}")
    return folder


def start(project, screen, way):
    """Begin `plateloom run` in a session of its own. Only to kill a worker there must be worker processes."""
    settings = yaml.safe_load((screen / "config.yaml").read_text())
    settings["engine"] = {"kind": "processes" if way == "worker" else "threads"}
    (screen / "config.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-c", "from plateloom.cli import main; main()", "run", screen, "--cores", "2"]
    environment = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    with open(screen / "said.txt", "a") as said:
        return subprocess.Popen(command, stdout=said, stderr=said, env=environment, cwd=screen, start_new_session=True)


def end(process):
    """Wait for a run; its exit code."""
    return process.wait(timeout=3600)


def copy_project(folder):
    """Copy what runs a screen; compiled kernels stay valid, since they go by the time of their source."""
    folder.mkdir(parents=True)
    shutil.copy2(ROOT / "Snakefile", folder)
    for name in ("rules", "scripts", "config", "envs", "profiles", "plateloom"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def make_screen(folder):
    """Write the raw images and the settings of the reduced screen."""
    from plateloom.cli.simulate import write_screen
    from plateloom.simulation import ScreenDesign

    write_screen(folder, ScreenDesign(**SCREEN))
    settings = yaml.safe_load((folder / "config.yaml").read_text()) | yaml.safe_load(REDUCED)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def family_of(process):
    """The driver (Snakemake), its jobs and their Dask workers, as lists of processes."""
    drivers, jobs, workers = [], [], []
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return drivers, jobs, workers
    for child in children:
        try:
            words = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if "multiprocessing.spawn import spawn_main" in words:
            workers.append(child)
        elif ".snakemake/scripts/" in words and "bash" not in Path(child.exe()).name:
            jobs.append(child)
        elif "-m snakemake" in words:
            drivers.append(child)
    return drivers, jobs, workers


def strike(process, way, chance):
    """Kill what the way says; whether there was anything of the kind."""
    drivers, jobs, workers = family_of(process)
    if way == "term":
        process.terminate()
        return True
    if way in ("job", "worker"):
        victims = jobs if way == "job" else workers
        if not victims:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            chance.choice(sorted(victims, key=lambda victim: victim.pid)).kill()
            return True
        return False
    if way == "group":
        for leader in (process.pid, *(driver.pid for driver in drivers)):
            signal_group(leader)
        return True
    process.kill()
    for driver in drivers:
        with contextlib.suppress(psutil.NoSuchProcess):
            driver.kill()
    return True


def signal_group(leader):
    """SIGKILL to the process group that a process leads, if it leads one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def jobs_at_work(screen):
    """Names of the jobs that hold their lock, with wells done."""
    from plateloom.engine import locks

    found = []
    for path in sorted(screen.glob("results/**/records/**/.*.lock")):
        said = locks.read(path)
        if said.get("attempts") and locks.is_held(path):
            done = f" {said['done']}/{said['of']}" if said.get("of") else ""
            found.append(f"{said.get('stage', path.stem)}{done}")
    return found


@dataclasses.dataclass
class Results:
    """What lies below ``results/``.

    Attributes
    ----------
    folder : Path
    files : dict of str to str
        Digest of each file but records and locks, by its path; hidden files too, so that nothing half made stays unseen.
    records : dict of str to dict
    """

    folder: Path
    files: dict
    records: dict


def read_results(screen):
    """Read what a run has left."""
    from plateloom.store.provenance import read_json

    files, records = {}, {}
    for path in sorted((screen / "results").rglob("*")):
        name = path.relative_to(screen / "results").as_posix()
        if not path.is_file() or path.suffix == ".lock":
            continue
        if "/records/" in f"/{name}" and not path.name.startswith("."):
            records[name] = read_json(path)
        else:
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return Results(screen / "results", files, records)


def compare(found, expected):
    """Differences between two results, a line each; none where they are equal.

    Parameters
    ----------
    found, expected : Results

    Returns
    -------
    list of str
    """
    lines = [f"{name} is missing" for name in sorted(expected.files.keys() - found.files.keys())]
    lines += [f"{name} is too many" for name in sorted(found.files.keys() - expected.files.keys())]
    for name in sorted(found.files.keys() & expected.files.keys()):
        if found.files[name] != expected.files[name] and not is_close(found.folder / name, expected.folder / name):
            lines.append(f"{name} differs")
    lines += [
        f"{name}: no such record in one of them" for name in sorted(found.records.keys() ^ expected.records.keys())
    ]
    for name in sorted(found.records.keys() & expected.records.keys()):
        one, other = found.records[name], expected.records[name]
        lines += [f"{name}: another {key}" for key in KEPT if one[key] != other[key]]
    return lines


def is_close(found, expected):
    """Whether two files are a network, or what one encodes, and equal within `TOLERANCE`."""
    if "autoencoder" not in found.parts and "latent" not in found.parts:
        return False
    if found.suffix == ".safetensors":
        from safetensors.numpy import load_file

        one, other = load_file(found), load_file(expected)
    elif found.suffix == ".parquet":
        import pandas as pd

        one, other = (
            {name: column.to_numpy() for name, column in pd.read_parquet(path).items()} for path in (found, expected)
        )
    else:
        return False
    return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)


def _alike(one, other):
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return bool((one == other).all())
    return bool(np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))


if __name__ == "__main__":
    main()
