"""Crops of cells: how fast they are drawn, encoded and read again, and whether memory grows with them: `python benchmarks/crops.py`.

Simulates a plate, segments it and trains a small autoencoder through Snakemake; then does in processes of their own what the
workers of training and encoding do. With ``--write`` the section of docs/benchmarks.md is replaced.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.page import write_section  # noqa: E402

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ZARR_THREADING__MAX_WORKERS"):
    os.environ[name] = "1"  # as a job has them

DRAWN, ENCODED = 100_000, 20_000  # cells
IN_FILES = (10_000, 100_000, 1_000_000)
SMALL = (1, 16, 16)  # crops of the largest set: 0.5 GB
USUAL, READ = (5, 64, 64), 8192  # crops whose reading is timed


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        name, *rest = asked.step
        print(json.dumps(STEPS[name](*rest)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "screen"
        make_screen(folder)
        text = describe_plate(*(in_process(step, folder) for step in ("draw", "encode")))
        (folder / "crops").mkdir()
        text += describe_reading(in_process("read", folder))
        text += describe_memory(
            {(count, kind): in_process("epoch", folder, count, kind) for count, kind in asked_sets()}
        )
    print(text)
    if asked.write:
        write_section(__file__, text)


def asked_sets():
    """Numbers of crops, and how they are read: from files, and for the larger ones from a memory map."""
    return [(count, "files") for count in IN_FILES] + [(count, "map") for count in IN_FILES[1:]]


def in_process(step, folder, *rest):
    """What a step says, done in a process of its own in the screen's folder; its memory is its own, too."""
    command = [sys.executable, __file__, "--step", step, *map(str, rest)]
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak_mb():
    """Largest resident memory of this process so far [MB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_screen(folder):
    """A segmented plate of 8 wells with 4 fields, and its autoencoder."""
    from plateloom.cli.simulate import write_screen
    from plateloom.simulation import ScreenDesign

    options = {"rows": 2, "columns": 4, "fields": 4, "size_px": 1080, "cells_per_field": 350.0}
    write_screen(folder, ScreenDesign(plates=("P1",), **options))
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["latent"] = {"autoencoder": {"cells": 400, "parameters": {"epochs": 1}}}
    settings["classification"] = {}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    subprocess.run([*command, "--cores", "2", "--until", "train_autoencoder", "--quiet", "all"], check=True, cwd=ROOT)


def records():
    """Fingerprints of the plate's labels by well, of its flat-fields and of the model."""
    from plateloom.store.provenance import read_json

    base = Path("results/plates/P1/records")
    labels = read_json(base / "segmentation/part-0.json")["artefacts"]
    light = read_json(base / "illumination/part-0.json")["artefacts"]["illumination"]
    return labels, light, read_json("results/screen/models/autoencoder/model.json")


def draw():
    """Cut the crops of the plate's cells, wells over and over, and put them, normalized, where training reads them."""
    from plateloom.latent.crops import normalize_crops
    from plateloom.stages.latent import crop_well
    from plateloom.store.crops import CropShards, read_crops

    labels, light, card = records()
    shape = len(card["channels"]), 64, 64
    before, cells, cut, copied = peak_mb(), 0, 0.0, 0.0
    with tempfile.TemporaryDirectory(dir=".") as work, CropShards(f"{work}/shards", shape) as shards:
        turn = 0
        while cells < DRAWN:
            for well, made in labels.items():
                start = time.process_time()
                cells += crop_well("P1", well, made, [], light, DRAWN, card["crop_um"], 64, work)
                middle = time.process_time()
                path = Path(work, f"P1-{well}.crops")
                for crops in read_crops(path, shape):
                    shards.append(normalize_crops(crops, card["low"], card["high"]))
                path.unlink()
                cut, copied = cut + middle - start, copied + time.process_time() - middle
            turn += 1
            if turn == 1:
                first = peak_mb()
                of_plate = cells
    return {"cells": cells, "of_plate": of_plate, "cut": cut, "copied": copied, "mb": [before, first, peak_mb()]}


def encode():
    """Encode the plate's cells, field by field, over and over."""
    import torch

    from plateloom.stages.latent import encode_field, load_autoencoder

    torch.set_num_threads(1)
    labels, light, card = records()
    made = card["plateloom"]["fingerprint"]
    load_autoencoder(made, "cpu")
    before, cells, spent, first = peak_mb(), 0, 0.0, None
    while cells < ENCODED:
        for well, label in labels.items():
            for field in range(1, 5):
                start = time.process_time()
                cells += len(encode_field("P1", well, field, light, label, made, "cpu"))
                spent += time.process_time() - start
        first = first or peak_mb()
    return {"cells": cells, "spent": spent, "mb": [before, first, peak_mb()]}


