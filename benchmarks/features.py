"""Features side by side with cp_measure, in its faster mode, on the same pixels: `python benchmarks/features.py`.

`make cp_measure` first: the peer has an environment of its own. Both sides run in processes of their own with one thread,
take turns (A, B, A, B …) after a warm-up, and are timed by the CPU, which other programs do not lengthen. Prints tables in
Markdown. A ratio is printed only where both give the same columns and the values agree in this very run:

* with CellProfiler's own tables (`--reference`), every column; in each compartment one object may have a pixel on its Zernike circle;
* with cp_measure's values of the same cells, for the columns that cp_measure defines as CellProfiler does (not `DEPARTURES`).

A row is one call of ours, and everything that cp_measure must call for these columns, whichever is more: Location, for
example, comes with the intensities of cp_measure. cp_measure gets floats, labels without gaps, one order of each pair of
channels, and none of the columns that CellProfiler does not have.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
PEER = ROOT / "build" / "cp_measure" / "bin" / "python"
CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
COMPARTMENTS = ("Nuclei", "Cells")
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "BLIS_NUM_THREADS"), "1"
)
NEEDED = 0.999

# Where cp_measure is not CellProfiler.
DEPARTURES = {
    "Correlation_RWC_": "it ranks within each object, not over all objects of the image",
    "Correlation_Costes_": "it looks for a threshold in each object, not in the image",
    "Neighbors_(First|Second)ClosestObjectNumber_": "not the number of the object whose distance it gives",
}
# What only one side measures per object: our identification's centers, and a slope that CellProfiler has per image only.
UNPAIRED = r"Location_Center_[XY]|Correlation_Slope_.*"
COSTES, REST = "… of which Costes", "… of which the rest"


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[150, 600], help="Cells of a field of 1080².")
    parser.add_argument("--families", nargs="+", help="Ours; all when not given.")
    parser.add_argument("--repeats", type=int, default=5, help="Each number of ours is the median of so many.")
    parser.add_argument("--peer-repeats", type=int, default=1, help="The same for cp_measure: minutes each.")
    parser.add_argument("--threads", type=int, default=2, help="Workers at once in the last table; 1 leaves it out.")
    parser.add_argument("--no-peer", action="store_true", help="Only the tables that need no cp_measure.")
    parser.add_argument(
        "--reference",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "cellprofiler_reference",
        help="Folder of CellProfiler's tables: images, labels and values of the fields.",
    )
    parser.add_argument("--side", choices=("plateloom", "cp_measure"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return serve(options.side)
    if not options.no_peer and not PEER.exists():
        raise SystemExit(f"No {PEER}: run 'make cp_measure' first, or use --no-peer.")
    sys.path.insert(0, str(ROOT))
    from plateloom.features import FAMILIES

    if unknown := set(options.families or ()) - set(FAMILIES):
        raise SystemExit(f"No families {', '.join(sorted(unknown))}; there are {', '.join(FAMILIES)}.")
    families = [name for name in FAMILIES if name in (options.families or FAMILIES)]
    with tempfile.TemporaryDirectory() as folder:
        fields = {cells: make_field(Path(folder), cells) for cells in options.cells}
        describe(fields)
        if not options.no_peer:
            reference = compare_with_reference(options.reference, families)
            compare_speed(fields, families, reference, options.repeats, options.peer_repeats)
        show_profile(fields, families, options.repeats)
        if options.threads > 1:
            scale(fields, families, options.repeats, options.threads)


def describe(fields):
    """Say what is measured with what."""
    from importlib import metadata

    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}; ", end="")
    print(", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "scipy", "numba")), end="")
    if PEER.exists():
        names = ("cp_measure", "numpy", "scipy", "scikit-image", "centrosome", "mahotas", "numba")
        code = f"from importlib.metadata import version as v; print(', '.join(n + ' ' + v(n) for n in {names}))"
        found = subprocess.run([PEER, "-c", code], capture_output=True, text=True, check=True)
        print(f"; peer: {found.stdout.strip()}", end="")
    print(".\n")
    for cells, path in fields.items():
        sizes = []
        for compartment in COMPARTMENTS:
            area = np.bincount(np.load(path / f"{compartment}.npy").ravel())[1:]
            sizes.append(f"{compartment} {area.mean():.0f} px² (radius {np.sqrt(area / np.pi).mean():.0f} px)")
        shape = np.load(path / "image.npy", mmap_mode="r").shape
        print(f"Field of {cells} cells, {' × '.join(map(str, shape))} uint16: {', '.join(sizes)}.")
    print(flush=True)


# --- the field


def make_field(folder, cells):
    """Simulate a field with exactly so many labeled cells, and a small piece of it for the warm-up; returns its folder."""
    from plateloom.simulation import Channel, ScreenDesign, render_field

    stains = (
        ("DNA", "dna", 14e3),
        ("ER", "er", 11e3),
        ("RNA", "marker", 9e3),
        ("AGP", "actin", 8e3),
        ("Mito", "er", 1e4),
    )
    for seed in range(20):
        design = ScreenDesign(
            plates=("P",),
            rows=1,
            columns=1,
            fields=1,
            size_px=1080,
            pixel_size_um=0.65 * np.sqrt(cells / 150),
            channels=tuple(Channel(name, stain, brightness, 700) for name, stain, brightness in stains),
            bit_depth=16,
            cells_per_field=1.1 * cells,
            treatments=(),
            seed=seed,
        )
        rendered = render_field(design, "P", "A01", 1)
        if len(rendered.table) >= cells:
            break
    else:
        raise SystemExit(f"{cells} cells do not fit into the field.")
    image = rendered.image
    image[4] = image[4] // 2 + image[3] // 2  # a fifth stain: two channels of one stain alone would be too alike
    labels = {"Nuclei": rendered.nuclei.astype(np.int32), "Cells": rendered.cells.astype(np.int32)}
    for plane in labels.values():
        plane[plane > cells] = 0
    piece = (slice(300, 620), slice(300, 620))
    kept = np.intersect1d(*(plane[piece] for plane in labels.values()))
    small = {name: np.searchsorted(kept, plane[piece] * np.isin(plane[piece], kept)) for name, plane in labels.items()}
    for name, pixels, planes in (("field", image, labels), ("warm-up", image[:, *piece], small)):
        path = folder / str(cells) / name
        path.mkdir(parents=True)
        np.save(path / "image.npy", pixels)
        for compartment, plane in planes.items():
            np.save(path / f"{compartment}.npy", plane.astype(np.int32))
    return folder / str(cells) / "field"


def load_field(path):
    """Image and labels by compartment."""
    return np.load(Path(path) / "image.npy"), {name: np.load(Path(path) / f"{name}.npy") for name in COMPARTMENTS}


# --- the two sides, each in a process of its own


class Side:
    """A process that measures when asked: one request and one answer per line."""

    def __init__(self, side, **environment):
        environment = {**os.environ, **ONE_THREAD, **environment}
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [PEER if side == "cp_measure" else sys.executable, __file__, "--side", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.stdin.close()
        self._process.wait()

    def start(self, task, **request):
        """Send a request."""
        print(json.dumps([task, request]), file=self._process.stdin, flush=True)

    def answer(self):
        """Wait for the answer to it."""
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"The process of {self._process.args[-1]} has ended.")
        return json.loads(line)

    def ask(self, task, **request):
        """Send a request and wait for the answer."""
        self.start(task, **request)
        return self.answer()


def serve(side):
    """Be one of the sides."""
    import warnings

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")
    tasks = {"cp_measure": (call_peer,), "plateloom": (measure_ours, time_costes, profile_ours, use_memory)}[side]
    tasks = {task.__name__: task for task in tasks}
    if side == "plateloom":
        sys.path.insert(0, str(ROOT))
    for line in sys.stdin:
        task, request = json.loads(line)
        print(json.dumps(tasks[task](**request)), file=answers, flush=True)


class Clock:
    """CPU and wall seconds of a block; refuses a block that used more than one core."""

    def __enter__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error):
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        if self.cpu > 1.1 * self.wall + 0.05:
            raise SystemExit(f"{self.cpu:.2f} s of CPU in {self.wall:.2f} s: more than one thread has worked.")


# --- Plateloom's side


def measure_ours(field, families, compartments=COMPARTMENTS, save=None, times=1):
    """Seconds of one `measure_image`, from arrays to tables."""
    from plateloom.features import measure_image

    image, labels = load_field(field)
    labels = {name: labels[name] for name in compartments}
    with Clock() as clock:
        for _ in range(times):
            tables = measure_image(image, labels, CHANNELS, families=families)
    if save:
        for name, table in tables.items():
            table.to_parquet(f"{save}-{name}.parquet")
    return {"cpu": clock.cpu / times, "wall": clock.wall / times}


def time_costes(field, compartments=COMPARTMENTS):
    """CPU seconds of Costes alone: the thresholds of all pairs, and what of each object lies above them."""
    from plateloom.features import correlation
    from plateloom.features.pixels import PixelIndex

    image, labels = load_field(field)
    with Clock() as clock:
        thresholds = correlation.find_thresholds(image, 65535.0, 65535)
    spent, row = clock.cpu, np.empty(10)
    for compartment in compartments:
        index = PixelIndex(labels[compartment], image)
        objects = [
            (index.values[a, first:last], index.values[b, first:last], *pair, row)
            for first, last in zip(index.offsets[:-1], index.offsets[1:], strict=True)
            for (a, b), pair in zip(combinations(range(len(CHANNELS)), 2), thresholds, strict=True)
        ]
        correlation._colocalize(*objects[0])  # compiled for these arrays
        with Clock() as clock:
            for arguments in objects:
                correlation._colocalize(*arguments)
        spent += clock.cpu
    return spent


def profile_ours(field, families):
    """CPU seconds step by step over both compartments: the pixel lists, then each family."""
    from plateloom.features import FAMILIES
    from plateloom.features.pixels import PixelIndex, Shared, check_image

    image, labels = load_field(field)
    options = {"labels": labels, "bit_depth": 16, "texture_scales": (3,), "neighbor_distance": 5}
    spent, shared = {}, Shared()
    for compartment, plane in labels.items():
        started = time.process_time()
        index = PixelIndex(plane, check_image(image, CHANNELS), shared)
        for name, found in vars(PixelIndex).items():
            if isinstance(found, functools.cached_property):
                getattr(index, name)
        spent["pixel lists"] = spent.get("pixel lists", 0.0) + time.process_time() - started
        for family in families:
            started = time.process_time()
            measure = importlib.import_module(FAMILIES[family]).measure
            measure(index, image, CHANNELS, compartment=compartment, **options)
            spent[family] = spent.get(family, 0.0) + time.process_time() - started
    return spent


def use_memory(field, families):
    """Peak memory [MB] of a worker: after the imports, and what a field adds to what is held before it."""
    import numba  # noqa: F401
    import pandas  # noqa: F401

    from plateloom.features import FAMILIES, measure_image

    for family in families:
        importlib.import_module(FAMILIES[family])
    imported = peak_memory()
    warm_up, fields = Path(field).parent / "warm-up", []
    measure_image(*load_field(warm_up), CHANNELS, families=families)
    image, labels = load_field(field)
    loaded = peak_memory(reset=True)
    for _ in range(3):
        measure_image(image, labels, CHANNELS, families=families)
        fields.append(peak_memory())
    return {"imported": imported, "loaded": loaded, "first": fields[0], "third": fields[2], "image": image.nbytes / 1e6}


def peak_memory(reset=False):
    """Peak resident memory of this process [MB]; what is resident now when it is to be measured anew."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    # Not ru_maxrss, which a process inherits from the one that started it.
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6


