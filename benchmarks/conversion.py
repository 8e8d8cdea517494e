"""Conversion side by side with its peers, on the same pixels in one run: `python benchmarks/conversion.py [--fields N]`.

With `--chunks` instead what chunks, codecs and shards cost: writing, reading and files, relative to the defaults.

One core (by affinity) for the comparison; then two cores against the slower of reading the TIFFs alone and compressing
the pyramids alone, on one core each. Prints tables in Markdown. Ratios count, not seconds.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import tifffile

sys.path.insert(0, str(Path(__file__).parents[1]))

CHANNELS = ("DNA", "ER", "Actin", "Golgi", "Mito")
WELLS = [f"{row}{column:02d}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)]


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fields", type=int, default=8, help="Fields of 5 channels.")
    parser.add_argument("--size", type=int, default=2160, help="Side of a field [px].")
    parser.add_argument("--rounds", type=int, default=3, help="Each number is the median of so many.")
    parser.add_argument(
        "--chunks", action="store_true", help="Measure the choices of chunks, codecs and shards instead."
    )
    options = parser.parse_args()
    os.environ["ZARR_THREADING__MAX_WORKERS"] = "1"  # as a worker of ours has it, and everyone here alike
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        raw = make_raw(options.fields, options.size)
        print(
            f"{options.fields} fields of 5 × {options.size}² uint16, {raw / 1e6:.0f} MB of pixels, TIFF with LZW; ",
            end="",
        )
        print(", ".join(f"{name} {metadata.version(name)}" for name in ("zarr", "ome-zarr", "ngio", "tifffile")), "\n")
        if options.chunks:
            compare_chunks(options.fields, raw, options.rounds)
            compare_shards(options.rounds)
            return
        compare(options.fields, raw, options.rounds)
        against_limits(options.fields, raw, options.rounds)
        read_tiles(options.rounds)
        open_plate(options.rounds)


def make_raw(count, size):
    """Write TIFFs of simulated cells; returns the bytes of their pixels."""
    from plateloom.simulation import ScreenDesign, render_field

    design = ScreenDesign(
        plates=("P",),
        rows=16,
        columns=24,
        fields=1,
        size_px=size,
        cells_per_field=size**2 / 6000,
    )
    Path("raw").mkdir()
    total = 0
    for well in WELLS[:count]:
        image = render_field(design, "P", well, 1).image
        for i in range(len(CHANNELS)):
            plane = image[i % len(image)]
            plane = plane if i < len(image) else plane[::-1, ::-1].copy()
            tifffile.imwrite(f"raw/{well}_s1_w{i + 1}.tif", plane, compression="lzw")
            total += plane.nbytes
    return total


def parameters(**conversion):
    """What the conversion stage gives its tasks."""
    from plateloom.config import Conversion

    channels = {name: {"source": str(i + 1), "color": "FFFFFF", "window": None} for i, name in enumerate(CHANNELS)}
    settings = Conversion(**conversion).model_dump() | {"pixel_size_um": 0.65}
    return {"channels": channels, "conversion": settings, "pixel_size_um": 0.65, "planes": {}}


def fields_of(count):
    """Planes of each field, as the reader lists them."""
    from plateloom.readers import pattern

    fields = {}
    for image in pattern.scan("raw", pattern.Params()).images:
        fields.setdefault(image.well, []).append(image)
    return list(fields.items())[:count]


def convert(well, planes, **conversion):
    """Plateloom: one field, as a worker does it."""
    from plateloom.stages.conversion import convert_field

    convert_field("P", well, 1, planes, "raw", "pattern", parameters(**conversion), "")


def load(well, planes):
    """Read and decode a field's TIFFs, with all checks."""
    import numpy as np

    from plateloom.readers.planes import load_plane

    return np.stack([load_plane("raw", plane)[0] for plane in planes])


def with_ome_zarr(well, planes):
    """ome-zarr-py: its defaults, three levels."""
    import zarr
    from ome_zarr.writer import write_image

    group = zarr.open_group(f"ome-zarr/{well}.zarr", mode="w")
    write_image(load(well, planes), group, axes="cyx", scale_factors=[2, 4])


