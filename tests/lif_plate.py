"""LIF files of constructed plates; see `microscope_files.py`.

No microscope wrote them. Of the format they have what a file of LAS X has: the XML, in UTF-16, and one block of memory per
image, of counts in the order tile, t, z, channel, y, x. Wells are folders, as Navigator lays them out: ``TileScan 1/B/3/R2``.
"""

import math
import struct
from xml.etree import ElementTree

import numpy as np

CHANNELS = {"Blue": 461, "Green": 525}  # color table, emission [nm]
EPOCH = 11644473600  # of Windows, before that of Unix [s]


def write(path, images, *, pixel_size_um=0.65, z_step_um=1.5, places, began=1.7e9):
    """Write a file.

    Parameters
    ----------
    path : Path
    images : dict of str to ndarray of uint16, shape (M, T, Z, C, Y, X)
        By the names of folders and image, with slashes; M tiles.
    pixel_size_um, z_step_um : float
        [µm].
    places : dict of str to list of tuple of float
        Stage position of each tile, y and x [µm].
    began : float
        When the first image was taken [s]; each further one is taken a minute later.
    """
    root = ElementTree.Element("LMSDataContainerHeader", Version="2")
    top = _element(root, path.stem)
    blocks = []
    for number, (name, pixels) in enumerate(images.items()):
        node = top
        *folders, own = name.split("/")
        for folder in folders:
            children = _child(node, "Children")
            found = children.find(f"Element[@Name='{folder}']")
            node = _element(children, folder) if found is None else found
        element = _element(_child(node, "Children"), own)
        block = f"MemBlock_{number}"
        ElementTree.SubElement(element, "Memory", Size=str(pixels.nbytes), MemoryBlockID=block)
        image = ElementTree.SubElement(element.find("Data"), "Image")
        _describe(image, pixels, pixel_size_um, z_step_um)
        stamp = int((began + 60 * number + EPOCH) * 1e7)
        count = math.prod(pixels.shape[:4])
        stamps = ElementTree.SubElement(image, "TimeStampList", NumberOfTimeStamps=str(count))
        stamps.text = " ".join(f"{stamp + 10**6 * frame:x}" for frame in range(count)) + " "
        tiles = ElementTree.SubElement(image, "Attachment", Name="TileScanInfo")
        for tile, (y, x) in enumerate(places[name]):
            ElementTree.SubElement(
                tiles, "Tile", FieldX=str(tile), FieldY="0", PosX=f"{x * 1e-6:.9f}", PosY=f"{y * 1e-6:.9f}", PosZ="0"
            )
        blocks.append((block, np.ascontiguousarray(pixels, "<u2").tobytes()))
    text = ElementTree.tostring(root, encoding="unicode")
    with open(path, "wb") as file:
        file.write(struct.pack("<IIBI", 0x70, 2 * len(text) + 5, 0x2A, len(text)) + text.encode("utf-16-le"))
        for block, data in blocks:
            head = struct.pack("<BQBI", 0x2A, len(data), 0x2A, len(block)) + block.encode("utf-16-le")
            file.write(struct.pack("<II", 0x70, len(head)) + head + data)


def _element(parent, name):
    element = ElementTree.SubElement(parent, "Element", Name=name)
    ElementTree.SubElement(element, "Data")
    return element


def _child(node, tag):
    found = node.find(tag)
    return ElementTree.SubElement(node, tag) if found is None else found


def _describe(image, pixels, pixel_size_um, z_step_um):
    """Channels, dimensions with their strides, and the filters of a wide-field microscope."""
    tiles, times, depth, _, height, width = pixels.shape
    strides = pixels.strides
    description = ElementTree.SubElement(image, "ImageDescription")
    channels = ElementTree.SubElement(description, "Channels")
    hardware = ElementTree.SubElement(image, "Attachment", Name="HardwareSetting", DataSourceTypeName="Camera")
    settings = ElementTree.SubElement(hardware, "ATLCameraSettingDefinition", ObjectiveName="HC PL APO 20x/0.80 DRY")
    filters = ElementTree.SubElement(settings, "WideFieldChannelConfigurator")
    for index, (lut, nanometers) in enumerate(CHANNELS.items()):
        ElementTree.SubElement(
            channels, "ChannelDescription", DataType="0", ChannelTag="0", Resolution="16", NameOfMeasuredQuantity="",
            Min="0", Max="65535", Unit="", LUTName=lut, IsLUTInverted="0", BytesInc=str(index * strides[3]), BitInc="0",
        )  # fmt: skip
        ElementTree.SubElement(
            filters, "WideFieldChannelInfo", LUT=lut, ContrastingMethodName="FLUO", FluoCubeName=f"Cube{index}",
            EmissionWavelength=str(nanometers), ExposureTime="0.05",
        )  # fmt: skip
    dimensions = ElementTree.SubElement(description, "Dimensions")
    for identity, count, step, unit, stride in (
        (1, width, pixel_size_um * 1e-6, "m", strides[5]),
        (2, height, pixel_size_um * 1e-6, "m", strides[4]),
        (3, depth, z_step_um * 1e-6, "m", strides[2]),
        (4, times, 1.0, "s", strides[1]),
        (10, tiles, 1.0, "", strides[0]),
    ):
        if count > 1:
            ElementTree.SubElement(
                dimensions, "DimensionDescription", DimID=str(identity), NumberOfElements=str(count), Origin="0",
                Length=f"{(count - 1) * step:.12f}", Unit=unit, BitInc="0", BytesInc=str(stride),
            )  # fmt: skip