# --- cp_measure's side


def call_peer(field, calls=None, save=None):
    """CPU seconds of each call and compartment, and the columns that it gives."""
    image, labels = load_field(field)
    image = image / 65535.0
    seconds, columns = {}, {}
    for name, call in peer_calls().items():
        if calls is not None and name not in calls:
            continue
        for compartment, plane in labels.items():
            with Clock() as clock:
                found = call(plane, image)
            seconds.setdefault(name, {})[compartment] = clock.cpu
            columns[name] = list(found)
            if save:
                values = np.column_stack([np.asarray(column, float) for column in found.values()])
                np.savez(f"{save}-{name}-{compartment}.npz", columns=columns[name], values=values)
    return {"seconds": seconds, "columns": columns}


def peer_calls():
    """The peer's functions with the settings of its faster mode and CellProfiler's names."""
    import cp_measure
    from cp_measure import bulk
    from cp_measure.core.measurecolocalization import get_correlation_overlap

    cp_measure.set_accelerator("numba")  # 'fastest' is announced but not there in 0.3.0
    # Labels are 1 … N already; the quartiles are CellProfiler's.
    objects = bulk.get_core_measurements(legacy=True, sanitize=False)
    pairs = bulk.get_correlation_measurements(sanitize=False) | {"overlap": get_correlation_overlap}
    settings = {"sizeshape": {"new_features": False}, "texture": {"scale": 3}, "costes": {"scale_max": 65535}}

    def shape(name):
        def call(labels, image):
            found = objects[name](labels, None, **settings.get(name, {}))
            return {f"AreaShape_{feature}": values for feature, values in found.items()}

        return call

    def each_channel(name, rename):
        def call(labels, image):
            return {
                rename(feature, channel): values
                for channel, plane in zip(CHANNELS, image, strict=True)
                for feature, values in objects[name](labels, plane, **settings.get(name, {})).items()
            }

        return call

    def each_pair(name):
        def call(labels, image):
            columns = {}
            for a, b in combinations(range(len(CHANNELS)), 2):
                for feature, values in pairs[name](image[a], image[b], labels, **settings.get(name, {})).items():
                    feature, backward = re.subn("_2$", "", feature.removesuffix("_1"))
                    feature = feature.replace("_Pearson", "_Correlation")
                    columns[
                        "_".join([feature, *((CHANNELS[b], CHANNELS[a]) if backward else (CHANNELS[a], CHANNELS[b]))])
                    ] = values
            return columns

        return call

    def neighbors(labels, image):
        measure = bulk.get_multimask_measurements()["neighbors"]
        return measure(labels, labels, "Adjacent") | measure(labels, labels, "Within a specified distance", 5)

    def last(feature, channel):
        return f"{feature}_{channel}"

    def texture(feature, channel):
        measure, scale, direction, levels = feature.split("_")
        return f"Texture_{measure}_{channel}_{scale}_{direction}_{levels}"

    def radial(feature, channel):
        family, measure, rest = feature.split("_", 2)
        return f"{family}_{measure}_{channel}_{rest}"

    rename = {"texture": texture, "radial_distribution": radial, "radial_zernikes": radial}
    calls = {name: shape(name) for name in ("sizeshape", "zernike", "feret")}
    calls |= {name: each_channel(name, rename.get(name, last)) for name in objects if name not in calls}
    return calls | {name: each_pair(name) for name in pairs} | {"neighbors": neighbors}


