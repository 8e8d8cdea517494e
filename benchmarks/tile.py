"""What of a field's time in the features stage is not measuring: `python benchmarks/tile.py`.

Simulates a plate of two wells with nine fields of 5 × 1080 × 1080 pixels and about 150 cells each, segments it through Snakemake,
and then does with one well what a worker and its job do, one step after the other; only what Dask takes is measured between two processes. CPU seconds a field.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["ZARR_THREADING__MAX_WORKERS"] = "1"  # as a worker has it


def main():
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "screen"
        make_screen(folder)
        os.chdir(folder)
        spent, cells, columns, size, each, size_each = measure_well()
    total = sum(spent.values())
    print(f"{cells:.0f} cells and {columns:,} columns a field, {size / 1e6:.1f} MB of parquet a well of nine fields.\n")
    print("| step | CPU s a field | share |\n|---|---|---|")
    for step, seconds in (spent | {"all": total}).items():
        print(f"| {step} | {seconds:.3f} | {seconds / total:.1%} |")
    other = total - spent["measuring"] - spent["writing"] + each
    print(
        f"\nWith `features.row_group_rows: 1`, a row group per field, writing takes {each:.3f} s a field, {each / spent['writing']:.1f} "
        f"times as long, and makes {size_each / 1e6:.1f} MB; what is not measuring is {other / (other + spent['measuring']):.1%} then."
    )


def make_screen(folder):
    """A segmented plate."""
    from plateloom.cli.simulate import write_screen
    from plateloom.simulation import Channel, ScreenDesign

    stains = (("DNA", "dna"), ("ER", "er"), ("RNA", "marker"), ("AGP", "actin"), ("Mito", "er"))
    channels = tuple(Channel(name, stain, 9e3, 700) for name, stain in stains)
    options = {"rows": 1, "columns": 2, "fields": 9, "size_px": 1080, "bit_depth": 16, "cells_per_field": 160.0}
    write_screen(folder, ScreenDesign(plates=("P1",), channels=channels, treatments=(), **options))
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["profiling"]["parameters"], settings["classification"] = {}, {}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    subprocess.run([*command, "--cores", "2", "--until", "segment_plate", "--quiet", "rules"], check=True, cwd=ROOT)


def forget(path):
    """Read a table and give nothing back."""
    import pandas as pd

    pd.read_pickle(path)


def count_sending(task, count=20):
    """CPU seconds, of the job and its worker, of a task that runs in a worker; of tasks that differ in what they return
    the difference is what returning it takes."""
    import psutil

    from plateloom.engine.cluster import open_cluster

    def spent():
        children = psutil.Process().children(recursive=True)
        return time.process_time() + sum(sum(child.cpu_times()[:2]) for child in children)

    found = []

    def work():
        yield [(task, "field.pickle")] * 3  # imports
        before = spent()
        yield [(task, "field.pickle")] * count
        found.append((spent() - before) / count)

    with open_cluster(threads=1) as cluster:
        cluster.run([("A01", work())], finished=lambda name, value: None)
    return found[0]


def measure_well():
    """CPU seconds a field by step; cells and columns a field; bytes of the well's table; writing and bytes with a row group per field."""
    import pandas as pd

    from plateloom import features
    from plateloom.config import read_config
    from plateloom.planning import Screen
    from plateloom.stages import features as stage
    from plateloom.store.provenance import read_json
    from plateloom.store.tables import write_table

    settings = Screen(read_config(Path()).model_dump(mode="json")).settings("features")
    made = read_json("results/plates/P1/records/segmentation/part-0.json")["artefacts"]["A01"]
    flat = read_json("results/plates/P1/records/illumination/part-0.json")["artefacts"]["illumination"]
    arguments = [("P1", "A01", field, flat, made, settings) for field in range(1, 10)]
    kernels, inner = features.measure_image, [0.0]

    def timed(*given, **options):
        started = time.process_time()
        found = kernels(*given, **options)
        inner[0] += time.process_time() - started
        return found

    stage.features.measure_image = timed
    stage.measure_field(*arguments[0])  # compile
    inner[0], started = 0.0, time.process_time()
    tables = [stage.measure_field(*given) for given in arguments]
    fields = time.process_time() - started
    pd.concat(tables[:1]).to_pickle("field.pickle")
    sent = count_sending(pd.read_pickle) - count_sending(forget)
    described = stage.describe_table(settings, settings["channels"])
    taken, sizes = {1: [], settings["row_group_rows"]: []}, {}
    for _ in range(6):  # a job writes many wells
        for rows, writing in taken.items():
            started = time.process_time()
            table = pd.concat(tables, ignore_index=True)
            write_table("well.parquet", table, {}, described=described, group_rows=rows)
            writing.append(time.process_time() - started)
            sizes[rows] = Path("well.parquet").stat().st_size
    each, written = (statistics.median(writing[1:]) for writing in taken.values())
    count = len(arguments)
    spent = {
        "measuring": inner[0] / count,
        "reading, decoding, checksums, correction, joining": (fields - inner[0]) / count,
        "between the processes, through Dask": sent,
        "writing": written / count,
    }
    return spent, len(table) / count, table.shape[1], sizes[settings["row_group_rows"]], each / count, sizes[1]


if __name__ == "__main__":
    main()
