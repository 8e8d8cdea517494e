"""Features side by side with CellProfiler 4.2.8 itself, on the same pixels: `python benchmarks/features_cellprofiler.py`.

`make cellprofiler` first: the peer has an environment of its own, with Python 3.8. Both sides run in processes of their own
with one thread, take turns after a warm-up, and are timed by the CPU. CellProfiler's modules run unchanged, on pixels in double
precision, without reading files and writing tables. Prints a table in Markdown; a ratio only where both give the same columns, and
the values agree in this very run.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import features
from features import CHANNELS, COMPARTMENTS, ROOT, Share, Side, compare_with_peer, make_field

PEER = ROOT / "build" / "cellprofiler" / "bin" / "python"
SCRIPT = Path(__file__).with_name("features_cellprofiler_peer.py")

# Families that CellProfiler's modules share among them: ours, and CellProfiler's.
ROWS = (
    (["AreaShape", "RadialDistribution", "Zernike"], ["AreaShape", "RadialDistribution"]),
    (["Location", "Intensity"], ["Intensity"]),
    (["Texture"], ["Texture"]),
    (["Correlation"], ["Correlation"]),
    (["Neighbors"], ["Neighbors"]),
    (["Granularity"], ["Granularity"]),
)


class Peer(Side):
    """CellProfiler's process."""

    def __init__(self):
        environment = {**os.environ, **features.ONE_THREAD}
        environment.pop("PYTHONPATH", None)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([PEER, SCRIPT], text=True, env=environment, **pipes)

    def start(self, task, **request):
        """Send a request; there is one task only."""
        print(json.dumps(request | {"channels": CHANNELS}), file=self._process.stdin, flush=True)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[150, 600], help="Cells of a field of 1080².")
    parser.add_argument("--repeats", type=int, default=3, help="Each number is the median of so many.")
    options = parser.parse_args()
    if not PEER.exists():
        raise SystemExit(f"No {PEER}: run 'make cellprofiler' first.")
    sys.path.insert(0, str(ROOT))
    names = ("CellProfiler", "numpy", "scipy", "scikit-image", "centrosome", "mahotas")
    code = f"from importlib.metadata import version as v; print(', '.join(n + ' ' + v(n) for n in {names}))"
    found = subprocess.run([PEER, "-c", code], capture_output=True, text=True, check=True)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; peer: Python 3.8, {found.stdout.strip()}.\n")
    with tempfile.TemporaryDirectory() as folder, Side("plateloom") as ours, Peer() as peer:
        for cells in options.cells:
            compare(make_field(Path(folder), cells), cells, ours, peer, options.repeats)


def compare(field, cells, ours, peer, repeats):
    """Both sides in turns on one field; prints a table."""
    warm_up, save = str(field.parent / "warm-up"), str(field / "all")
    every = [family for families, _ in ROWS for family in families]
    ours.ask("measure_ours", field=warm_up, families=every)
    peer.ask("measure", field=warm_up)
    alone, whole, theirs = {}, [], []
    for _ in range(repeats):
        theirs.append(peer.ask("measure", field=str(field), save=save))
        whole.append(ours.ask("measure_ours", field=str(field), families=every, save=save)["cpu"])
        for families, _modules in ROWS:
            spent = ours.ask("measure_ours", field=str(field), families=families)["cpu"]
            alone.setdefault(families[0], []).append(spent)
    shares, unpaired = compare_with_peer(field, save, ["CellProfiler"])
    print(f"| {cells} cells | columns | CellProfiler [s] | Plateloom [s] | ratio | equal |\n" + "|---" * 6 + "|")
    rows, passed = [], True
    for families, modules in ROWS:
        pattern = re.compile("|".join(_prefix(family) for family in families))
        share, columns = Share(), [column for column in shares if pattern.match(column)]
        for column in columns:
            share.join(shares[column])
        strange = sorted(column for column in unpaired if pattern.match(column))
        # Of several pixels equally far from the edge an unstable sort makes one the center of an object: left out where we differ.
        good = share.agreed >= features.NEEDED * share.defined >= 0.95 * features.NEEDED * share.all and not strange
        passed &= good
        spent = statistics.median(sum(one[module] for module in modules) for one in theirs)
        rows.append((", ".join(families), len(columns), spent, statistics.median(alone[families[0]]), good, share))
        if strange:
            print(f"<!-- on one side only: {', '.join(strange[:8])} ({len(strange)}) -->")
    total = (
        sum(row[1] for row in rows),
        statistics.median(sum(one.values()) for one in theirs),
        statistics.median(whole),
    )
    rows.append(("**all, in one call**", *total, passed, ""))
    for name, columns, spent, own, good, share in rows:
        ratio = f"{spent / own:.1f}" if good else "–"
        print(f"| {name} | {len(COMPARTMENTS) * columns} | {spent:.2f} | {own:.3f} | {ratio} | {share} |")
    print(flush=True)


def _prefix(family):
    """How the columns of a family begin."""
    return {"Zernike": r"(AreaShape|RadialDistribution)_Zernike"}.get(family, family + "_")


if __name__ == "__main__":
    main()
