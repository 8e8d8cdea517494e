"""How long a dry run takes, and how many jobs it plans: `python benchmarks/dag.py [PLATES …]`.

Plates of 384 wells are lists of empty files (one per well, or 17,280 with --full), since a dry run reads names, sizes and
times only. Prints a table in Markdown.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plates", nargs="*", type=int, default=[1, 100, 400])
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="17,280 files a plate instead of 384")
    parser.add_argument("--keep", type=Path, help="make the screen in this folder, once, and leave it there")
    options = parser.parse_args()
    print("| plates | parts | files a plate | jobs | jobs a plate | dry run [s] |\n|---|---|---|---|---|---|")
    for plates in options.plates:
        with tempfile.TemporaryDirectory() if options.keep is None else nullcontext(options.keep) as folder:
            files = make_screen(Path(folder), plates, options.parts, full=options.full)
            seconds, jobs = dry_run(Path(folder))
        print(
            f"| {plates} | {options.parts} | {files:,} | {jobs:,} | {jobs / plates:.1f} | {seconds:.1f} |", flush=True
        )


def make_screen(folder, plates, parts, *, full):
    """A screen of empty files; returns their number per plate."""
    wells = [f"{row}{column:02d}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)]
    names = [
        f"{well}_s{s}_w{w}.tif"
        for well in wells
        for s in range(1, 10 if full else 2)
        for w in range(1, 6 if full else 2)
    ]
    if (folder / "config.yaml").exists():
        return len(names)
    lines = ["plate\tsource\treader\tplate_map\tbatch"]
    for i in range(plates):
        source = folder / "raw" / f"P{i:03d}"
        source.mkdir(parents=True)
        for name in names:
            os.mknod(source / name)
        lines.append(f"P{i:03d}\traw/P{i:03d}\tpattern\t\tbatch1")
    (folder / "plates.tsv").write_text("\n".join(lines) + "\n")
    channels = "\n".join(f"  C{w}: {{source: '{w}'}}" for w in range(1, 6 if full else 2))
    (folder / "config.yaml").write_text(
        f"parts: {parts}\nchannels:\n{channels}\nsegmentation: {{parameters: {{nuclei_channel: C1}}}}\n"
    )
    return len(names)


def dry_run(folder):
    """Seconds and jobs of a dry run."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    started = time.perf_counter()
    found = subprocess.run(
        [*command, "--dry-run", "--quiet", "rules"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    seconds = time.perf_counter() - started
    if found.returncode:
        raise SystemExit(found.stdout + found.stderr)
    total = re.search(r"^total\s+(\d+)", found.stdout + found.stderr, re.M)
    return seconds, int(total[1]) if total else 0


if __name__ == "__main__":
    main()
