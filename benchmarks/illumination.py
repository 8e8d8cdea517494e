"""How near flat-fields come to the light of simulated plates: `python benchmarks/illumination.py [--write]`."""

import argparse

import numpy as np
from page import write_section

from plateloom.illumination import METHODS
from plateloom.registry import load_method
from plateloom.simulation import _CAMERA_OFFSET, ScreenDesign, all_fields, render_field

SEEDS, COUNTS, LEARNING = (11, 12, 13, 14), (8, 16, 64), ("median", "lowrank")
DEFECTS = {"debris": 2, "saturated": 1, "blurred": 1}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="Put the table into docs/benchmarks.md.")
    options = parser.parse_args()
    plates = [render(seed) for seed in SEEDS]
    flat = [rms(1.0, light) for _, lights, _ in plates for light in lights]
    lines = [
        f"Deviation from the simulation's true light over the image, RMS [%], of the channels of {len(plates)} plates with "
        f"{max(COUNTS)} fields (uncorrected {100 * min(flat):.1f} to {100 * max(flat):.1f}). The gate refuses a flat-field where two "
        "halves of the fields disagree by more than 5 %.",
        "",
        f"| method | camera's offset | {' | '.join(f'{count} fields' for count in COUNTS)} |",
        f"|---|---|{'---|' * len(COUNTS)}",
    ]
    for name in LEARNING:
        module = load_method(METHODS, name, "illumination method")
        for known in (True, False):
            cells = [describe(module, plates, count, known) for count in COUNTS]
            lines.append(f"| {name} | {'given' if known else 'estimated'} | {' | '.join(cells)} |")
    print("\n".join(lines))
    if options.write:
        write_section(__file__, "\n".join(lines))


def render(seed):
    """Planes (C, K, Y, X) of a plate's fields, the true light (C, Y, X), and the camera's offset."""
    design = ScreenDesign(plates=("P1",), rows=4, columns=8, seed=seed, defects=DEFECTS, size_px=256, pixel_size_um=1.3)
    fields = [render_field(design, *key) for key in all_fields(design)]
    return np.array([one.image for one in fields]).swapaxes(0, 1), fields[0].flatfield, _CAMERA_OFFSET


def describe(module, plates, count, known):
    """Lowest and highest deviation, and how many estimates were refused."""
    found, refused = [], 0
    for planes, lights, offset in plates:
        params = module.Params(camera_offset=offset if known else None)
        for channel, light in zip(planes, lights, strict=True):
            some = channel[:: len(channel) // count][:count]
            flat, reason = module.estimate(
                np.array([module.shrink(plane, params) for plane in some]), light.shape, params
            )
            refused += bool(reason)
            found += [] if reason else [rms(flat, light)]
    text = f"{100 * min(found):.1f}–{100 * max(found):.1f}" if found else ""
    return ", ".join(filter(None, [text, f"{refused} of {refused + len(found)} refused" if refused else ""]))


def rms(flat, light):
    return float(np.sqrt(np.mean((flat - light) ** 2)))


if __name__ == "__main__":
    main()