def read():
    """Milliseconds a crop of usual size, of files that are not in memory: one by one at random, and in a row."""
    from plateloom.store.crops import CropShards

    with tempfile.TemporaryDirectory(dir=".") as work, CropShards(work, USUAL) as shards:
        block = np.random.default_rng(0).random((256, *USUAL), np.float32)
        for _ in range(READ // 256):
            shards.append(block)
        os.sync()

        def forget():
            for path in Path(work).iterdir():
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        order = np.random.default_rng(1).permutation(READ)
        batches = {
            "at random, cold": [np.sort(order[i : i + 32]) for i in range(0, READ, 32)],
            "in a row, cold": [slice(i, i + 256) for i in range(0, READ, 256)],
        }
        found = {}
        for name, chosen in (*batches.items(), ("at random, in memory", batches["at random, cold"])):
            if "cold" in name:
                forget()
            start = time.perf_counter()
            for one in chosen:
                shards[one]
            found[name] = 1000 * (time.perf_counter() - start) / READ
    return found


def epoch(count, kind):
    """Peak memory of filling a set of crops, and of one epoch of training that reads it."""
    import torch

    from plateloom.latent import autoencoder, network
    from plateloom.store.crops import CropShards

    torch.set_num_threads(1)
    count, random = int(count), np.random.default_rng(0)
    params = autoencoder.Params(out_px=16, latent_dim=2, width=1, epochs=1, batch_size=256)
    network.train(random.random((512, *SMALL), np.float32), params=params)
    before = peak_mb()
    with tempfile.TemporaryDirectory(dir="crops") as work:
        if kind == "files":
            crops = CropShards(work, SMALL)
            for start in range(0, count, 256):
                crops.append(random.random((min(256, count - start), *SMALL), np.float32))
        else:
            crops = np.lib.format.open_memmap(f"{work}/a.npy", mode="w+", dtype=np.float16, shape=(count, *SMALL))
            for start in range(0, count, 256):
                crops[start : start + 256] = random.random((min(256, count - start), *SMALL), np.float32)
        filled, start = peak_mb(), time.process_time()
        network.train(crops, params=params)
    return {"mb": [before, filled, peak_mb()], "seconds": time.process_time() - start}


STEPS = {"draw": draw, "encode": encode, "read": read, "epoch": epoch}


def describe_plate(drawn, encoded):
    """The page's part on a plate."""
    cells = drawn["cells"]
    rates = [cells / drawn["cut"], cells / drawn["copied"], encoded["cells"] / encoded["spent"]]
    return (
        "## Crops and latents: `python benchmarks/crops.py`\n\n"
        f"{cells:,} cells drawn and {encoded['cells']:,} encoded: those of a plate of 32 fields of 3 × 1080 × 1080 pixels ({drawn['of_plate']:,}), over "
        "and over; crops of 64 px, the default autoencoder, one thread, no GPU.\nSeconds of CPU; other programs were running.\n\n"
        "| step | cells a second | peak memory [MB]: before | one plate | all |\n|---|---|---|---|---|\n"
        f"| draw: read, correct, cut, write | {rates[0]:,.0f} | {' | '.join(f'{mb:.0f}' for mb in drawn['mb'])} |\n"
        f"| normalize, into the files that training reads | {rates[1]:,.0f} | (same process) | | |\n"
        f"| encode: read, correct, cut, normalize, network with its error | {rates[2]:,.0f} | "
        f"{' | '.join(f'{mb:.0f}' for mb in encoded['mb'])} |\n\n"
    )


def describe_reading(found):
    """The page's part on reading."""
    said = ", ".join(f"{name} {ms:.3f} ms" for name, ms in found.items())
    size = 2 * int(np.prod(USUAL)) / 1e3
    return f"Reading a crop of {' × '.join(map(str, USUAL))} ({size:.0f} kB) for training, from a local disk (wall time, other programs running): {said}.\n\n"


def describe_memory(found):
    """The page's part on memory."""
    text = (
        f"Peak memory [MB] of a process that fills a set of crops ({' × '.join(map(str, SMALL))}, half precision) and trains an epoch on it, in "
        "random order; read from files, as the stage does, and from a memory map instead.\n\n"
        "| crops | read from | before | filled | after an epoch | CPU s an epoch |\n|---|---|---|---|---|---|\n"
    )
    for (count, kind), said in found.items():
        text += f"| {count:,} | {'files' if kind == 'files' else 'memory map'} | {' | '.join(f'{mb:.0f}' for mb in said['mb'])} | {said['seconds']:.1f} |\n"
    return text


if __name__ == "__main__":
    main()