# --- agreement: the rule of the README beside CellProfiler's tables


class Ties:
    """What several answers are right for.

    Parameters
    ----------
    equal_maximum : callable
        Of label, channel and the two positions (x, y): whether the brightest pixel may be either.
    centers : dict of int to DataFrame
        By label: the radial distribution for each of the pixels that are equally far from the edge.
    undecided : set of int
        Labels with such pixels whose values are not in `centers`: left out where they do not agree.
    tied_circle : callable
        Of a label: whether several corners can end the search for its enclosing circle; the last bit of its radius, and
        with it the pixels on it that count, depend on which does. Left out where they do not agree.
    """

    def __init__(self, equal_maximum, centers, undecided, tied_circle):
        self.equal_maximum, self.centers, self.undecided = equal_maximum, centers, undecided
        self.tied_circle = tied_circle


def agree(ours, theirs, absolute=1e-9):
    """1e-6 relative; NaN equals NaN, infinity equals infinity."""
    return np.isclose(ours, theirs, rtol=1e-6, atol=absolute, equal_nan=True)


def absolute_tolerance(feature, expected):
    """The absolute term for features that are differences of large numbers."""
    if re.fullmatch("AreaShape_(Eccentricity|MinorAxisLength)|Texture_InfoMeas2_.*", feature):
        return 1e-6
    if moment := re.match(r"AreaShape_CentralMoment_(\d)_(\d)", feature):
        diameter = np.maximum(expected["AreaShape_MaxFeretDiameter"], 1)
        return 1e-9 + 1e-10 * expected["AreaShape_Area"] * diameter ** (int(moment[1]) + int(moment[2]))
    if hu := re.match(r"AreaShape_HuMoment_(\d)", feature):
        return (1e-9, 1e-9, 1e-12, 1e-12, 1e-15, 1e-12, 1e-15)[int(hu[1])]
    return 1e-9


