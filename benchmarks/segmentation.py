"""Our segmentation methods side by side: `python benchmarks/segmentation.py [--write]`.

How well they find the nuclei of 30 real images (a pixel classifier from strokes in ten others), how fast they are on a simulated field, and how fast cells grow beside the
same step of CellProfiler (centrosome's `propagate`, in an environment of its own: `make cp_measure`, or
`python -m venv build/centrosome` and `build/centrosome/bin/pip install centrosome`). One thread; seconds are of the CPU,
which other programs do not lengthen; methods take turns. Prints a page in Markdown; `--write` puts it into docs/benchmarks.md.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.page import write_section  # noqa: E402

PEERS = [ROOT / "build" / name / "bin" / "python" for name in ("centrosome", "cp_measure")]
AIM = 3  # fields a second, of the watershed with cells
METHODS = ("watershed", "unet")

CALL_PEER = """
import sys, time, numpy as np
from centrosome.propagate import propagate
given = np.load(sys.argv[1])
seconds = []
for _ in range(int(sys.argv[3])):
    start = time.process_time()
    labels, costs = propagate(given["image"], given["seeds"].astype(np.int32), given["allowed"], float(given["weight"]))
    seconds.append(time.process_time() - start)
np.savez(sys.argv[2], labels=labels, costs=costs, seconds=seconds)
"""


def main():
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "dsb2018_fluo",
        help="Folder with images/*.png and labels/*.tif of the same names.",
    )
    parser.add_argument(
        "--painted",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "dsb2018_train",
        help="The same of other images, on some of which strokes are painted.",
    )
    parser.add_argument("--size", type=int, default=1080, help="Side of the simulated field [px].")
    parser.add_argument("--repeats", type=int, default=5, help="Each time is the median of so many.")
    parser.add_argument("--write", action="store_true", help="Put the page into docs/benchmarks.md.")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    lines = [
        "## Segmentation: `python benchmarks/segmentation.py`",
        "",
        f"One thread, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}; "
        + ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "scipy", "numba", "torch"))
        + ".",
        "",
    ]
    lines += (
        compare_quality(options.data) if options.data.is_dir() else [f"No quality: no folder {options.data.name}.", ""]
    )
    if options.data.is_dir() and options.painted.is_dir():
        lines += compare_strokes(options.data, options.painted)
    image, names, pixel_size_um = make_field(options.size)
    lines += compare_speed(image, names, pixel_size_um, options.repeats)
    lines += compare_growth(image, names, pixel_size_um, options.data, options.repeats)
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if options.write:
        write_section(__file__, text)


def segment(image, channels, method, pixel_size_um, device="cpu", **params):
    """Labels of an image."""
    from plateloom.segmentation import segment_image

    return segment_image(image, channels, method=method, params=params, pixel_size_um=pixel_size_um, device=device)


def compare_quality(folder):
    """Lines of the table of scores: each image's own diameter from the truth, and estimated by the network."""
    from plateloom.segmentation.evaluation import compare_labels, pool
    from plateloom.segmentation.unet import estimate_diameter

    rows = {"watershed, diameter of the truth": [], "unet, diameter of the truth": [], "unet, diameter estimated": []}
    ratios = []
    for image, truth, true in read_images(folder):
        estimated = estimate_diameter(image) or true
        ratios.append(estimated / true)
        for name, found in rows.items():
            diameter = estimated if name.endswith("estimated") else true
            labels = segment(image[None], ["DNA"], name.split(",")[0], 1.0, nucleus_diameter_um=diameter)["Nuclei"]
            found.append(compare_labels(labels, truth))
    pooled = {name: pool(found) for name, found in rows.items()}
    one = next(iter(pooled.values()))
    lines = [
        f"{one.images} fluorescence images of the Data Science Bowl 2018 with {one.true:,} nuclei, none of which the network "
        "learned from; objects of all images counted together, matched one to one. Magnifications are mixed, so each image "
        "gives its own diameter: the median of its true nuclei, or what `estimate_diameter` finds "
        f"(ratio to the true one {min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}).",
        "",
        *score_table(pooled),
    ]
    return [*lines, ""]


