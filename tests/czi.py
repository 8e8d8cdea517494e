"""CZI files, written by Zeiss's own library and read through bioio; runs in an environment of its own (`make czi`)."""

import sys
from pathlib import Path

import numpy as np
from pylibCZIrw import czi

sys.path.insert(0, str(Path(__file__).parents[1]))

from plateloom.readers import bioio

PATTERN = r"(?P<well>[A-P]\d\d)_(?P<field>\d+)\.czi"


def main(folder):
    """Write a file per field, read them back, and print how many planes were equal."""
    random, planes = np.random.default_rng(0), {}
    for well, field in (("A01", 1), ("A01", 2), ("B03", 1)):
        with czi.create_czi(str(folder / f"{well}_{field}.czi")) as file:
            for channel, name in enumerate(("DNA", "GFP")):
                for z in (0, 1):
                    plane = random.integers(1, 60000, (32, 48), dtype=np.uint16)
                    planes[well, field, name, z] = plane
                    file.write(data=plane[..., None], plane={"C": channel, "Z": z, "T": 0})
            names = {0: "DNA", 1: "GFP"}
            file.write_metadata(channel_names=names, scale_x=0.65e-6, scale_y=0.65e-6, scale_z=1.5e-6)
    source = bioio.scan(folder, bioio.Params(pattern=PATTERN))
    assert {image.pixel_size_um for image in source.images} == {0.65}
    assert {image.z_um for image in source.images} == {0.0, 1.5}
    for image in source.images:
        found, _ = bioio.load(folder, image)
        np.testing.assert_array_equal(found, planes.pop((image.well, image.field, image.channel, image.z)))
    print(len(source.images), "equal,", len(planes), "not found")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
