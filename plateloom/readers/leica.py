"""LIF files of Leica's LAS X for the `bioio` reader, by liffile.

bioio's plugin for them, which rests on liffile too, parses the metadata of the whole file anew for each scene and each plane,
and tells no position, wavelength or time of a scene. A channel is called as that plugin calls it. A tile of a scan that LAS X
has not merged is a field of its own, at the stage's position.
"""

from plateloom.readers.ome_tiff import distinct_names
from plateloom.readers.scenes import Scene, check_size, finite_number, pixel_size

PACKAGE = "liffile"
AXES = "MTCZYX"
COLORS = {
    "blue": "0000FF", "green": "00FF00", "red": "FF0000", "cyan": "00FFFF", "magenta": "FF00FF", "yellow": "FFFF00",
    "gray": "FFFFFF", "grey": "FFFFFF",
}  # fmt: skip


def open_file(path):
    """Open a file: a `liffile.LifFile`, for one thread at a time; ImportError without the package."""
    from liffile import LifFile

    return LifFile(path)


def describe_scenes(file):
    """What a file says of its images, a `Scene` each, with the folders that they lie in before their names.

    Parameters
    ----------
    file : liffile.LifFile

    Returns
    -------
    list of Scene
    """
    return [_describe_image(image) for image in file.images]


def read_plane(file, scene, index):
    """Read one plane.

    Parameters
    ----------
    file : liffile.LifFile
    scene, index : int
        The scene's place in the file, and the plane's among its tiles, time points, channels and planes; from 0.

    Returns
    -------
    ndarray, shape (Y, X)
    """
    import numpy as np

    image = file.images[scene]
    check_size(image.sizes["Y"], image.sizes["X"], image.itemsize)
    if tuple(image.frames.frame_dims) != ("Y", "X"):
        raise ValueError(f"its planes lie along {', '.join(image.frames.frame_dims)}, expected Y, X")
    indexes = zip(AXES, np.unravel_index(index, _sizes(image)), strict=False)
    return image.frame(**{axis: int(at) for axis, at in indexes if axis in image.sizes})


def _sizes(image):
    return tuple(int(image.sizes.get(axis, 1)) for axis in AXES[:4])


def _describe_image(image):
    sizes = _sizes(image)
    tiles, times, channels, depth = sizes
    y, x, z = (_step(image.coords.get(axis)) for axis in "YXZ")
    scan, stamps = image.tilescan, image.timestamps
    places = [(None, None)] * tiles
    if scan is not None and len(scan.tiles) == tiles:
        places = [(1e6 * float(tile["pos_y"]), 1e6 * float(tile["pos_x"])) for tile in scan.tiles]
    taken = {}
    if stamps is not None and len(stamps):
        began = [stamps[t * len(stamps) // times].astype("int64") / 1000 for t in range(times)]
        taken = {(t, c, p): float(began[t]) for t in range(times) for c in range(channels) for p in range(depth)}
    plain = set(image.sizes) <= set(AXES) and {"Y", "X"} <= set(image.sizes) and not image.is_flim
    told = _describe_channels(image.xml_element, channels)
    return Scene(image.path, sizes, *told, plain, pixel_size(y, x), z, places, taken)


def _step(places):
    """Distance of pixels [µm] from their places [m]; None where there are less than two."""
    if places is None or len(places) < 2:
        return None
    return finite_number(1e6 * abs(places[-1] - places[0]) / (len(places) - 1), positive=True)


def _describe_channels(element, count):
    """Names, colors and emissions [nm] of an image's channels, from its XML."""
    tables = [one.get("LUTName", "") for one in element.findall("./Data/Image/ImageDescription/Channels/")]
    filters = element.findall("./Data/Image/Attachment//WideFieldChannelInfo")
    by_table = {}
    for one in filters:
        by_table.setdefault(one.get("LUT", ""), one)
    keys = ("LUT", "ContrastingMethodName", "FluoCubeName")
    names = ["--".join(by_table[name].get(key, "") for key in keys) if name in by_table else name for name in tables]
    chosen = filters if len(filters) == len(tables) else [by_table.get(name) for name in tables]
    lengths = [None if one is None else finite_number(one.get("EmissionWavelength"), positive=True) for one in chosen]
    missing = [None] * count
    return (
        distinct_names((names + [""] * count)[:count]),
        ([COLORS.get(name.lower()) for name in tables] + missing)[:count],
        (lengths + missing)[:count],
    )
