"""A stitched well segmented tile by tile and in one piece: `python benchmarks/tiling.py [--side 10000]`.

Simulates one well as one scene, photographs it as 5 × 5 overlapping fields in the layout of a Harmony export, converts it with
`conversion.layout: stitched` and segments it through Snakemake in tiles of 2048 px; then segments the same corrected pixels in
one piece, in a process of its own, and compares every label. Peak memory of the worker with the most, and of the whole image's.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the writer of vendors' layouts is the tests'
ACROSS, TILE_PX = 5, 2048


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=10_000, help="Side of the well [px].")
    parser.add_argument("--step", choices=("make", "whole"), help=argparse.SUPPRESS)  # a process of its own
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "make":
        make_screen(arguments.folder, arguments.side)
    elif arguments.step == "whole":
        print(json.dumps(segment_whole(arguments.folder)))
    else:
        with tempfile.TemporaryDirectory() as name:
            compare(Path(name) / "screen", arguments.side)


def compare(folder, side):
    """Make a screen, segment it both ways, and print what came of it."""
    again = [sys.executable, __file__, "--folder", str(folder), "--side", str(side), "--step"]
    subprocess.run([*again, "make"], check=True)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    subprocess.run([*command, "--cores", "2", "--until", "segment_plate", "--quiet", "all"], check=True, cwd=ROOT)
    record = json.loads((folder / "results/plates/P1/records/segmentation/part-0.json").read_text())
    whole = json.loads(subprocess.run([*again, "whole"], check=True, capture_output=True, text=True).stdout)
    print(
        f"A well of {whole['shape'][0]:,} × {whole['shape'][1]:,} px in tiles of {TILE_PX} px, {whole['nuclei']:,} nuclei.\n"
    )
    print("| | seconds | peak memory [MB] |\n|---|---|---|")
    print(
        f"| tiles, {len(record['cluster']['workers'])} workers | {record['seconds']:.0f} | {record['cluster']['worker_peak_mb']:,} |"
    )
    print(f"| in one piece | {whole['seconds']:.0f} | {whole['peak_mb']:,} |\n")
    print(f"Pixels whose label differs: nuclei {whole['different'][0]}, cells {whole['different'][1]}.")
    sys.exit(any(whole["different"]))


def make_screen(folder, side):
    """Write a screen of one well of 5 × 5 fields."""
    from conftest import simulate
    from layouts import harmony

    from plateloom.simulation import ScreenDesign, render_field

    size = -(-(side + 4 * side // 50) // ACROSS)
    step = (side - size) // (ACROSS - 1)
    side = step * (ACROSS - 1) + size
    simulate(folder, rows=1, columns=1, size_px=64, cells_per_field=1.0)
    number = 160 * (side / 1080) ** 2
    design = ScreenDesign(plates=("P1",), rows=1, columns=1, fields=1, size_px=side, cells_per_field=number)
    scene = render_field(design, "P1", "A01", 1).image
    planes, positions = {}, {}
    for field in range(1, ACROSS**2 + 1):
        y, x = ((field - 1) // ACROSS * step, (field - 1) % ACROSS * step)
        positions[field] = (y * 0.65, x * 0.65)
        for channel, plane in enumerate(scene, start=1):
            planes["A01", field, channel, 1, 1] = plane[y : y + size, x : x + size]
    for path in (folder / "raw/P1").iterdir():
        path.unlink()
    harmony.write(folder / "raw/P1", planes, pixel_size_um=0.65, positions=positions, channels=("DNA", "ER", "GFP"))
    (folder / "plates.tsv").write_text((folder / "plates.tsv").read_text().replace("pattern", "harmony"))
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings.pop("readers", None)
    settings |= {"conversion": {"layout": "stitched"}, "engine": {"tile_px": TILE_PX}}
    for name, channel in settings["channels"].items():
        channel["source"] = name
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def segment_whole(folder):
    """Segment the well in one piece, and compare with the labels on disk: what was found, as JSON values."""
    import os

    from plateloom.config import read_config
    from plateloom.planning import Screen
    from plateloom.segmentation import segment_image
    from plateloom.stages.illumination import read_corrected
    from plateloom.store import plate as store
    from plateloom.store.provenance import read_json

    os.chdir(folder)
    settings = Screen(read_config(Path()).model_dump(mode="json")).settings("segmentation")
    light = read_json("results/plates/P1/records/illumination/part-0.json")["artefacts"]["illumination"]
    path = store.field_path("results/plates/P1/plate.zarr", "A01", 1)
    described = store.describe_image(path)
    image = read_corrected("P1", "A01", 1, light)
    started = time.monotonic()
    labels = segment_image(
        image,
        described["channels"],
        method=settings["method"],
        params=settings["parameters"],
        pixel_size_um=described["pixel_size_um"],
    )
    seconds = time.monotonic() - started
    different = [int((store.read_labels(path, name) != labels[name]).sum()) for name in ("Nuclei", "Cells")]
    return {
        "shape": image.shape[1:],
        "nuclei": int(labels["Nuclei"].max()),
        "seconds": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000,
        "different": different,
    }


if __name__ == "__main__":
    main()
