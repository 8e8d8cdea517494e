"""Maps beside umap-learn: `python benchmarks/maps.py [--large] [--write]`.

Tables of simulated cells: 200 features that follow from 10 hidden numbers, 12 clusters of unequal size and width, a third
of them drawn out towards the next, and noise. All methods get the same 50 principal components. Each run is a process of its own with
one thread, methods take turns; seconds are of the CPU, which other programs do not lengthen. PaCMAP is measured where it is
installed, here or in an environment of its own: `python -m venv build/pacmap` and `build/pacmap/bin/pip install pacmap` (with
the packages of Plateloom). Prints a section in Markdown; `--write` puts it into docs/benchmarks.md.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.page import write_section  # noqa: E402

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
OWN = ROOT / "build" / "pacmap" / "bin" / "python"
PEER, OURS = "umap-learn, seeded", "umap"
NEIGHBORS = 15
FIRST = 20_000  # rows of the first call of a process, which compiles
JUDGED, TRUSTED, PAIRS = 5000, 3000, 50_000  # rows and pairs that are looked at, drawn by chance


def main():
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="Also 100,000 cells: umap-learn and ours.")
    parser.add_argument("--all", action="store_true", help="The other methods at 100,000 cells, too.")
    parser.add_argument("--turns", type=int, default=3, help="Runs of each method at 20,000 cells; of more cells one.")
    parser.add_argument("--write", action="store_true", help="Put the section into docs/benchmarks.md.")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)  # method, components, result: one process
    options = parser.parse_args()
    if options.run:
        run(*options.run)
        return
    pacmap = OWN if OWN.exists() else sys.executable if find_spec("pacmap") else None
    methods = [PEER, OURS, "umap, from the spectrum", "densmap", *["pacmap"] * bool(pacmap)]
    lines = [
        "## Maps: `python benchmarks/maps.py --large`",
        "",
        f"One thread, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}; "
        + ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "numba", "umap-learn", "pynndescent"))
        + ". Simulated cells (12 clusters, some drawn out), 50 principal components.",
        "",
        f"Neighbors: share of the {NEIGHBORS} nearest cells that are among the {NEIGHBORS} nearest on the map ({JUDGED:,} cells looked "
        f"at); trustworthiness as scikit-learn has it ({TRUSTED:,} cells); distances: rank correlation of the distances of "
        f"{PAIRS:,} pairs. The first call of a process compiles, and is what a job pays; ours keeps what it has compiled on the disk.",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        lines += measure(Path(folder), 20_000, options.turns, methods, pacmap)
        if options.large:
            lines += measure(Path(folder), 100_000, 1, methods[: 5 if options.all else 2], pacmap)
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if options.write:
        write_section(__file__, text)


def simulate(count, seed=0):
    """Features of cells, float64 (n, 200)."""
    random = np.random.default_rng(seed)
    centers = random.normal(0, 2.2, (12, 10))
    kind = random.choice(12, count, p=random.dirichlet(np.full(12, 2.0)))
    hidden = centers[kind] + random.normal(size=(count, 10)) * random.uniform(0.4, 1.2, (12, 10))[kind]
    way = np.where((kind % 3 == 0) & (random.random(count) < 0.35), random.random(count), 0)
    hidden += way[:, None] * (centers[(kind + 1) % 12] - centers[kind])
    bent = np.tanh(hidden @ random.normal(0, 10**-0.5, (10, 64))) @ random.normal(0, 1 / 8, (64, 200))
    straight = hidden @ random.normal(0, 10**-0.5, (10, 200))
    return bent + 0.6 * straight + random.normal(0, 0.35, (count, 200))


def measure(folder, count, turns, methods, pacmap):
    """Lines of the table of one number of cells."""
    from plateloom.latent import pca
    from plateloom.latent.maps import fit_map

    table, names = simulate(count), [f"Cells_F{i}" for i in range(200)]
    start = time.process_time()
    fitted = fit_map(table, features=names, method="pca", params=pca.Params(n_components=50))
    components = fitted.project(table, features=names)
    seconds = time.process_time() - start
    np.save(folder / "components.npy", components)
    runs = {method: [] for method in methods}
    for turn in range(turns):
        for method in methods:
            python = pacmap if method == "pacmap" else sys.executable
            runs[method].append(start_run(python, method, folder, threads=1))
            print(
                f"{count:,} cells, turn {turn + 1}: {method} {runs[method][-1]['seconds']:.1f} s",
                file=sys.stderr,
                flush=True,
            )
    again = start_run(sys.executable, OURS, folder, threads=2)
    judge = Judge(components)
    lines = [
        f"{count:,} cells; {'median of ' + str(turns) if turns > 1 else 'one run'}.",
        "",
        "| map | neighbors | trustworthiness | distances | seconds | umap-learn's / this | seconds, first call"
        + (f" ({FIRST:,} cells)" if count > FIRST else "")
        + " |",
        "|---|---|---|---|---|---|---|",
        f"| pca (from {table.shape[1]} features) | {judge(components[:, :2])} | {seconds:.1f} | | |",
    ]
    middle = {method: statistics.median(one["seconds"] for one in runs[method]) for method in methods}
    for method in methods:
        first = statistics.median(one["first"] for one in runs[method])
        name = f"**{method}** (ours)" if method == OURS else method
        told = f"{middle[PEER] / middle[method]:.1f}" if "spectrum" not in method else ""
        lines.append(
            f"| {name} | {judge(runs[method][0]['places'])} | {middle[method]:.1f} | {told} | {first:.1f} |"
            if told
            else f"| {name} | {judge(runs[method][0]['places'])} | | | |"
        )
    same = {one["bytes"] for one in [*runs[OURS], again]}
    lines += [
        "",
        f"Ours in {turns + 1} processes, one of them with two threads: "
        + ("the same bytes." if len(same) == 1 else f"{len(same)} different results."),
        "",
    ]
    return lines


def start_run(python, method, folder, *, threads):
    """Run a method in a process of its own: seconds, and where the cells lie."""
    command = [str(python), __file__, "--run", method, str(folder / "components.npy"), str(folder / "result")]
    subprocess.run(
        command, check=True, env=os.environ | dict.fromkeys(THREADS, str(threads)), stdout=subprocess.DEVNULL
    )
    found = json.loads((folder / "result.json").read_text())
    places = np.load(folder / "result.npy")
    return found | {"places": places, "bytes": hashlib.sha256(places.tobytes()).hexdigest()}


def run(method, given, result):
    """The work of one process: a first call, then one that is measured."""
    components = np.load(given)
    warnings.simplefilter("ignore")
    start = time.process_time()
    embed = method_of(method)
    places = embed(components[:FIRST])
    first = time.process_time() - start
    start = time.process_time()
    places = embed(components)
    seconds = time.process_time() - start
    np.save(f"{result}.npy", np.ascontiguousarray(places, np.float32))
    Path(f"{result}.json").write_text(json.dumps({"first": first, "seconds": seconds}))


def method_of(name):
    """A function from components to places; what it needs is imported."""
    if name.startswith("umap-learn"):
        import umap

        return lambda rows: umap.UMAP(n_neighbors=NEIGHBORS, random_state=0).fit_transform(rows)
    from plateloom.latent import MAPS
    from plateloom.registry import load_method

    if name.endswith("spectrum"):
        return start_from_spectrum
    module = load_method(MAPS, name, "map")
    return lambda rows: module.embed(rows, module.Params())[0]


def start_from_spectrum(rows):
    """Our layout from umap-learn's start."""
    from umap.spectral import spectral_layout

    from plateloom.latent.layout import lay_out
    from plateloom.latent.neighbors import find_neighbors, fuzzy_graph
    from plateloom.latent.umap import SIDE

    graph = fuzzy_graph(*find_neighbors(rows, NEIGHBORS - 1))
    start = spectral_layout(rows, graph, 2, np.random.RandomState(0))
    start -= start.min(axis=0)
    return lay_out(graph, (SIDE * start / start.max(axis=0)).astype(np.float32))