def compare(measured, expected, ties):
    """Compare two tables with the same rows and without a prefix in the columns.

    Returns
    -------
    dict of str to tuple of two ndarrays of bool
        By feature that both have: where it agrees, and where it is defined.
    """
    verdicts = {}
    radial = [f for f in expected if re.match("RadialDistribution_(FracAtD|MeanFrac|RadialCV)_", f) and f in measured]
    if radial:
        verdicts |= compare_radial(measured[radial], expected[radial], ties)
    for feature in (f for f in expected if f in measured and f not in verdicts):
        ours, theirs = measured[feature].to_numpy(), expected[feature].to_numpy()
        ok, defined = agree(ours, theirs, absolute_tolerance(feature, expected)), np.ones(len(theirs), bool)
        if feature == "AreaShape_Orientation":
            ok |= np.abs((ours - theirs + 90) % 180 - 90) <= 1e-6 * np.abs(theirs) + 1e-7
            defined = (expected["AreaShape_Eccentricity"] >= 1e-3).to_numpy()
        elif feature.startswith("RadialDistribution_ZernikePhase_"):
            magnitude = feature.replace("Phase", "Magnitude")
            there = expected[magnitude].to_numpy() * np.exp(1j * theirs)
            here = measured[magnitude].to_numpy() * np.exp(1j * ours)
            ok = np.isnan(here) & np.isnan(there) | (np.abs(here - there) <= 1e-6 * np.abs(there) + 1e-9)
            defined = ~(expected[magnitude].to_numpy() < 1e-9)
        elif pair := re.match(r"Correlation_Correlation_(.+)_(.+)", feature):
            for channel in pair.groups():
                names = [f"Intensity_{m}Intensity_{channel}" for m in ("Mean", "Std")]
                if set(names) <= set(expected):
                    mean, deviation = (expected[name].to_numpy() for name in names)
                    defined &= deviation > 1e-9 * mean + 1e-12
        elif feature.startswith("Neighbors_AngleBetweenNeighbors"):
            # Collinear centers: a cosine rounded beyond 1 has no angle.
            cosines = np.cos(np.radians(ours)), np.cos(np.radians(theirs))
            ok |= np.abs(cosines[0] - cosines[1]) <= 1e-12
            ok |= (np.isnan(theirs) | np.isnan(ours)) & (np.fmax(*np.abs(cosines)) > 1 - 1e-12)
        elif place := re.match(r"Location_MaxIntensity_[XY]_(.+)", feature):
            x, y = (f"Location_MaxIntensity_{axis}_{place[1]}" for axis in "XY")
            for i in np.flatnonzero(~ok):
                pair = [tuple(table.iloc[i][[x, y]]) for table in (measured, expected)]
                ok[i] = ties.equal_maximum(expected.index[i], place[1], *pair)
        if "Zernike" in feature:
            for i in np.flatnonzero(~ok & defined):
                defined[i] = not ties.tied_circle(expected.index[i])
        verdicts[feature] = ok, defined
    return verdicts


