"""Whether memory is flat as a plate grows: `python benchmarks/memory.py`.

Converts, corrects, segments and measures one simulated plate of 10 fields and one of 100, in jobs of two workers, and prints the
peak resident memory of the job's process and of its largest worker, stage by stage.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

STAGES = ("conversion", "quality", "illumination", "segmentation", "features", "profiling")
FIELDS = (10, 100)


def main():
    """Measure and print."""
    found = {fields: measure(fields) for fields in FIELDS}
    print(
        f"| stage | {' | '.join(f'{fields} fields: job / worker [MB]' for fields in FIELDS)} | worker, ratio |\n|---|---|---|---|"
    )
    for stage in STAGES:
        one, two = (found[fields][stage] for fields in FIELDS)
        ratio = f"{two[1] / one[1]:.2f}" if one[1] else "–"
        print(f"| {stage} | {one[0]} / {one[1]} | {two[0]} / {two[1]} | {ratio} |")


def measure(fields):
    """Peak memory (job, worker) [MB] by stage, of a plate with so many fields."""
    from plateloom.cli.simulate import write_screen
    from plateloom.simulation import ScreenDesign
    from plateloom.store.provenance import read_json

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "screen"
        write_screen(folder, ScreenDesign(plates=("P1",), rows=2, columns=5, fields=fields // 10))
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            str(ROOT / "Snakefile"),
            "--directory",
            str(folder),
        ]
        subprocess.run(
            [*command, "--until", "profile_plate", "--quiet", "all"], cwd=ROOT, check=True, stderr=subprocess.DEVNULL
        )
        records = {s: read_json(folder / f"results/plates/P1/records/{s}/part-0.json") for s in STAGES}
        return {stage: (record["memory_mb"], record["cluster"]["worker_peak_mb"]) for stage, record in records.items()}


if __name__ == "__main__":
    main()
