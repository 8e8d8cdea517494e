"""From a plate's folder to the table of its planes, for each layout: `python benchmarks/scan.py [--planes 103680] [--write]`.

A plate of 384 wells, 9 fields, 5 channels and 6 z planes as each vendor lays it out (constructed, the pixels of a plane are few). A
process of its own lists the folder, recognizes the layout and scans it, twice: the first time is that of a folder whose entries the
system may have to read. Prints a table in Markdown.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the writers of vendors' layouts are the tests'

FIELDS, CHANNELS, HEIGHTS = 9, 5, 6
LAYOUTS = {  # by name: the reader, and options of its writer
    "names alone": ("pattern", {"layout": "incell"}),
    "ImageXpress, HTD export": ("imagexpress", {}),
    "Harmony, Index.idx.xml": ("harmony", {}),
    "CellVoyager, .mlf": ("yokogawa", {}),
    "OME-TIFF, a file per field, companion": ("ome_tiff", {}),
    "OME-Zarr 0.5": ("ome_zarr", {"sharded": True}),
    "OME-TIFF, a file per plane, XML in each": ("ome_tiff", {"per": "plane", "xml": "own"}),
}
SHARES = {"OME-TIFF, a file per plane, XML in each": 0.1}  # of the planes: so many are written for half an hour


def main():
    """Lay out, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--planes", type=int, default=384 * FIELDS * CHANNELS * HEIGHTS)
    parser.add_argument("--only", help="Layouts whose name begins so.", default="")
    parser.add_argument("--write", action="store_true", help="Put the table into docs/benchmarks.md.")
    parser.add_argument("--scan", type=Path, help=argparse.SUPPRESS)  # a process of its own
    arguments = parser.parse_args()
    if arguments.scan:
        print(json.dumps(measure(arguments.scan)))
        return
    lines = [
        f"Python {sys.version.split()[0]}, a plate of {arguments.planes:,} planes or, where one file holds several, as many.\n"
    ]
    lines.append("| layout | files | planes | seconds, first | again | of the processor | peak memory [MB] |")
    lines.append("|---|---|---|---|---|---|---|")
    print("\n".join(lines), flush=True)
    for name, (reader, options) in LAYOUTS.items():
        if not name.startswith(arguments.only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            lay_out(Path(folder), reader, int(SHARES.get(name, 1) * arguments.planes), options)
            command = [sys.executable, __file__, "--scan", folder]
            first, again = (json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in "12")
        assert first["reader"] == reader, first
        lines.append(
            f"| {name} | {again['files']:,} | {again['planes']:,} | {first['seconds']:.1f} | {again['seconds']:.1f} | "
            f"{again['processor']:.1f} | {again['memory_mb']:,.0f} |"
        )
        print(lines[-1], flush=True)
    if arguments.write:
        from page import write_section

        write_section(__file__, "\n".join(lines))


def lay_out(folder, reader, count, options):
    """Write a plate of so many planes, or a few less: whole wells."""
    per_well = FIELDS * CHANNELS * HEIGHTS
    wells = [f"{row}{column:02d}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)][: count // per_well]
    plane = np.random.default_rng(0).integers(0, 4000, (8, 8), dtype=np.uint16)
    planes = {
        (well, field + 1, channel + 1, z + 1, 1): plane
        for well in wells
        for field, channel, z in np.ndindex(FIELDS, CHANNELS, HEIGHTS)
    }
    importlib.import_module(f"layouts.{reader}").write(
        folder,
        planes,
        shape=(16, 24),
        positions={field + 1: (5.2 * (field // 3), 5.2 * (field % 3)) for field in range(FIELDS)},
        channels=("DNA", "ER", "RNA", "AGP", "Mito"),
        **options,
    )


def measure(folder):
    """Time and memory from the folder to the table of planes."""
    from plateloom.cli.init import recognize_folder
    from plateloom.engine.cluster import peak_memory_mb
    from plateloom.readers import READERS, load_reader

    for name in READERS:
        load_reader(name)  # importing is of no plate
    before = peak_memory_mb()
    began, worked = time.perf_counter(), time.process_time()
    found = recognize_folder(folder, None)
    module = load_reader(found["reader"])
    images = module.scan(folder, module.Params(**found["params"])).images
    seconds, processor = time.perf_counter() - began, time.process_time() - worked
    grown = peak_memory_mb() - before
    files = sum(path.is_file() for path in folder.rglob("*"))
    return {
        "reader": found["reader"],
        "files": files,
        "planes": len(images),
        "seconds": seconds,
        "processor": processor,
        "memory_mb": grown,
    }


if __name__ == "__main__":
    main()
