"""Areas under the ROC curve of the metrics of quality control, against the simulation's defects: `python benchmarks/quality.py`."""

import argparse

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from plateloom import simulation
from plateloom.quality import measure_plane
from plateloom.simulation import ScreenDesign, all_defects, all_fields, plate_map, render_field

DEFOCUS_UM = (1.5, 3.2, 5.0, 8.0, 15.0, 25.0, 40.0)
METRICS = {
    "saturated": {"saturated_fraction": 1},
    "empty": {"contrast": -1},
    "debris": {"p999": 1, "artefact_fraction": 1},
}
FOCUS = {"focus_laplacian": -1, "focus_detail": -1, "focus_slope": -1}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    rows = []
    for seed in range(parser.parse_args().seeds):
        design = ScreenDesign(
            plates=("P1",),
            rows=6,
            columns=8,
            size_px=256,
            fields=1,
            cells_per_field=12.0,
            defects={"blurred": 6, "debris": 6, "saturated": 5, "empty": 5},
            seed=seed,
        )
        defects = all_defects(design)
        empty = {row["well"] for row in plate_map(design, "P1") if row["control"] == "empty"}
        good = []
        for key in all_fields(design):
            kind = "empty" if key[1] in empty else defects.get(key, ("good",))[0]
            if kind == "good":
                good += planes(design, key)
            if kind == "blurred":
                for um in DEFOCUS_UM:
                    simulation._DEFOCUS_UM = (um, um)
                    rows += [one | {"seed": seed, "kind": f"blurred, {um:g} µm"} for one in planes(design, key)]
            elif kind != "good":
                rows += [one | {"seed": seed, "kind": kind} for one in planes(design, key)]
        rows += [one | {"seed": seed, "kind": "good"} for one in good]
    table = pd.DataFrame(rows)
    print("| defect | metric | AUC, lowest channel and screen to highest |\n|---|---|---|")
    for kind in [f"blurred, {um:g} µm" for um in DEFOCUS_UM] + list(METRICS):
        for metric, sign in METRICS.get(kind, FOCUS).items():
            found = [
                area(sign * one[metric].to_numpy(), (one["kind"] == kind).to_numpy())
                for _, one in table[table["kind"].isin(["good", kind])].groupby(["seed", "Channel"])
            ]
            print(f"| {kind} | `{metric}` | {min(found):.2f} to {max(found):.2f} |")


def planes(design, key):
    """Metrics of a field's channels."""
    image = render_field(design, *key).image
    return [{"Channel": name} | measure_plane(plane) for name, plane in zip(design.channel_names, image, strict=True)]


def area(scores, positive):
    """Probability that a defective field scores above a good one, by ranks."""
    count = positive.sum()
    return (rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * np.count_nonzero(~positive))


if __name__ == "__main__":
    main()