def compare_radial(measured, expected, ties):
    """The same for the radial distribution: in all channels by one and the same center."""
    ours, theirs = measured.to_numpy(), expected.to_numpy()
    ok, defined = agree(ours, theirs), np.ones(theirs.shape, bool)
    for i in np.flatnonzero(~ok.all(axis=1)):
        label = expected.index[i]
        if label in ties.centers:
            fits = agree(ours[i], ties.centers[label][list(expected)].to_numpy())
            best = fits[fits.sum(axis=1).argmax()]
            ok[i] = best if best.sum() > ok[i].sum() else ok[i]
        defined[i] = ok[i].all() or label not in ties.undecided
    return {feature: (ok[:, k], defined[:, k]) for k, feature in enumerate(expected)}


class Share:
    """How many values agree, of how many that are defined."""

    def __init__(self):
        self.agreed = self.defined = self.all = self.columns = 0

    def add(self, ok, defined):
        """Count one column."""
        self.agreed += int((ok & defined).sum())
        self.defined += int(defined.sum())
        self.all += len(defined)
        self.columns += 1

    def join(self, other):
        """Count what another share has counted."""
        self.agreed += other.agreed
        self.defined += other.defined
        self.all += other.all
        self.columns += other.columns

    @property
    def enough(self):
        """Whether 99.9 % agree, and hardly any is left out."""
        return self.defined >= 0.99 * max(self.all, 1) and self.agreed >= NEEDED * self.defined

    def forgive(self, column):
        """The same, where of a Zernike column one object may lie on its circle."""
        found = Share()
        found.join(self)
        found.agreed += min(self.columns, self.defined - self.agreed) if "Zernike" in column else 0
        return found

    def __str__(self):
        if not self.defined:
            return "–"
        percent = np.floor(1e5 * self.agreed / self.defined) / 1e3
        left = f", {1 - self.defined / self.all:.1%} left out" if self.defined < 0.9995 * self.all else ""
        return f"{percent:.3f} %{left}"


def compare_with_reference(folder, families):
    """How our values agree with CellProfiler's own tables: by column without channel, the `Share` of the worst field."""
    import pandas as pd
    import tifffile

    from plateloom.features import measure_image

    shares = {}
    for path in (folder / "examplehuman", folder / "synthetic"):
        if not path.exists():
            print(f"No reference {path}.\n")
            continue
        if (path / "field.json").exists():
            field = json.loads((path / "field.json").read_text())
            images, labels = field["channels"], field["labels"]
        else:
            images = {file.stem.split("_")[1]: file for file in sorted((path / "images").glob("*.tif"))}
            labels = {file.stem: file for file in (path / "labels").glob("*.tif")}
        scales = (3, 5, 10) if path.name == "synthetic" else (3,)
        image = np.stack([tifffile.imread(path / file) for file in images.values()])
        tables = measure_image(
            image,
            {compartment: tifffile.imread(path / file) for compartment, file in labels.items()},
            list(images),
            families=families,
            texture_scales=scales,
        )
        for compartment, table in tables.items():
            expected = without_prefix(pd.read_parquet(path / f"{compartment}.parquet").set_index("ObjectNumber"))
            positions = pd.read_parquet(path / "ties" / f"{compartment}_max_positions.parquet")
            positions = set(positions[["ObjectNumber", "Channel", "X", "Y"]].itertuples(index=False, name=None))
            centers = pd.read_parquet(path / "ties" / f"{compartment}_radial_centres.parquet")
            centers = dict(list(without_prefix(centers).groupby("ObjectNumber")))
            ties = Ties(
                lambda label, channel, ours, theirs, known=positions: (label, channel, *ours) in known,
                centers,
                {label for label, values in centers.items() if len(values) >= 24},
                lambda label: False,
            )
            for feature, verdict in compare(without_prefix(table).reindex(expected.index), expected, ties).items():
                shares.setdefault(feature, {}).setdefault(path.name, Share()).add(*verdict)
    return shares


def without_prefix(table):
    """The table with columns without the compartment."""
    return table.rename(columns=lambda column: re.sub("^(Nuclei|Cells|Cytoplasm)_", "", column))


