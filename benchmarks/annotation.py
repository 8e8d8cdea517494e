"""How many labels active learning saves: `python benchmarks/annotation.py [--write]`.

Simulates a screen, segments and measures it, and labels its cells by the simulation's truth: once in the batches that
`plateloom annotate` proposes, once in batches drawn by chance. Counted are the labels until the balanced accuracy on wells that are
never labeled reaches 95 % of what all labels of the other wells give. Prints a section in Markdown; `--write` puts it into
docs/benchmarks.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.page import write_section  # noqa: E402

SHARE = 0.95
SHOWN = (20, 40, 60, 100, 200, 300)


def main():
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screen", type=Path, help="A simulated screen that has run; default: one is made.")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=20, help="Cells in a round.")
    parser.add_argument("--labels", type=int, default=400, help="Labels at most.")
    parser.add_argument("--method", default="logistic")
    parser.add_argument("--write", action="store_true", help="Put the section into docs/benchmarks.md.")
    options = parser.parse_args()
    if options.screen:
        cells = read_cells(options.screen)
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "screen"
            make_screen(folder)
            cells = read_cells(folder)
    found = []
    for seed in range(options.seeds):
        found.append(follow(cells, seed, options))
        print(f"seed {seed} of {options.seeds}", file=sys.stderr, flush=True)
    section = describe(cells, found, options)
    print(section)
    if options.write:
        write_section(__file__, section)


def make_screen(folder):
    """Simulate three plates of 32 wells and run them until the cells are measured."""
    from plateloom.cli.simulate import write_screen
    from plateloom.simulation import ScreenDesign

    design = ScreenDesign(
        plates=("plate1", "plate2", "plate3"), rows=4, columns=8, fields=1, cells_per_field=45.0, seed=5
    )
    write_screen(folder, design)
    command = [
        sys.executable,
        "-c",
        "from plateloom.cli import main; main()",
        "run",
        str(folder),
        "--until",
        "features",
    ]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def read_cells(folder):
    """Features, true classes, plates and wells of the cells whose nucleus is one of the simulation's."""
    import pandas as pd

    from plateloom.classification.identity import match_cells
    from plateloom.profiling import feature_columns

    truth = pd.read_parquet(folder / "truth" / "cells.parquet")
    truth = {key: rows for key, rows in truth.groupby(["Metadata_Plate", "Metadata_Well", "Metadata_Field"])}
    tables = []
    for path in sorted(folder.glob("results/plates/*/features/*.parquet")):
        for key, table in pd.read_parquet(path).groupby(["Metadata_Plate", "Metadata_Well", "Metadata_Field"]):
            if key not in truth:
                continue
            centers = table[["Nuclei_Location_Center_Y", "Nuclei_Location_Center_X"]].to_numpy()
            radii = np.sqrt(table["Nuclei_AreaShape_Area"].to_numpy() / np.pi)
            found = match_cells(truth[key][["Center_Y", "Center_X"]].to_numpy(), centers, radii)
            known = found >= 0
            tables.append(table.iloc[found[known]].assign(Class=truth[key]["Class"].to_numpy()[known]))
    cells = pd.concat(tables, ignore_index=True)
    return {
        "X": cells[feature_columns(cells.drop(columns="Class"))].to_numpy(float),
        "y": cells["Class"].to_numpy(str),
        "plate": cells["Metadata_Plate"].to_numpy(str),
        "well": cells["Metadata_Well"].to_numpy(str),
    }