def with_ngio(well, planes):
    """ngio: its defaults, three levels."""
    import ngio

    Path("ngio").mkdir(exist_ok=True)
    ngio.create_ome_zarr_from_array(
        f"ngio/{well}.zarr", load(well, planes), pixelsize=0.65, axes_names="cyx", levels=3, overwrite=True
    )


def naive(well, planes):
    """TIFF to one zarr array, no pyramid, no metadata: a lower bound of the work."""
    import zarr

    zarr.save_array(f"naive/{well}.zarr", load(well, planes))


def compare(count, raw, rounds):
    """One core, one field after the other."""
    import warnings

    fields = fields_of(count)
    methods = {
        "Plateloom, NGFF 0.5": (convert, {}, "results"),
        "Plateloom, NGFF 0.4": (convert, {"ngff": "0.4"}, "results"),
        "ome-zarr-py": (with_ome_zarr, {}, "ome-zarr"),
        "ngio": (with_ngio, {}, "ngio"),
        "naive (no pyramid)": (naive, {}, "naive"),
    }
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    seconds = {name: [] for name in methods}
    sizes = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for method, options, _ in methods.values():  # imports and caches are nobody's work
            method(*fields[0], **options)
        for _ in range(rounds):
            for name, (method, options, folder) in methods.items():
                shutil.rmtree(folder, ignore_errors=True)
                started = time.perf_counter()
                for field in fields:
                    method(*field, **options)
                seconds[name].append(time.perf_counter() - started)
                files = [path for path in Path(folder).rglob("*") if path.is_file()]
                sizes[name] = len(files), sum(path.stat().st_size for path in files)
    os.sched_setaffinity(0, cores)
    print("| writer | MB/s in | MB/s out | relative | files a field | stored / pixels |\n|---|---|---|---|---|---|")
    ours = statistics.median(seconds["Plateloom, NGFF 0.5"])
    for name, found in seconds.items():
        taken = statistics.median(found)
        files, size = sizes[name]
        print(
            f"| {name} | {raw / taken / 1e6:.0f} | {size / taken / 1e6:.0f} | {ours / taken:.2f} | {files / count:.1f} | {size / raw:.2f} |"
        )
    print()


