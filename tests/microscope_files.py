"""Constructed ND2 and LIF files, from `plateloom init` to the plate; runs in an environment of its own (`make nd2`, `make lif`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

import lif_plate
import nd2_plate
from in_process import run_stages

from plateloom.errors import DataFault
from plateloom.readers import bioio, nikon
from plateloom.store import plate

WELLS, FIELDS, DEPTH = ("A01", "B03", "P24"), (1, 2), 3
NAMES = {
    "nd2": {(well, field): f"{well}_{field:04}" for well in WELLS for field in FIELDS},
    "lif": {(well, field): f"TileScan 1/{well[0]}/{int(well[1:])}/R{field}" for well in WELLS for field in FIELDS},
}
CHANNELS = {"nd2": ["DAPI", "FITC"], "lif": ["Blue--FLUO--Cube0", "Green--FLUO--Cube1"]}


def draw(times=1):
    """Counts of each field, shape (T, Z, C, Y, X), and the places of their centers, y and x [µm]."""
    random, spots = np.random.default_rng(0), list(NAMES["nd2"])
    images = {spot: random.integers(1, 60000, (times, DEPTH, 2, 32, 48), dtype=np.uint16) for spot in spots}
    return images, {spot: (100.5 * number, -20.0 * number) for number, spot in enumerate(spots)}


def write(kind, path, images, places):
    """Write one file with a scene per field."""
    names = NAMES[kind]
    if kind == "nd2":
        nd2_plate.write(path, {names[spot]: image for spot, image in images.items()},
                        places={names[spot]: place for spot, place in places.items()})  # fmt: skip
    else:
        lif_plate.write(path, {names[spot]: image[None] for spot, image in images.items()},
                        places={names[spot]: [place] for spot, place in places.items()})  # fmt: skip


def check_table(kind, folder, params, images, places, *, times=1):
    """What a scan says of each plane, and its pixels; returns the number of planes."""
    found = bioio.scan(folder, bioio.Params(**params))
    assert not found.notes, found.notes
    assert {name: said["color"] for name, said in found.channels.items()} == dict(
        zip(CHANNELS[kind], ("0000FF", "00FF00"), strict=True)
    )
    left = {(spot, channel, t, z) for spot in images for channel in (0, 1) for t in range(times) for z in range(DEPTH)}
    for image in found.images:
        spot, channel = (image.well, image.field), CHANNELS[kind].index(image.channel)
        left.remove((spot, channel, image.t, image.z))
        pixels, _ = bioio.load(folder, image)
        np.testing.assert_array_equal(pixels, images[spot][image.t, image.z, channel])
        np.testing.assert_allclose((image.y_um, image.x_um), places[spot], atol=1e-6)
        np.testing.assert_allclose((image.pixel_size_um, image.z_um), (0.65, 1.5 * image.z))
        assert image.wavelength_nm == (461, 525)[channel]
        order = list(images).index(spot)
        if kind == "lif":  # a minute after the field before, and a time point after all frames of the one before it
            began = 1.7e9 + 60 * order + 0.1 * image.t * DEPTH * 2
        else:
            began = 1.7e9 + (image.t * len(images) + order) * DEPTH + image.z
        np.testing.assert_allclose(image.seconds, began, rtol=0, atol=0.01)
    assert not left
    return len(found.images)


def check_conversion(kind, source, screen, images, places):
    """`plateloom init`, and the plate that comes of it, as the projection that is the default; returns the reader's params."""
    command = [sys.executable, "-c", "from plateloom.cli import main; main()", "init", screen, "--source", source]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": sys.path[0]})
    config = yaml.safe_load((screen / "config.yaml").read_text())
    assert [channel["source"] for channel in config["channels"].values()] == CHANNELS[kind]
    run_stages(screen, ("conversion", "assembly"))
    store = screen / f"results/plates/{source.name}/plate.zarr"
    for well in WELLS:
        for field in FIELDS:
            path = plate.field_path(store, well, field)
            np.testing.assert_array_equal(plate.read_image(path), images[well, field][0].max(axis=0))
            assert abs(plate.describe_image(path)["pixel_size_um"] - 0.65) < 1e-9
    return config["readers"]["bioio"]


