"""What the steps of a whole screen take: `python benchmarks/screen.py [PLATES …]`.

Plates of 384 wells x 1,000 features that are drawn, not measured: half of them nearly copies of others, 64 negative controls,
each treatment on four plates. First what a well of 8,000 cells takes until it is a row. Prints a table in Markdown.
"""

import argparse
import contextlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

WELLS = [f"{row}{column:02d}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)]
CELLS, FEATURES, LATENTS, CONTROLS, ALIKE = 8000, 1000, 32, 64, 4
TIMES = 5
CHANNELS = ("DNA", "RNA", "AGP")


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plates", nargs="*", type=int, default=[4, 40])
    options = parser.parse_args()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # as in a job
    print("| plates | step | CPU [s] | s | peak [MB] |\n|---|---|---|---|---|")
    for stage, kind, columns in (("profiling", "features", FEATURES), ("latent_profiling", "latent", LATENTS)):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            print(f"| one well | {stage} | {min(aggregate(kind, columns) for _ in range(TIMES)):.2f} | | |")
    for plates in options.plates:
        with tempfile.TemporaryDirectory() as folder:
            screen = make_screen(Path(folder), plates)
            for stage in ("profiles", "comparison", "screen_report"):
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    busy, seconds, peak = pool.submit(run_step, folder, stage, screen).result()
                print(f"| {plates} | {stage} | {busy:.1f} | {seconds:.1f} | {peak:.0f} |", flush=True)


def aggregate(kind, columns):
    """Seconds of the processor that a well's cells take until they are a row."""
    import numpy as np
    import pandas as pd

    from plateloom.stages import comparison, profiling
    from plateloom.store.layout import well_table
    from plateloom.store.provenance import recipe
    from plateloom.store.tables import write_table

    path = well_table("P", kind, "A01")
    if not path.exists():
        name = "Cells_Intensity_M{}" if kind == "features" else "Latent_Autoencoder_{:02d}"
        values = np.random.default_rng(0).normal(size=(CELLS, columns)).astype(np.float32)
        table = pd.DataFrame(values, columns=[name.format(i) for i in range(columns)])
        keys = {"Metadata_Plate": "P", "Metadata_Well": "A01", "Metadata_SourceField": np.arange(CELLS) * 9 // CELLS}
        path.parent.mkdir(parents=True)
        made = recipe("drawn", parameters={}, code="", inputs={})
        write_table(path, pd.concat([pd.DataFrame(keys), table], axis=1), made)
    work = {"features": profiling.aggregate_well, "latent": comparison.aggregate_latents}[kind]
    started = time.process_time()
    work("P", "A01", [], "median")
    return time.process_time() - started


def make_screen(folder, plates):
    """Profiles and records of plates, drawn; returns the screen's settings."""
    import numpy as np
    import pandas as pd

    from plateloom.stages.profiling import READOUT
    from plateloom.store.layout import plate_folder, record_path, well_table
    from plateloom.store.provenance import recipe, write_json
    from plateloom.store.tables import write_table

    random = np.random.default_rng(0)
    base = ["Cells_Intensity_MeanIntensity_DNA"]
    base += [f"Cells_Intensity_Mean{i}_{CHANNELS[i % 3]}" for i in range(1, FEATURES)]
    names, rows = [f"P{i:03d}" for i in range(plates)], ["plate\tsource\tplate_map"]
    (folder / "raw").mkdir()
    effects = random.normal(0, 1, (max(1, plates // ALIKE + 1), len(WELLS) - CONTROLS, FEATURES // 2)) * 0.5
    made = recipe("drawn", parameters={}, code="", inputs={})
    fields = pd.DataFrame(
        {"Metadata_Plate": "P", "Metadata_Well": "A01", "Metadata_Field": range(9), "SourceField": range(9)}
    )
    fields = fields.assign(Status="done", Reason="", Height=2160, Width=2160, DataType="uint16")
    write_table(folder / "fields.parquet", fields, made)
    for i, plate in enumerate(names):
        rows.append(f"{plate}\traw/{plate}\t")
        values = random.normal(0, 1, (len(WELLS), FEATURES // 2))
        values[CONTROLS:] += effects[i // ALIKE]
        values = np.hstack([values, values + random.normal(0, 0.1, values.shape)])
        treatments = [f"{i // ALIKE}-{j}" for j in range(len(WELLS) - CONTROLS)]
        keys = {
            "Metadata_Plate": plate,
            "Metadata_Batch": f"B{i // ALIKE}",
            "Metadata_Well": WELLS,
            "Metadata_Treatment": ["DMSO"] * CONTROLS + treatments,
            "Metadata_Dose": 1.0,
            "Metadata_Unit": "uM",
            "Metadata_Control": ["negative"] * CONTROLS + [""] * len(treatments),
            "Metadata_CellCount": 2000,
            "Metadata_FieldCount": 9,
            "Metadata_CellsPerField": 222.0,
            "Metadata_Normalized": True,
            READOUT: values[:, 0],
        }
        table = pd.concat([pd.DataFrame(keys, index=range(len(WELLS))), pd.DataFrame(values, columns=base)], axis=1)
        base_of = folder / plate_folder(plate)
        write_table(base_of / "profiles.parquet", table, made)
        write_table(base_of / "aggregates.parquet", table.drop(columns="Metadata_Normalized"), made)
        flags = pd.DataFrame(
            {"Metadata_Well": np.repeat(WELLS, 9), "SourceField": np.tile(range(9), len(WELLS)), "Reason": ""}
        )
        write_table(base_of / "qc.parquet", flags, made)
        for well in WELLS:
            path = folder / well_table(plate, "fields", well)
            path.parent.mkdir(exist_ok=True)
            os.link(folder / "fields.parquet", path)
        for stage in ("profiling", "report"):
            record = {
                "stage": stage,
                "plate": plate,
                "part": 0,
                "status": "done",
                "reason": "",
                "facts": {},
                "computed": [],
            }
            record |= {"artefacts": {"profiles": str(i)}, "code": "", "settings": "", "versions": {}, "failures": []}
            write_json(folder / record_path(plate, stage), record | {"started": "", "seconds": 1.0, "kept": []})
    (folder / "plates.tsv").write_text("\n".join(rows) + "\n")
    channels = {name: {"source": name} for name in CHANNELS}
    settings = {"channels": channels, "segmentation": {"parameters": {"nuclei_channel": "DNA"}}}
    return settings | {"profiling": {"parameters": {"readout": base[0]}}}


def run_step(folder, stage, settings):
    """Seconds of the processor and of the clock that a step takes, and its memory [MB]; runs in a process of its own."""
    from plateloom.planning import Screen
    from plateloom.stages.comparison import compare_screen
    from plateloom.stages.profiling import profile_screen
    from plateloom.stages.screen_report import report_screen
    from plateloom.store.layout import record_path, screen_record

    os.chdir(folder)
    screen = Screen(settings)
    given = {"settings": screen.settings(stage), "code": "", "missing": [], "record": screen_record(stage)}
    profiled, reported = ([record_path(plate, name) for plate in screen.plates] for name in ("profiling", "report"))
    screened = screen_record("profiles")
    before, started = os.times(), time.perf_counter()
    if stage == "profiles":
        profile_screen(**given, plates=list(screen.plates), profiled=profiled)
    elif stage == "comparison":
        compare_screen(**given, screened=screened, profiled=profiled, encoded=[])
    else:
        rest = {"screened": screened, "reported": reported, "compared": [screen_record("comparison")]}
        rest |= dict.fromkeys(("mapped", "encoded", "classified"), ())
        report_screen(**given, **rest, plates=screen.plate_table())
    after = os.times()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return sum(after[:4]) - sum(before[:4]), time.perf_counter() - started, peak


if __name__ == "__main__":
    main()