def compare_chunks(count, raw, rounds):
    """What is written and read by chunks and codecs, on one core and in seconds of it, relative to the defaults."""
    import numpy as np

    from plateloom.store import plate as store

    channels = [{"label": name, "color": "FFFFFF", "window": (0, 1)} for name in CHANNELS]
    images = {well: load(well, planes) for well, planes in fields_of(count)}
    side = next(iter(images.values())).shape[-1]
    random = np.random.default_rng(0)
    corners = {width: random.integers(0, side - width + 1, (20, 2)) for width in (256, 1280) if width < side}
    choices = {f"chunks of {px}": {"chunk_px": px} for px in (512, 128, 256, 1080, 2160)}
    choices |= {"blosc 1": {"level": 1}, "blosc 3": {"level": 3}, "blosc 5": {"level": 5}}
    choices |= {"zstd 2": {"codec": "zstd"}, "0.4, chunks of 512": {"ngff": "0.4"}}
    choices |= {
        "0.4, chunks of 1080": {"ngff": "0.4", "chunk_px": 1080},
        "0.4, zlib 2": {"ngff": "0.4", "codec": "zlib"},
    }
    taken = {name: {} for name in choices}
    sizes = {}

    def clock(name, step, work, *arguments):
        began = time.process_time()
        work(name, *arguments)
        taken[name].setdefault(step, []).append(time.process_time() - began)

    def write(name, options):
        for well, image in images.items():
            path = store.field_path(name, well, 1)
            store.write_image(
                path, image, channels=channels, pixel_size_um=0.65, levels=3, record={}, format=store.Format(**options)
            )

    def read(name, width):
        for well in images:
            for y, x in corners[width]:
                window = slice(y, y + width), slice(x, x + width)
                store.read_image(store.field_path(name, well, 1), channels=[1], window=window)

    def read_whole(name):
        for well in images:
            store.read_image(store.field_path(name, well, 1))

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    for turn in range(rounds + 1):
        for name, options in choices.items():
            shutil.rmtree(name, ignore_errors=True)
            clock(name, "writing", write, options)
            clock(name, "a field", read_whole)
            for width in corners:
                clock(name, f"{width}²", read, width)
            if turn == 0:  # imports and caches are nobody's work
                files = [path for path in Path(name).rglob("*") if path.is_file()]
                sizes[name] = len(files) / count, sum(path.stat().st_size for path in files) / raw
                taken[name] = {}
    os.sched_setaffinity(0, cores)
    steps = ["writing", "a field", *(f"{width}²" for width in corners)]
    middle = {name: {step: statistics.median(found[step]) for step in steps} for name, found in taken.items()}
    first = middle[next(iter(choices))]
    print("| | writing | reading a field | ", " | ".join(f"a window of {width}²" for width in corners), end=" | ")
    print("files a field | stored / pixels |\n|" + "---|" * (len(steps) + 3))
    for name, found in middle.items():
        ratios = " | ".join(f"{found[step] / first[step]:.2f}" for step in steps)
        print(f"| {name} | {ratios} | {sizes[name][0]:.0f} | {sizes[name][1]:.3f} |")
    ms = " and ".join(f"{first[f'{width}²'] * 1e3 / (20 * count):.1f} ms ({width}²)" for width in corners)
    speeds = [raw / first[step] / 1e6 for step in ("writing", "a field")]
    print(f"\nThe first row in numbers: {speeds[0]:.0f} MB/s written, {speeds[1]:.0f} MB/s read, windows in {ms}.\n")