def compare_with_peer(field, save, calls):
    """How our values agree with cp_measure's: by column of both, a `Share`; and the columns of only one of the two."""
    import pandas as pd

    image, labels = load_field(field)
    shares, unpaired = {}, set()
    for compartment, plane in labels.items():
        measured = without_prefix(pd.read_parquet(f"{save}-{compartment}.parquet"))
        blocks = []
        for call in calls:
            with np.load(f"{save}-{call}-{compartment}.npz") as found:
                blocks.append(pd.DataFrame(found["values"], measured.index, found["columns"]))
        expected = pd.concat(blocks, axis=1)

        def equal_maximum(label, channel, *positions, plane=plane):
            pixels = [(int(y), int(x)) for x, y in positions]
            values = {image[CHANNELS.index(channel)][pixel] for pixel in pixels}
            return len(values) == 1 and {plane[pixel] for pixel in pixels} == {label}

        tied_circle = functools.cache(lambda label, plane=plane: count_on_circle(np.argwhere(plane == label)) > 3)
        ties = Ties(equal_maximum, {}, tied_centers(plane), tied_circle)
        for feature, verdict in compare(measured, expected, ties).items():
            shares.setdefault(feature, Share()).add(*verdict)
        unpaired |= set(measured) ^ set(expected)
    return shares, {feature for feature in unpaired if not re.fullmatch(UNPAIRED, feature)}


def tied_centers(labels):
    """Labels with several pixels that are equally far from the edge (where the image ends is no edge)."""
    from scipy import ndimage

    tied = set()
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        box = slice(max(rows.start - 1, 0), rows.stop + 1), slice(max(columns.start - 1, 0), columns.stop + 1)
        distance = ndimage.distance_transform_edt(labels[box] == label)
        if (distance >= distance.max() * (1 - 1e-12)).sum() > 1:
            tied.add(label)
    return tied


def count_on_circle(pixels):
    """How many of the pixels lie on their minimum enclosing circle, by trying all pairs and triples of corners."""
    from scipy.spatial import ConvexHull

    if np.linalg.matrix_rank(pixels - pixels[0]) < 2:
        return 2
    corners = pixels[ConvexHull(pixels).vertices].astype(float)
    a, b, c = np.moveaxis(corners[list(combinations(range(len(corners)), 3))], 1, 0)
    sides, squares = (b - c, c - a, a - b), [(corner**2).sum(axis=1) for corner in (a, b, c)]
    doubled = 2 * (a[:, 1] * sides[0][:, 0] + b[:, 1] * sides[1][:, 0] + c[:, 1] * sides[2][:, 0])
    center_x = sum(square * side[:, 0] for square, side in zip(squares, sides, strict=True)) / doubled
    center_y = -sum(square * side[:, 1] for square, side in zip(squares, sides, strict=True)) / doubled
    middles = corners[list(combinations(range(len(corners)), 2))].mean(axis=1)
    centers = np.vstack([np.column_stack([center_y, center_x]), middles])
    distances = np.linalg.norm(centers[:, None] - corners, axis=2)
    nearest = distances[distances.max(axis=1).argmin()]
    return int((nearest >= nearest.max() * (1 - 1e-9)).sum())


# --- the tables


def compare_speed(fields, families, reference, repeats, peer_repeats):
    """One core each, the two sides taking turns, a row after the other."""
    with Side("plateloom") as ours, Side("cp_measure") as peer:
        for cells, field in fields.items():
            warm_up = str(field.parent / "warm-up")
            found = peer.ask("call_peer", field=warm_up)["columns"]
            ours.ask("measure_ours", field=warm_up, families=families)
            print(
                f"| {cells} cells | columns | cp_measure [s] | Plateloom [s] | ratio | ratio, Cells alone "
                "| equal to cp_measure | equal to CellProfiler | gate |\n" + "|---" * 9 + "|",
                flush=True,
            )
            rows, paired = [], make_rows(families, found)
            if not paired:
                raise SystemExit(f"cp_measure has none of {', '.join(families)}: use --no-peer.")
            for names, calls in paired:
                rows += measure_row(ours, peer, field, names, calls, found, reference, repeats, peer_repeats)
            request = {"field": str(field), "families": [name for names, _ in paired for name in names]}
            whole, alone = [], []
            for _ in range(repeats):
                whole.append(ours.ask("measure_ours", **request)["cpu"])
                alone.append(ours.ask("measure_ours", **request, compartments=["Cells"])["cpu"])
            print_totals(rows, statistics.median(whole), statistics.median(alone))
    for columns, reason in DEPARTURES.items():
        print(f"- `{columns.rstrip('_')}` of cp_measure is not CellProfiler's: {reason}.")
    print()
    if left := [name for name in families if name not in request["families"]]:
        print(f"Not in cp_measure, not counted: {', '.join(left)}.\n")


