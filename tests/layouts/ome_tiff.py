"""OME-TIFF as many programs write it: with a metadata file or with XML in every TIFF, a TIFF per plate, well, field or
plane, any order of dimensions. Constructed: the pixels are the caller's, the XML follows the schema of 2016-06."""

import itertools
import uuid
import xml.etree.ElementTree as ElementTree

import numpy as np
from tifffile import TiffWriter

from plateloom.wells import parse_well

NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
DATE = "2024-05-06T07:08:09"
COLORS = (-16776961, 16711935)  # red and green, as a signed number RGBA
WAVELENGTHS = (447.0, 525.0)
PER = {
    "plate": "plate",
    "well": "{well}",
    "field": "{well}_f{field:02d}",
    "channel": "{well}_f{field:02d}_c{channel}",
    "plane": "{well}_f{field:02d}_c{channel}_z{z}_t{t}",
}


def write(
    folder,
    planes,
    *,
    pixel_size_um=0.65,
    positions=None,
    shape=(8, 12),
    channels=("DNA", "GFP"),
    per="field",
    xml="companion",
    plate=True,
    order="XYZCT",
    z_step_um=1.5,
    unit="µm",
    position_unit="µm",
    positions_of="plane",
    acquisitions=0,
    blocks="each",
    name="{}.ome.tif",
    compression=None,
    change=None,
):
    """Write a plate.

    Parameters
    ----------
    folder : path
    planes : dict of tuple to ndarray of uint16, shape (Y, X)
        By (well, field, channel, z, t), all but the well counted from 1; every field has all of its planes.
    pixel_size_um : float
        [µm/px].
    positions : dict of int to tuple of float, optional
        Center of each field, y and x [µm].
    per : {'plate', 'well', 'field', 'channel', 'plane'}
        What one TIFF holds.
    xml : {'companion', 'own', 'all', 'first'}
        Where the metadata are: in a file of their own; in every TIFF, of its own images or of all; or in the first TIFF,
        to which the others point.
    plate : bool
        Whether they have a Plate.
    unit, position_unit : str or None
        Of sizes and positions; None writes none.
    positions_of : {'plane', 'first', 'sample', 'stage'}
        What carries the positions: every plane, the first plane of a field, the WellSample or the StageLabel.
    acquisitions : int
        Number of PlateAcquisitions that the fields are dealt out to.
    blocks : {'each', 'counted', 'open', 'none'}
        TiffData: one per plane, one per run of pages with its length, one without, or none at all.
    name : str
        Name of the TIFFs; {} is `per`'s.
    compression : str, optional
    change : callable, optional
        Gets every OME element before it is written.

    Returns
    -------
    list of str
        Names of the TIFFs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = {}  # of every plane: file and page
    contents = {}  # of every file: its planes in the order of their pages
    fields = {}
    for key in sorted(
        planes, key=lambda key: (key[0], key[1], *(key[2 + "CZT".index(axis)] for axis in reversed(order[2:])))
    ):
        well, field, channel, z, t = key
        file = name.format(PER[per].format(well=well, field=field, channel=channel, z=z, t=t))
        contents.setdefault(file, []).append(key)
        places[key] = file, len(contents[file]) - 1
        fields.setdefault((well, field), []).append(key)
    uuids = {file: f"urn:uuid:{uuid.UUID(int=number + 1)}" for number, file in enumerate(contents)}
    options = {
        "pixel_size_um": pixel_size_um,
        "positions": positions or {},
        "shape": shape,
        "channels": channels,
        "plate": plate,
        "order": order,
        "z_step_um": z_step_um,
        "unit": unit,
        "position_unit": position_unit,
        "positions_of": positions_of,
        "acquisitions": acquisitions,
        "blocks": blocks,
        "size": next(iter(planes.values())).shape,
        "dtype": next(iter(planes.values())).dtype,
    }

    def described(own, files):
        wanted = {field: keys for field, keys in fields.items() if any(places[key][0] in files for key in keys)}
        ome = _ome(wanted, places, uuids, own, options)
        if change:
            change(ome)
        return ElementTree.tostring(ome, encoding="unicode")

    if xml == "companion":
        text = '<?xml version="1.0" encoding="UTF-8"?>' + described("", set(contents))
        (folder / "plate.companion.ome").write_text(text, encoding="utf-8")
    for number, (file, keys) in enumerate(contents.items()):
        if xml == "own":
            text = described(file, {file})
        elif xml == "all" or (xml == "first" and number == 0):
            text = described(file, set(contents))
        else:
            text = _binary_only("plate.companion.ome" if xml == "companion" else next(iter(contents)), uuids[file])
        with TiffWriter(folder / file) as tiff:
            for page, key in enumerate(keys):
                description = text.encode() if page == 0 else None
                tiff.write(
                    planes[key], contiguous=False, metadata=None, description=description, compression=compression
                )
    return list(contents)


def _binary_only(target, own):
    ome = ElementTree.Element("OME", {"xmlns": NAMESPACE, "UUID": own})
    ElementTree.SubElement(ome, "BinaryOnly", {"MetadataFile": target, "UUID": "urn:uuid:" + str(uuid.UUID(int=0))})
    return ElementTree.tostring(ome, encoding="unicode")


def _ome(fields, places, uuids, own, options):
    """The OME element of some fields, in the file that is called `own`."""
    ome = ElementTree.Element("OME", {"xmlns": NAMESPACE, "UUID": uuids.get(own, f"urn:uuid:{uuid.UUID(int=0)}")})
    pictures = {key: f"Image:{number}" for number, key in enumerate(sorted(fields))}
    if options["plate"]:
        _add_plate(ome, pictures, options)
    for key in sorted(fields):
        _add_image(ome, key, pictures[key], fields[key], places, uuids, own, options)
    return ome


def _add_plate(ome, pictures, options):
    rows, columns = options["shape"]
    plate = ElementTree.SubElement(
        ome, "Plate", {"ID": "Plate:0", "Name": "P", "Rows": str(rows), "Columns": str(columns)}
    )
    members = {}
    numbers = itertools.count()
    for number, (well, keys) in enumerate(itertools.groupby(sorted(pictures), key=lambda key: key[0])):
        row, column = parse_well(well)
        element = ElementTree.SubElement(
            plate, "Well", {"ID": f"Well:{number}", "Row": str(row), "Column": str(column)}
        )
        for place, key in enumerate(keys):
            index = next(numbers)  # OME counts samples over the whole plate
            # Alone in its file a field still has its own number.
            index = (row * columns + column) * 1000 + key[1] if len(pictures) == 1 else index
            attributes = {"ID": f"WellSample:{index}", "Index": str(index)}
            if options["positions_of"] == "sample":
                attributes |= _place(options, key[1], "PositionY", "PositionX")
            sample = ElementTree.SubElement(element, "WellSample", attributes)
            ElementTree.SubElement(sample, "ImageRef", {"ID": pictures[key]})
            members.setdefault(place % max(1, options["acquisitions"]), []).append(attributes["ID"])
    for number in range(options["acquisitions"]):
        run = ElementTree.SubElement(
            plate, "PlateAcquisition", {"ID": f"PlateAcquisition:{number}", "Name": f"run {number}"}
        )
        for member in members.get(number, []):
            ElementTree.SubElement(run, "WellSampleRef", {"ID": member})


def _add_image(ome, key, picture, keys, places, uuids, own, options):
    well, field = key
    image = ElementTree.SubElement(ome, "Image", {"ID": picture, "Name": f"{well} field {field}"})
    ElementTree.SubElement(image, "AcquisitionDate").text = DATE
    if options["positions_of"] == "stage" and field in options["positions"]:
        ElementTree.SubElement(image, "StageLabel", {"Name": "s", **_place(options, field, "Y", "X")})
    sizes = {axis: max(key[2 + "CZT".index(axis)] for key in keys) for axis in "CZT"}
    number = picture.rpartition(":")[2]
    pixels = ElementTree.SubElement(
        image,
        "Pixels",
        {
            "ID": f"Pixels:{number}",
            "DimensionOrder": options["order"],
            "Type": str(np.dtype(options["dtype"])),
            "SizeX": str(options["size"][1]),
            "SizeY": str(options["size"][0]),
            **{f"Size{axis}": str(size) for axis, size in sizes.items()},
            **_sizes(options),
        },
    )
    for channel in range(sizes["C"]):
        attributes = {"ID": f"Channel:{number}:{channel}", "SamplesPerPixel": "1", "Color": str(COLORS[channel % 2])}
        if options["channels"][channel]:
            attributes["Name"] = options["channels"][channel]
        attributes["EmissionWavelength"] = str(WAVELENGTHS[channel % 2])
        ElementTree.SubElement(pixels, "Channel", attributes)
    _add_blocks(pixels, keys, places, uuids, own, options)
    for place, (_, _, c, z, t) in enumerate(keys):
        at = {"TheZ": str(z - 1), "TheC": str(c - 1), "TheT": str(t - 1)}
        delta = {"DeltaT": str(1000.0 * (t - 1) + c), "DeltaTUnit": "ms"}
        where = {}
        if options["positions_of"] == "plane" or (options["positions_of"] == "first" and not place):
            where = _place(options, field, "PositionY", "PositionX")
        ElementTree.SubElement(pixels, "Plane", at | delta | where)


def _add_blocks(pixels, keys, places, uuids, own, options):
    if options["blocks"] == "none":
        return
    runs = [list(run) for _, run in itertools.groupby(keys, key=lambda key: places[key][0])]
    if options["blocks"] == "each":
        runs = [[key] for key in keys]
    for run in runs:
        file, page = places[run[0]]
        _, _, c, z, t = run[0]
        attributes = {"FirstZ": str(z - 1), "FirstC": str(c - 1), "FirstT": str(t - 1)}
        if options["blocks"] != "open":
            attributes |= {"IFD": str(page), "PlaneCount": str(len(run))}
        block = ElementTree.SubElement(pixels, "TiffData", attributes)
        if len(uuids) > 1 or not own:
            ElementTree.SubElement(block, "UUID", {"FileName": file}).text = uuids[file]


def _sizes(options):
    factor = {"nm": 1e3, "mm": 1e-3}.get(options["unit"], 1.0)
    sizes = {"X": options["pixel_size_um"], "Y": options["pixel_size_um"], "Z": options["z_step_um"]}
    found = {f"PhysicalSize{axis}": str(size * factor) for axis, size in sizes.items() if size}
    return found | ({f"{name}Unit": options["unit"] for name in found} if options["unit"] else {})


def _place(options, field, *names):
    if field not in options["positions"]:
        return {}
    unit = options["position_unit"]
    factor = {"nm": 1e3, "mm": 1e-3}.get(unit, 1.0)
    found = {}
    for name, value in zip(names, options["positions"][field], strict=True):
        found[name] = str(value * factor)
        if unit:
            found[f"{name}Unit"] = unit
    return found