def compare_shards(rounds):
    """What one large image costs by the side of its shards, in a process of its own each."""
    import numpy as np

    side = 8640
    first = tifffile.imread(sorted(Path("raw").glob("*.tif"))[0])
    repeats = -(-side // first.shape[0])
    np.save("large.npy", np.tile(first, (repeats, repeats))[None, :side, :side])
    print(f"One image of {side:,}² uint16, by the side of its shards:\n")
    print("| shards [px] | writing, relative | peak memory [MB] | files |\n|---|---|---|---|")
    base = None
    for px in (2048, 1024, 4096, None):
        found = []
        for _ in range(rounds):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found.append(pool.submit(write_large, px).result())
        seconds = statistics.median(one[0] for one in found)
        base = base or seconds
        print(f"| {px or 'one'} | {seconds / base:.2f} | {max(one[1] for one in found):.0f} | {found[0][2]} |")


def write_large(shard_px):
    """Write one image that is read from a file piece by piece; -> seconds of the processor, growth of memory [MB], files."""
    import numpy as np

    from plateloom.engine.cluster import peak_memory_mb
    from plateloom.store import plate as store

    image = np.load("large.npy", mmap_mode="r")
    channels = [{"label": "DNA", "color": "FFFFFF", "window": (0, 1)}]
    options = {"channels": channels, "pixel_size_um": 0.65, "levels": 3, "record": {}}
    store.write_image("large.zarr/warm/A/01/1", image[:, :512, :512], format=store.Format(), **options)
    before = peak_memory_mb()
    began = time.process_time()
    store.write_image("large.zarr/A/01/1", image, format=store.Format(shard_px=shard_px), **options)
    seconds = time.process_time() - began
    memory = peak_memory_mb() - before
    return seconds, memory, sum(path.is_file() for path in Path("large.zarr/A/01/1").rglob("*"))


def compress(well, planes):
    """Compress a field's pyramid chunk by chunk, as it is stored, and write nothing."""
    import numcodecs
    import numpy as np

    from plateloom.store.plate import Format, _chunk_and_shard, shrink_image

    codec = numcodecs.Blosc("zstd", Format.level, numcodecs.Blosc.SHUFFLE)
    image = np.load(f"arrays/{well}.npy")
    for level in range(3):
        image = shrink_image(image) if level else image
        height, width = _chunk_and_shard(image.shape[-2:], Format())[0]
        for plane in image:
            for y in range(0, plane.shape[0], height):
                for x in range(0, plane.shape[1], width):
                    codec.encode(np.ascontiguousarray(plane[y : y + height, x : x + width]))


def against_limits(count, raw, rounds):
    """Conversion on two cores, where one could read while the other compresses, against either step alone."""
    import numpy as np

    fields = fields_of(count)
    Path("arrays").mkdir()
    for well, planes in fields:
        np.save(f"arrays/{well}.npy", load(well, planes))
    steps = {"reading alone, one core": (1, load_only), "compressing alone, one core": (1, compress)}
    steps["conversion, two cores"] = (2, convert)
    found = {name: [] for name in steps}
    context = get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as one, ProcessPoolExecutor(2, mp_context=context) as two:
        pools = {1: one, 2: two}
        list(two.map(convert, *zip(*fields, strict=True)))
        for _ in range(rounds):
            for name, (cores, work) in steps.items():
                shutil.rmtree("results", ignore_errors=True)
                started = time.perf_counter()
                list(pools[cores].map(work, *zip(*fields, strict=True)))
                found[name].append(time.perf_counter() - started)
    taken = {name: statistics.median(values) for name, values in found.items()}
    reading, compressing, conversion = taken.values()
    print("| step | MB/s of pixels |\n|---|---|")
    for name, value in taken.items():
        print(f"| {name} | {raw / value / 1e6:.0f} |")
    print(f"\nConversion reaches {max(reading, compressing) / conversion:.2f} of the slower step.\n")


def load_only(well, planes):
    """Read a field, and give nothing back through the pool."""
    load(well, planes)


def read_tiles(rounds):
    """A 512 × 512 tile of one channel from the store, against the same from a TIFF with LZW."""
    import numpy as np

    from plateloom.store import plate as store
    from plateloom.store.layout import plate_store

    rng = np.random.default_rng(0)
    wells = sorted(path.stem for path in Path("arrays").iterdir())
    tiles = [
        (well, int(c), *(int(n) * 512 for n in rng.integers(0, 2, 2))) for well in wells for c in range(5)
    ] * rounds

    def ours(well, c, y, x):
        path = store.field_path(plate_store("P"), well, 1)
        return store.read_image(path, channels=[c], window=(slice(y, y + 512), slice(x, x + 512)))[0]

    def tiff(well, c, y, x):
        return tifffile.imread(f"raw/{well}_s1_w{c + 1}.tif")[y : y + 512, x : x + 512]

    taken = {}
    for name, read in (("store", ours), ("TIFF", tiff)):
        started = time.perf_counter()
        found = [read(*tile) for tile in tiles]
        taken[name] = (time.perf_counter() - started) / len(tiles)
        assert all(tile.size for tile in found)
    print(
        f"A 512² tile: {taken['store'] * 1e3:.1f} ms from the store, checksums verified; {taken['TIFF'] * 1e3:.1f} ms from "
        f"the TIFF; {taken['TIFF'] / taken['store']:.1f} times as fast.\n"
    )


def open_plate(rounds):
    """List the fields of a plate of 384 wells × 9 fields, and describe one."""
    from plateloom.store import plate as store

    record = {"fingerprint": "f"}
    for well in WELLS:
        store.write_well("big.zarr", well, list(range(1, 10)), record, ngff="0.5")
    store.write_plate("big.zarr", name="P", wells=WELLS, shape=(16, 24), field_count=9, record=record)
    seconds = []
    for _ in range(max(rounds, 5)):
        started = time.perf_counter()
        fields = store.list_fields("big.zarr")
        seconds.append(time.perf_counter() - started)
    assert sum(map(len, fields.values())) == 384 * 9
    print(f"Opening a plate of 384 wells × 9 fields: {statistics.median(seconds) * 1e3:.0f} ms.")


if __name__ == "__main__":
    main()