def make_rows(families, found):
    """Join families and calls of cp_measure that share columns: list of (families, calls), without those that share none."""
    from plateloom.features import feature_columns

    rows = []
    for family in families:
        listed = feature_columns("Cells", CHANNELS, families=[family])
        listed = {column.removeprefix("Cells_") for column in listed}
        row = [family], [call for call, columns in found.items() if listed & set(columns)]
        if not row[1]:
            continue
        for other in [other for other in rows if set(other[1]) & set(row[1])]:
            rows.remove(other)
            row = other[0] + row[0], [call for call in found if call in other[1] + row[1]]
        rows.append(row)
    return rows


class Row:
    """A row of the table; seconds are of all compartments and of Cells alone.

    Parameters
    ----------
    name : str
        In the table.
    columns : int
        Columns that both sides give.
    theirs, ours : tuple of float
        Seconds.
    passed : bool
        Whether a ratio may be printed.
    reasons : sequence of str
        The last three cells.
    """

    def __init__(self, name, columns, theirs, ours, passed, reasons=("", "", "")):
        self.name, self.columns, self.theirs, self.ours = name, columns, theirs, ours
        self.passed, self.reasons, self.uncounted = passed, reasons, 0.0

    def without(self, part, name):
        """The same without a part of it."""
        theirs, ours = (
            [whole - less for whole, less in zip(*seconds, strict=True)]
            for seconds in ((self.theirs, part.theirs), (self.ours, part.ours))
        )
        return Row(name, self.columns - part.columns, theirs, ours, self.passed)

    def print(self):
        """Print; no ratio unless the values agree."""
        ratios = [f"{t / o:.1f}" if self.passed and o > 0 else "–" for t, o in zip(self.theirs, self.ours, strict=True)]
        cells = [self.name, self.columns or "–", f"{self.theirs[0]:.2f}", f"{self.ours[0]:.3f}", *ratios, *self.reasons]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def measure_row(ours, peer, field, families, calls, found, reference, repeats, peer_repeats):
    """Measure, compare and print one row, and below it its share of Costes; returns these rows."""
    save = str(field / "-".join(families))
    whole, alone, theirs, costes, costes_alone = [], [], [], [], []
    for turn in range(max(repeats, peer_repeats)):
        if turn < repeats:
            request = {"field": str(field), "families": families}
            whole.append(ours.ask("measure_ours", **request, save=save)["cpu"])
            alone.append(ours.ask("measure_ours", **request, compartments=["Cells"])["cpu"])
            if "costes" in calls:
                costes.append(ours.ask("time_costes", field=str(field)))
                costes_alone.append(ours.ask("time_costes", field=str(field), compartments=["Cells"]))
        if turn < peer_repeats:
            theirs.append(peer.ask("call_peer", field=str(field), calls=calls, save=save)["seconds"])

    def median(calls):
        return [
            statistics.median(
                sum(one[call][compartment] for call in calls for compartment in compartments) for one in theirs
            )
            for compartments in (COMPARTMENTS, ["Cells"])
        ]

    own = [statistics.median(whole), statistics.median(alone)]
    columns = sorted({column for call in calls for column in found[call] if not re.fullmatch(UNPAIRED, column)})
    shares, unpaired = compare_with_peer(field, save, calls)
    count = len(COMPARTMENTS) * len(columns)
    rows = [Row(", ".join(families), count, median(calls), own, *judge(shares, unpaired, columns, reference))]
    if costes:
        columns = [column for column in columns if column.startswith("Correlation_Costes_")]
        own = [statistics.median(costes), statistics.median(costes_alone)]
        verdict = judge(shares, unpaired & set(columns), columns, reference)
        rows.append(Row(COSTES, len(COMPARTMENTS) * len(columns), median(["costes"]), own, *verdict))
        rows.append(rows[0].without(rows[1], REST))
        rows[0].uncounted = median(["pearson", "costes"])[0]
    for row in rows:
        row.print()
    return rows


def judge(shares, unpaired, columns, reference):
    """Whether a ratio may be printed, and the three cells that say why."""
    departing = re.compile("|".join(DEPARTURES))
    near, against, forgiven = Share(), {}, {}
    for column in columns:
        if column in shares and not departing.match(column):
            near.join(shares[column])
    measurements = {tuple(column.split("_")[:2]) for column in columns}
    for column, by_field in reference.items():
        if tuple(column.split("_")[:2]) in measurements:
            for name, share in by_field.items():
                against.setdefault(name, Share()).join(share)
                forgiven.setdefault(name, Share()).join(share.forgive(column))
    far = [share.agreed >= NEEDED * share.defined for share in forgiven.values()]  # ties are left out on purpose
    gates = {"CellProfiler": bool(far) and all(far)}
    if not all(map(departing.match, columns)):
        gates["cp_measure"] = near.enough
    passed = not unpaired and all(gates.values())
    gate = " + ".join(sorted(gates, reverse=True))
    if unpaired:
        gate += f": {len(unpaired)} columns on one side only"
    elif not passed:
        gate += f": {' and '.join(name for name, good in gates.items() if not good)} failed"
    worst = min(against.values(), key=lambda share: share.agreed / max(share.defined, 1), default=Share())
    return passed, (near, worst, gate)


