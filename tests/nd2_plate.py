"""ND2 files of constructed plates; see `microscope_files.py`.

No microscope wrote them. Of the format they have what a file of NIS-Elements 4 and later has: named chunks, metadata as
tagged values, frames with the channels of a pixel side by side, and the map of chunks at the end. Wells are the names of the
stage's positions: ``B03_0001``.
"""

import struct

import numpy as np

CHANNELS = {"DAPI": (461, 0xFF0000), "FITC": (525, 0x00FF00)}  # emission [nm], color as 0xBBGGRR
MAGIC = 0x0ABECEDA
UNIX_EPOCH = 2440587.5  # as a Julian day


def write(path, images, *, pixel_size_um=0.65, z_step_um=1.5, places, began=1.7e9):
    """Write a file.

    Parameters
    ----------
    path : Path
    images : dict of str to ndarray of uint16, shape (T, Z, C, Y, X)
        By the name of the stage's position, all of one shape. All positions are taken at a time point before the next one.
    pixel_size_um, z_step_um : float
        [µm].
    places : dict of str to tuple of float
        Stage position, y and x [µm].
    began : float
        When the run began [s]; each frame is taken a second after the one before it.
    """
    points, depth, count, height, width = next(iter(images.values())).shape
    frames = [plane for point in range(points) for pixels in images.values() for plane in pixels[point]]
    times = [1000.0 * number for number in range(len(frames))]
    chunks = [
        ("ImageAttributesLV!", _level("SLxImageAttributes", {
            "uiWidth": width, "uiWidthBytes": width * count * 2, "uiHeight": height, "uiComp": count,
            "uiBpcInMemory": 16, "uiBpcSignificant": 16, "uiSequenceCount": len(frames), "eCompression": 2,
        })),
        ("ImageMetadataLV!", _level("SLxExperiment", _loops(images, places, points, depth, z_step_um))),
        ("ImageMetadataSeqLV|0!", _level("SLxPictureMetadata", _picture(pixel_size_um, began, count))),
        ("CustomData|AcqTimesCache!", np.array(times).tobytes()),
    ]  # fmt: skip
    chunks += [
        (f"ImageDataSeq|{number}!", struct.pack("<d", time) + np.moveaxis(frame, 0, -1).astype("<u2").tobytes())
        for number, (frame, time) in enumerate(zip(frames, times, strict=True))
    ]
    with open(path, "wb") as file:
        signature = b"ND2 FILE SIGNATURE CHUNK NAME01!"
        file.write(struct.pack("<IIQ", MAGIC, 32, 64) + signature + b"Ver3.0".ljust(64, b"\0"))
        table = b""
        for name, data in chunks:
            file.write(b"\0" * (-file.tell() % 4096))
            table += name.encode() + struct.pack("<QQ", file.tell(), len(data))
            reserved = 4072 if name.startswith("ImageDataSeq|") else -(-(len(name) + 20) // 16) * 16
            file.write(struct.pack("<IIQ", MAGIC, reserved, len(data)) + name.encode().ljust(reserved, b"\0") + data)
        file.write(b"\0" * (-file.tell() % 4096))
        at, end = file.tell(), b"ND2 CHUNK MAP SIGNATURE 0000001!"
        table += end + struct.pack("<Q", at)
        name = b"ND2 FILEMAP SIGNATURE NAME 0001!"
        file.write(struct.pack("<IIQ", MAGIC, len(name), len(table)) + name + table)


def _loops(images, places, times, depth, z_step_um):
    """The loop over time points, in each of them the one over positions, and in each of these the one over planes."""
    points = [
        {"dPosX": places[name][1], "dPosY": places[name][0], "dPosZ": 0.0, "dPFSOffset": -1.0, "dPosName": name}
        for name in images
    ]
    positions = {"uiCount": len(points), "bUseZ": False, "bRelativeXY": False, "Points": points}
    inner = []
    if depth > 1:
        stack = {"uiCount": depth, "dZLow": 0.0, "dZHigh": (depth - 1) * z_step_um, "dZStep": z_step_um, "iType": 0}
        inner = [{"eType": 4, "uLoopPars": stack}]
    loop = {"eType": 2, "uLoopPars": positions, "pItemValid": b"\1" * len(points), "ppNextLevelEx": inner}
    if times > 1:
        period = {"uiCount": times, "dStart": 0.0, "dPeriod": 1000.0, "dDuration": 1000.0 * times}
        loop = {"eType": 1, "uLoopPars": period, "ppNextLevelEx": [loop]}
    return loop


def _picture(pixel_size_um, began, count):
    """What one frame's metadata hold."""
    planes = {
        f"a{index}": {
            "uiCompCount": 1, "uiSampleIndex": index, "sDescription": name, "uiColor": color,
            "pFluorescentProbe": {
                "m_ExcitationSpectrum": _spectrum(nanometers - 70.0), "m_EmissionSpectrum": _spectrum(float(nanometers)),
            },
        }
        for index, (name, (nanometers, color)) in enumerate(list(CHANNELS.items())[:count])
    }  # fmt: skip
    return {
        "dTimeAbsolute": began / 86400 + UNIX_EPOCH,
        "bCalibrated": True,
        "dCalibration": pixel_size_um,
        "dObjectiveMag": 20.0,
        "sPicturePlanes": {"uiCount": count, "sPlaneNew": planes},
    }


def _spectrum(nanometers):
    return {"uiCount": 1, "pPoint": {"Point0": {"eType": 2, "dWavelength": nanometers, "dTValue": 1.0}}}


def _level(name, items):
    """A tagged value that holds others: their number, its length in all, themselves, and where each begins."""
    pairs = [("", item) for item in items] if isinstance(items, list) else items.items()
    inside, starts = b"", []
    head = _head(11, name)
    for key, item in pairs:
        starts.append(len(head) + 12 + len(inside))
        inside += _value(key, item)
    body = struct.pack("<IQ", len(starts), len(head) + 12 + len(inside)) + inside
    return head + body + struct.pack(f"<{len(starts)}Q", *starts)


def _value(name, item):
    if isinstance(item, (dict, list)):
        return _level(name, item)
    if isinstance(item, bool):
        return _head(1, name) + struct.pack("<B", item)
    if isinstance(item, int):
        return _head(3, name) + struct.pack("<I", item)
    if isinstance(item, float):
        return _head(6, name) + struct.pack("<d", item)
    if isinstance(item, bytes):
        return _head(9, name) + struct.pack("<Q", len(item)) + item
    return _head(8, name) + (item + "\0").encode("utf-16-le")


def _head(kind, name):
    return struct.pack("<BB", kind, len(name) + 1) + (name + "\0").encode("utf-16-le")