class Judge:
    """How well a map keeps what the components hold, as cells of the table: neighbors, trustworthiness, distances."""

    def __init__(self, components):
        random = np.random.default_rng(1)
        self.components = components
        self.rows = random.choice(len(components), JUDGED, replace=False)
        self.pairs = random.integers(0, len(components), (2, PAIRS))
        self.near = self.neighbors(components)

    def neighbors(self, places):
        """Nearest other rows of the rows looked at."""
        from sklearn.neighbors import NearestNeighbors

        index = NearestNeighbors(n_neighbors=NEIGHBORS + 1, algorithm="brute").fit(places)
        found = index.kneighbors(places[self.rows], return_distance=False)
        return [one[one != row][:NEIGHBORS] for row, one in zip(self.rows, found, strict=True)]

    def __call__(self, places):
        """Three cells of the table."""
        from scipy.stats import spearmanr
        from sklearn.manifold import trustworthiness

        pairs = zip(self.near, self.neighbors(places), strict=True)
        kept = np.mean([len(np.intersect1d(*pair)) for pair in pairs]) / NEIGHBORS
        some = self.rows[:TRUSTED]
        trust = trustworthiness(self.components[some], places[some], n_neighbors=NEIGHBORS)
        lengths = [np.linalg.norm(x[self.pairs[0]] - x[self.pairs[1]], axis=1) for x in (self.components, places)]
        return f"{kept:.3f} | {trust:.4f} | {spearmanr(*lengths).statistic:.2f}"


if __name__ == "__main__":
    main()