def print_totals(rows, whole, alone):
    """Everything in one call of ours, and everything but Costes."""
    parts = [row for row in rows if row.name not in (COSTES, REST)]
    theirs = [sum(seconds) for seconds in zip(*(row.theirs for row in parts), strict=True)]
    passed = all(row.passed for row in parts)
    near, worst = (
        Share(),
        min((row.reasons[1] for row in parts), key=lambda share: share.agreed / max(share.defined, 1)),
    )
    for row in parts:
        near.join(row.reasons[0])
    reasons = near, worst, "all of them"
    total = Row("**all, in one call**", sum(row.columns for row in parts), theirs, [whole, alone], passed, reasons)
    total.print()
    for costes in (row for row in rows if row.name == COSTES):
        total.without(costes, "**all but Costes**").print()
    if twice := sum(row.uncounted for row in parts):
        print(
            f"\ncp_measure's own `featurize` takes both orders of each pair for Pearson and Costes: {twice:.1f} s more."
        )
    print(flush=True)


def show_profile(fields, families, repeats):
    """Where our time goes: kernels compiled for the first time, loaded from the cache, and ready."""
    field = next(iter(fields.values()))
    with tempfile.TemporaryDirectory() as cache, Side("plateloom", NUMBA_CACHE_DIR=cache) as fresh:
        first = fresh.ask("profile_ours", field=str(field), families=families)
    cold, warm = [], {cells: [] for cells in fields}
    for _ in range(repeats):
        with Side("plateloom") as side:
            cold.append(side.ask("profile_ours", field=str(field), families=families))
            for cells, path in fields.items():
                side.ask("profile_ours", field=str(path), families=families)
                warm[cells].append(side.ask("profile_ours", field=str(path), families=families))
    print(f"| step [CPU s] | compiling | first field of a process | {' | '.join(f'{c} cells' for c in fields)} |")
    print("|---|---|---|" + "---|" * len(fields))
    median = {step: statistics.median(one[step] for one in cold) for step in first}
    ready = {c: {step: statistics.median(one[step] for one in found) for step in first} for c, found in warm.items()}
    for step in [*first, "sum"]:
        numbers = [first, median, *ready.values()]
        numbers = [sum(one.values()) if step == "sum" else one[step] for one in numbers]
        print(f"| {step} | {numbers[0]:.1f} | " + " | ".join(f"{number:.3f}" for number in numbers[1:]) + " |")
    print(flush=True)


def scale(fields, families, repeats, workers):
    """How much more two workers measure than one, and the memory of a worker.

    By the clock, which needs as many idle cores, and by CPU time, which shows only how the workers slow each other down.
    """
    print(
        f"| cells | fields/s, one worker | {workers} workers | ratio (expected: {0.9 * workers:.1f} or more) "
        "| ratio by CPU time |\n" + "|---" * 5 + "|"
    )
    memory = {}
    for cells, field in fields.items():
        request = {"field": str(field), "families": families}
        with Side("plateloom") as lonely:
            memory[cells] = lonely.ask("use_memory", **request)
        one, many = [], []
        with contextlib.ExitStack() as stack:
            sides = [stack.enter_context(Side("plateloom")) for _ in range(workers)]
            for side in sides:
                side.ask("measure_ours", **request)
            for _ in range(repeats):
                one.append(sides[0].ask("measure_ours", **request, times=5))
                for side in sides:
                    side.start("measure_ours", **request, times=5)
                many += [side.answer() for side in sides]
        (wall, cpu), (walls, cpus) = (
            [statistics.median(x[k] for x in found) for k in ("wall", "cpu")] for found in (one, many)
        )
        ratio, by_cpu = workers * wall / walls, workers * cpu / cpus
        print(f"| {cells} | {1 / wall:.2f} | {workers / walls:.2f} | {ratio:.2f} | {by_cpu:.2f} |", flush=True)
    print("\n| memory of a worker [MB] | " + " | ".join(f"{cells} cells" for cells in memory) + " |")
    print("|---|" + "---|" * len(memory))
    rows = {
        "after the imports": lambda m: m["imported"],
        "with kernels, image and labels": lambda m: m["loaded"],
        "peak of a field above that": lambda m: m["first"] - m["loaded"],
        "the same after three fields": lambda m: m["third"] - m["loaded"],
        "the image": lambda m: m["image"],
    }
    for name, value in rows.items():
        print(f"| {name} | " + " | ".join(f"{value(found):.0f}" for found in memory.values()) + " |")
    print(f"\nLoad at the end: {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