def check_tiles(folder):
    """Tiles that LAS X has not merged are fields with their own positions."""
    random = np.random.default_rng(1)
    names = [f"TileScan 1/A/{column}/R1" for column in (1, 2)]
    images = {name: random.integers(1, 60000, (3, 1, 2, 2, 16, 24), dtype=np.uint16) for name in names}
    places = {name: [(10.0, 5.0 + 15 * tile) for tile in range(3)] for name in names}
    lif_plate.write(folder / "tiles.lif", images, places=places)
    found = bioio.scan(folder, bioio.Params(names="scene", pattern=bioio.SCENES["LAS X Navigator"], suffixes=[".lif"]))
    assert len(found.images) == 2 * 3 * 2 * 2
    for image in found.images:
        pixels, _ = bioio.load(folder, image)
        name = f"TileScan 1/A/{int(image.well[1:])}/R1"
        channel = CHANNELS["lif"].index(image.channel)
        np.testing.assert_array_equal(pixels, images[name][image.field - 1, 0, image.z, channel])
        np.testing.assert_allclose((image.y_um, image.x_um), places[name][image.field - 1], atol=1e-6)


def count_reads(path, images, *, room):
    """How many frames are read of a file of Nikon's for all planes of its fields, channel by channel, with room for so many."""
    file, numbers = nikon.open_file(path), []
    read = file.nd2.read_frame
    file.nd2.read_frame = lambda number: numbers.append(number) or read(number)
    nikon.KEPT_BYTES = room * next(iter(images.values()))[0, 0].nbytes
    for scene, image in enumerate(images.values()):
        for channel in (0, 1):
            for z in range(DEPTH):
                pixels = nikon.read_plane(file, scene, channel * DEPTH + z)
                np.testing.assert_array_equal(pixels, image[0, z, channel])
                assert len(file.kept) <= max(1, room) and pixels.base is None
    return len(numbers)


def count_faults(kind, path, params):
    """Cut and change a file at random: what is raised must be a data fault. Returns how many times one was."""
    good, random, faults = path.read_bytes(), np.random.default_rng(2), 0
    for _ in range(40):
        data = bytearray(good)
        del data[random.integers(len(data) // 2, len(data)) :]
        for _ in range(random.integers(0, 4)):
            data[random.integers(len(data))] = random.integers(256)
        path.write_bytes(data)
        try:
            for image in bioio.scan(path.parent, bioio.Params(**params)).images:
                bioio.load(path.parent, image)
        except DataFault:
            faults += 1
    path.write_bytes(good)
    return faults


def main(kind, folder):
    """Print what was found, as JSON."""
    source = folder / "plate"
    source.mkdir()
    images, places = draw()
    write(kind, source / f"screen.{kind}", images, places)
    params = check_conversion(kind, source, folder / "screen", images, places)
    said = {"planes": check_table(kind, source, params, images, places)}
    followed, _ = draw(times=2)
    (folder / "followed").mkdir()
    write(kind, folder / f"followed/screen.{kind}", followed, places)
    said["followed"] = check_table(kind, folder / "followed", params, followed, places, times=2)
    if kind == "lif":
        (folder / "tiles").mkdir()
        check_tiles(folder / "tiles")
    else:
        said["reads"] = [count_reads(source / "screen.nd2", images, room=room) for room in (0, 1, DEPTH)]
        blank = images | {("B03", 2): np.zeros_like(images["B03", 2])}  # as nd2 shows frames that were never taken
        (folder / "stopped").mkdir()
        write(kind, folder / "stopped/screen.nd2", blank, places)
        said["stopped"] = 0
        for image in bioio.scan(folder / "stopped", bioio.Params(**params)).images:
            try:
                bioio.load(folder / "stopped", image)
            except DataFault as fault:
                assert "stopped before this frame" in str(fault) and (image.well, image.field) == ("B03", 2)
                said["stopped"] += 1
    said["faults"] = count_faults(kind, source / f"screen.{kind}", params)
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