def score_table(pooled):
    """Lines of the table of scores of each method."""
    lines = [
        "| method | F1 at IoU 0.5 | AP at 0.5 | mean AP, 0.5 to 0.9 | split | merged | missed | spurious |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in pooled.items():
        scores = f"{found.f1[0]:.3f} | {found.ap[0]:.3f} | {found.mean_ap:.3f}"
        lines.append(f"| {name} | {scores} | {found.splits} | {found.merges} | {found.missed} | {found.spurious} |")
    return lines


def read_images(folder):
    """Image (Y, X) in 0 … 1, true labels and the median diameter of these [px], of each image of a folder."""
    import tifffile
    from PIL import Image

    for path in sorted((folder / "labels").glob("*.tif")):
        truth = tifffile.imread(path)
        pixels = np.asarray(Image.open(folder / "images" / f"{path.stem}.png"))
        areas = np.unique(truth[truth > 0], return_counts=True)[1]
        image = (pixels if pixels.ndim == 2 else pixels[..., 0]).astype(np.float32) / 255
        yield image, truth, float(np.sqrt(np.median(areas) * 4 / np.pi))


def compare_strokes(folder, painted, count=10):
    """Lines on a pixel classifier that learned from a few strokes: on the images of `folder` that are of one magnification."""
    from plateloom.segmentation.evaluation import compare_labels, pool
    from plateloom.segmentation.pixel_model import pack_pixel_model
    from plateloom.segmentation.pixel_training import Painted, train_pixels

    random = np.random.default_rng(0)
    tested = list(read_images(folder))
    typical = statistics.median(diameter for *_, diameter in tested)
    tested = [one for one in tested if 0.8 < one[2] / typical < 1.25]
    others = [one for one in read_images(painted) if 0.9 < one[2] / typical < 1.1 and one[1].max() >= 10]
    # Pixels are sized so that a nucleus is 10 µm wide.
    examples = [
        Painted(str(i), str(i), image[None], paint_strokes(truth, random), 10 / diameter)
        for i, (image, truth, diameter) in enumerate(others[:: len(others) // count][:count])
    ]
    model = train_pixels(examples, channels=["DNA"], classes=["background", "nuclei"])
    strokes = sum(int((one.paint > 0).sum()) for one in examples)
    rows = {"pixels, strokes": [], "watershed": [], "unet": []}
    with tempfile.TemporaryDirectory() as kept:
        path = Path(kept) / "pixels.safetensors"
        path.write_bytes(pack_pixel_model(model))
        for image, truth, diameter in tested:
            for name, found in rows.items():
                more = {"model": str(path)} if name.startswith("pixels") else {}
                labels = segment(
                    image[None], ["DNA"], name.split(",")[0], 10 / diameter, nucleus_diameter_um=10.0, **more
                )
                found.append(compare_labels(labels["Nuclei"], truth))
    pooled = {name: pool(found) for name, found in rows.items()}
    share = strokes / sum(one.paint.size for one in examples)
    lines = [
        f"The method `pixels` after strokes in {len(examples)} images of the collection that are none of these ({strokes:,} pixels, "
        f"{share:.1%} of them: four nuclei an image and what is around them, background, gaps between nuclei), on the "
        f"{len(tested)} of the {len(list(folder.glob('labels/*.tif')))} images that have nuclei of 0.8 to 1.25 times the typical size ({pooled['unet'].true:,} nuclei).",
        "",
        *score_table(pooled),
    ]
    return [*lines, ""]


def paint_strokes(truth, random, count=4):
    """Paint as a person would: 2 in some nuclei, 1 around them, at some places of the background and where nuclei nearly touch."""
    from scipy import ndimage

    paint = np.zeros(truth.shape, np.uint8)
    depth, away = ndimage.distance_transform_edt(truth > 0), ndimage.distance_transform_edt(truth == 0)
    highest = ndimage.maximum_filter(truth, 5)
    lowest = -ndimage.maximum_filter(np.where(truth > 0, -truth.astype(int), -(1 << 30)), 5)
    between = np.argwhere((truth == 0) & (lowest < highest))
    paint[tuple(random.permutation(between)[: 20 * count].T)] = 1
    for row, column in random.permutation(np.argwhere(away > 4))[:count]:
        paint[row - 2 : row + 3, max(column - 6, 0) : column + 7] = 1
    paint[truth > 0] = 0
    for label in random.permutation(np.unique(truth[truth > 0]))[:count]:
        inside = truth == label
        paint[inside & (depth > 0.2 * depth[inside].max())] = 2
        paint[(truth == 0) & ndimage.binary_dilation(inside, iterations=3) & ~ndimage.binary_dilation(inside)] = 1
    return paint


def make_field(size):
    """A simulated field: image (C, Y, X), names of its channels, pixel size [µm/px]."""
    from plateloom.simulation import ScreenDesign, render_field

    design = ScreenDesign(size_px=size, cells_per_field=size**2 / 6000, seed=1)
    field = render_field(design, design.plates[0], design.wells[5], 1)
    image = (field.image / field.flatfield / 65535).astype(np.float32)
    return image, list(design.channel_names), design.pixel_size_um


def compare_speed(image, names, pixel_size_um, repeats):
    """Lines of the table of times; nuclei and cells of one field."""
    params = {"nuclei_channel": "DNA", "cells_channel": "ER", "nucleus_diameter_um": 15.0}
    both, alone, counts = ({name: [] for name in METHODS} for _ in range(3))
    for turn in range(repeats + 1):
        for method in METHODS:
            for seconds, more in ((both, {}), (alone, {"cells_channel": None})):
                start = time.process_time()
                labels = segment(image, names, method, pixel_size_um, **params | more)
                if turn:  # the first compiles, and loads the network
                    seconds[method].append(time.process_time() - start)
            counts[method] = int(labels["Nuclei"].max())
    cell, nucleus = ({name: statistics.median(found) for name, found in one.items()} for one in (both, alone))
    size = " × ".join(map(str, image.shape[1:]))
    lines = [
        f"A simulated field of {size} pixels, nuclei of {15 / pixel_size_um:.0f} px, CPU; median of {repeats}.",
        "",
        "| method | nuclei found | nuclei and cells [s] | fields/s | nuclei alone [s] | time, relative |",
        "|---|---|---|---|---|---|",
    ]
    for name in METHODS:
        lines.append(
            f"| {name} | {counts[name]} | {cell[name]:.3f} | {1 / cell[name]:.2f} | {nucleus[name]:.3f} "
            f"| {cell[name] / cell['watershed']:.2f} |"
        )
    reached = "reached" if cell["watershed"] <= 1 / AIM else "not reached here"
    return [
        *lines,
        "",
        f"The aim for the watershed is {AIM} fields a second: {reached}.",
        *time_gpu(image, names, pixel_size_um, repeats),
        "",
    ]


def time_gpu(image, names, pixel_size_um, repeats):
    """A line on the network on a GPU, by the clock, beside the same network on the CPU."""
    import torch

    if not torch.cuda.is_available():
        return ["There is no GPU here; the network is not timed on one."]
    params, spent = {"nuclei_channel": "DNA", "nucleus_diameter_um": 15.0}, {"cpu": [], "require": []}
    for turn in range(repeats + 1):
        for device, seconds in spent.items():
            start = time.perf_counter()
            segment(image, names, "unet", pixel_size_um, device, **params)
            if turn:
                seconds.append(time.perf_counter() - start)
    cpu, gpu = (statistics.median(seconds) for seconds in spent.values())
    return [
        f"Nuclei by the network on {torch.cuda.get_device_name()}: {1 / gpu:.1f} fields a second, {cpu / gpu:.1f} times the CPU's, by the clock."
    ]


def compare_growth(image, names, pixel_size_um, folder, repeats):
    """Lines on the growth of cells from nuclei, beside centrosome's on the same pixels."""
    peer = next((path for path in PEERS if path.exists()), None)
    if peer is None:
        return ["Growth of cells: no centrosome in build/centrosome or build/cp_measure; not compared.", ""]
    version = subprocess.run(
        [peer, "-c", "from importlib.metadata import version as v; print(v('centrosome'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    lines = [
        f"Growing cells from nuclei beside centrosome {version}, the same call with the same pixels; CPU, median of {repeats}. "
        "Labels and costs are compared bit for bit. Where two labels reach a pixel at the same cost, centrosome decides by "
        "cost, label and place, and so do we; but its queue begins unsorted, so that ties beside nuclei depend on nuclei far "
        "away, and ours do not.",
        "",
        "| images | pixels grown | labels that differ | costs that differ | pixels at ties | centrosome [s] | ours [s] | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, scenes in {**growth_scenes(image, names, pixel_size_um), **real_scenes(folder)}.items():
        found = np.array([grow_both(peer, *scene, repeats) for scene in scenes])
        grown, labels, costs, ties, theirs, ours = found.sum(axis=0)
        lines.append(
            f"| {name} | {grown:,.0f} | {labels:.0f} | {costs:.0f} | {ties:,.0f} | {theirs:.3f} | {ours:.3f} "
            f"| {theirs / ours:.1f} |"
        )
    return [*lines, ""]


def growth_scenes(image, names, pixel_size_um):
    """Seeds, where they may grow, image and weight, of the simulated field: as it is, and smoothed as by `watershed`."""
    from scipy.ndimage import gaussian_filter

    seeds = segment(image, names, "watershed", pixel_size_um, nuclei_channel="DNA", nucleus_diameter_um=15.0)["Nuclei"]
    pixels = np.ascontiguousarray(image[names.index("ER")])
    allowed = (pixels > np.quantile(pixels, 0.5)) | (seeds > 0)
    weight = 9 * 0.3 * float(pixels[allowed].mean() - np.quantile(pixels, 0.1))
    smooth = gaussian_filter(pixels, 0.05 * 15 / pixel_size_um)
    return {
        f"the simulated field, {int(seeds.max())} nuclei": [(seeds, allowed, pixels, weight)],
        "the same, smoothed": [(seeds, allowed, smooth, weight)],
    }


def real_scenes(folder):
    """The same of real images, with their true nuclei, all pixels and CellProfiler's default."""
    import tifffile
    from PIL import Image

    scenes = []
    for path in sorted((folder / "labels").glob("*.tif")):
        pixels = np.asarray(Image.open(folder / "images" / f"{path.stem}.png"))
        image = (pixels if pixels.ndim == 2 else pixels[..., 0]).astype(np.float32) / 255
        seeds = tifffile.imread(path).astype(np.uint32)
        scenes.append((seeds, np.ones(seeds.shape, bool), image, 0.05))
    return {f"the {len(scenes)} real images, 8 bits": scenes} if scenes else {}


def grow_both(peer, seeds, allowed, image, weight, repeats):
    """Pixels grown, labels and costs that differ, pixels at ties, and seconds of centrosome and of ours."""
    from plateloom.segmentation.propagation import propagate_labels

    with tempfile.TemporaryDirectory() as work:
        given, answer = f"{work}/given.npz", f"{work}/answer.npz"
        np.savez(given, image=image, seeds=seeds, allowed=allowed, weight=weight)
        subprocess.run([peer, "-c", CALL_PEER, given, answer, str(repeats)], check=True)
        theirs = {name: found for name, found in np.load(answer).items()}
    seconds, bound = [], float(theirs["costs"].max())
    for turn in range(repeats + 1):
        start = time.process_time()
        labels, costs = propagate_labels(seeds, allowed, image, weight, bound)
        if turn:
            seconds.append(time.process_time() - start)
    expected = np.where(theirs["costs"] < 0, np.inf, theirs["costs"])
    return (
        int(((labels > 0) & (seeds == 0)).sum()),
        int((labels != theirs["labels"]).sum()),
        int((costs != expected).sum()),
        count_ties(labels, costs, image, weight),
        statistics.median(theirs["seconds"]),
        statistics.median(seconds),
    )


def count_ties(labels, costs, image, weight):
    """Pixels that two labels reach at costs that agree but for the last bit."""
    edged = np.pad(image.astype(np.float64), 2, mode="edge")
    near, known = np.pad(labels, 1), np.pad(costs, 1, constant_values=np.inf)
    height, width = image.shape
    tied, keys = np.zeros(image.shape, bool), costs.view(np.int64) >> 1
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            rise = np.zeros(image.shape)
            for row in range(1, 4):
                for column in range(1, 4):
                    there = edged[row + down :, column + right :][:height, :width]
                    rise += np.abs(edged[row:, column:][:height, :width] - there)
            at = (slice(1 + down, 1 + down + height), slice(1 + right, 1 + right + width))
            reached = known[at] + np.sqrt(rise * rise + (abs(down) + abs(right)) * weight * weight)
            grown = np.isfinite(costs) & (costs > 0) & (known[at] < costs)
            tied |= grown & (reached.view(np.int64) >> 1 == keys) & (near[at] != labels)
    return int(tied.sum())


if __name__ == "__main__":
    main()
