"""Whether memory is flat as a plate grows: `python benchmarks/memory.py`.

Runs one simulated plate of a single field, one of 10 fields and one of 100, in jobs of two workers, through all stages of a plate, and
prints the peak resident memory of the job's process and of its largest worker, stage by stage. The encoder learns from 100 cells of
either: it is there to encode, and what its training holds follows `latent.autoencoder.cells`; the classes are rows of the plate, for the
same reason. A plate of one field has nothing to learn from.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

STAGES = ("conversion", "quality", "illumination", "segmentation", "features", "profiling", "latent", "maps", "classes")
MEASURING = STAGES[: STAGES.index("features") + 1]
FIELDS = (1, 10, 100)
REDUCED = """
latent:
  autoencoder: {cells: 100, parameters: {epochs: 1, latent_dim: 8}}
  maps: {method: pca, cells: 200}
classification: {labels: labels.tsv, cells: 200}
"""


def main():
    """Measure and print."""
    found = {fields: measure(fields) for fields in FIELDS}
    print(
        f"| stage | {' | '.join(f'{fields} fields: job / worker [MB]' for fields in FIELDS)} | worker, ratio |\n|---|---|---|---|---|"
    )
    for stage in STAGES:
        row = [found[fields].get(stage) for fields in FIELDS]
        first, *_, last = (one for one in row if one)
        ratio = f"{last[1] / first[1]:.2f}" if first[1] else "–"
        print(f"| {stage} | {' | '.join(f'{one[0]} / {one[1]}' if one else '' for one in row)} | {ratio} |")


def measure(fields, **design):
    """Peak memory (job, worker) [MB] by stage, of a plate with so many fields; `design`: more of `ScreenDesign`."""
    from plateloom.cli.simulate import write_screen
    from plateloom.simulation import ScreenDesign
    from plateloom.store.provenance import read_json

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "screen"
        wells = {"rows": 2, "columns": 5} if fields >= 10 else {"rows": 1, "columns": 1}
        number = -(-fields // (wells["rows"] * wells["columns"]))
        write_screen(folder, ScreenDesign(plates=("P1",), **wells, fields=number, **design))
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | yaml.safe_load(REDUCED)))
        labels = [f"P1\t{row}{column:02d}\trow {row}\n" for row in "AB" for column in range(1, 6)]
        (folder / "labels.tsv").write_text("plate\twell\tclass\n" + "".join(labels))
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            str(ROOT / "Snakefile"),
            "--directory",
            str(folder),
        ]
        until = [
            "--until",
            *(
                ["encode_plate", "map_plate", "classify_plate"]
                if fields >= 10
                else ["measure_quality", "measure_features"]
            ),
        ]
        subprocess.run([*command, *until, "--quiet", "all"], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
        records = {
            s: read_json(folder / f"results/plates/P1/records/{s}/part-0.json")
            for s in (STAGES if fields >= 10 else MEASURING)
        }
        return {stage: (record["memory_mb"], record["cluster"]["worker_peak_mb"]) for stage, record in records.items()}


if __name__ == "__main__":
    main()