def follow(cells, seed, options):
    """Learning curves of both ways on one split of the wells: dict with `final`, `active`, `random`."""
    names = np.array([f"{p}/{w}" for p, w in zip(cells["plate"], cells["well"], strict=True)])
    wells = np.random.default_rng(seed).permutation(np.unique(names))
    test = np.isin(names, wells[: len(wells) // 2])
    pool = np.flatnonzero(~test)
    final = accuracy(cells, pool, test, options.method)
    return {"final": final} | {way: grow(cells, pool, test, seed, way, options) for way in ("active", "random")}


def grow(cells, pool, test, seed, way, options):
    """Balanced accuracy after each batch."""
    from plateloom.classification.querying import choose_cells

    labeled, curve = np.zeros(0, int), []
    while len(labeled) < min(options.labels, len(pool)):
        free = np.setdiff1d(pool, labeled)
        if way == "random":
            batch = np.random.default_rng((seed, len(labeled))).choice(free, options.batch, replace=False)
        else:
            model = fit(cells, labeled, options.method) if len(np.unique(cells["y"][labeled])) > 1 else None
            chosen, _ = choose_cells(
                cells["X"][free],
                plates=cells["plate"][free],
                wells=cells["well"][free],
                count=options.batch,
                probability=None if model is None else model.predict_proba(cells["X"][free]),
                seed=1000 * seed + len(labeled),
            )
            batch = free[chosen]
        labeled = np.concatenate([labeled, batch])
        curve.append(accuracy(cells, labeled, test, options.method))
    return curve


def fit(cells, chosen, method):
    """A pipeline with the method's own settings."""
    from plateloom.classification import METHODS
    from plateloom.classification.fitting import fit_quietly, make_pipeline
    from plateloom.registry import load_method

    module = load_method(METHODS, method, "classification method")
    return fit_quietly(make_pipeline(module.build(module.Params())), cells["X"][chosen], cells["y"][chosen])[0]


def accuracy(cells, chosen, test, method):
    """Balanced accuracy on the test wells of a classifier that has learned from the cells chosen."""
    truth = cells["y"][test]
    if len(np.unique(cells["y"][chosen])) < 2:
        guessed = np.full(len(truth), cells["y"][chosen][0])
    else:
        guessed = fit(cells, chosen, method).predict(cells["X"][test])
    return float(np.mean([np.mean(guessed[truth == name] == name) for name in np.unique(truth)]))


def needed(curve, final, options):
    """Labels from which on two rounds in a row have reached the share; more than all where none has."""
    reached = np.array(curve) >= SHARE * final
    steady = np.flatnonzero(reached[:-1] & reached[1:])
    return (steady[0] + 1) * options.batch if len(steady) else options.labels + options.batch


def describe(cells, found, options):
    """The section of docs/benchmarks.md."""
    names, counts = np.unique(cells["y"], return_counts=True)
    share = ", ".join(f"{count / len(cells['y']):.0%} {name}" for name, count in zip(names, counts, strict=True))
    labels = {way: np.array([needed(one[way], one["final"], options) for one in found]) for way in ("active", "random")}
    final = np.mean([one["final"] for one in found])
    better, same = (labels["active"] < labels["random"]).sum(), (labels["active"] == labels["random"]).sum()
    saved = 1 - labels["active"].sum() / labels["random"].sum()
    lines = [
        "## Active learning: `python benchmarks/annotation.py`",
        "",
        f"A simulated screen of {len(np.unique(cells['plate']))} plates, {len(cells['y']):,} cells ({share}), {options.method}, "
        f"{options.batch} labels a round, {len(found)} seeds:",
        f"each deals half of the wells to the test. With all labels of the other half the balanced accuracy is {final:.3f}. "
        f"Labels needed to reach {SHARE:.0%} of that (two rounds in a row):",
        f"median {np.median(labels['active']):.0f} as `plateloom annotate` proposes them, {np.median(labels['random']):.0f} by "
        f"chance; at least {saved:.0%} fewer in the sum of all seeds. Fewer in {better} of {len(found)} seeds, as many in {same}.",
        "",
        f"| seed | {' | '.join(str(i) for i in range(len(found)))} |",
        f"|---|{'---|' * len(found)}",
    ]
    for way, name in (("active", "proposed"), ("random", "by chance")):
        told = [f"{n:.0f}" if n <= options.labels else f"> {options.labels}" for n in labels[way]]
        lines.append(f"| labels, {name} | {' | '.join(told)} |")
    shown = [n for n in SHOWN if n % options.batch == 0 and n <= options.labels]
    lines += ["", f"| balanced accuracy after | {' | '.join(map(str, shown))} labels |", f"|---|{'---|' * len(shown)}"]
    for way, name in (("active", "proposed"), ("random", "by chance")):
        curves = np.array([one[way] for one in found])
        cut = [curves[:, n // options.batch - 1] for n in shown]
        lines.append(f"| {name}, mean | {' | '.join(f'{one.mean():.3f}' for one in cut)} |")
        lines.append(f"| {name}, worst seed | {' | '.join(f'{one.min():.3f}' for one in cut)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
