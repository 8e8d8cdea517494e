"""A constructed CellVoyager plate: file names, .mlf, .mrf, .mes and .wpi as the CV7000 and the CV8000 write them."""

from datetime import UTC, datetime, timedelta
from xml.sax.saxutils import escape, quoteattr

import tifffile
from imagecodecs import png_encode

from plateloom.wells import parse_well, row_name

NAMESPACE = "http://www.yokogawa.co.jp/BTS/BTSSchema/1.0"
BEGIN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
STEP_UM = 2.0
COLORS = ("#FF002FFF", "#FF00FF00", "#FFFF0000", "#FFFFFF00", "#FFFF00FF")
BANDS = ("BP445/45", "BP525/50", "BP600/37", "BP676/29", "BP788/73")


def write(
    folder,
    planes,
    *,
    pixel_size_um=0.65,
    positions=None,
    shape=(8, 12),
    channels=("DNA", "GFP"),
    plate="PLATE",
    suffix=".tif",
    metadata=("mlf", "mrf", "mes", "wpi"),
    absent=(),
    projections=None,
    errors=(),
    actions=None,
    blocks=False,
    big_endian=False,
    corrections=False,
    ended=True,
):
    """Write the plate.

    Parameters
    ----------
    folder : path
    planes : dict of (well, field, channel, z, t) to ndarray of uint16, shape (Y, X)
        All but the well counted from 1.
    pixel_size_um : float
        [µm/px].
    positions : dict of int to (float, float), optional
        Center of each field, y downwards, x to the right [µm]; default: side by side.
    shape : tuple of int
        Rows and columns of the plate.
    channels : tuple of str
        Their names in the .mes file.
    plate : str
        How file names begin.
    suffix : str
        Of the image files; the .mlf file says ``.tif`` all the same, as after a conversion.
    metadata : tuple of str
        The metadata files to write.
    absent : collection of keys of `planes`
        Recorded, and without a file.
    projections : dict, optional
        Further planes, keys as those of `planes`: recorded as maximum projections, their names without a `Z`.
    errors : sequence of (well, str)
        Error records.
    actions : dict of int to int, optional
        Action of each channel; default: 1.
    blocks : bool
        Name the wells by their 4 × 4 blocks, as in 1536-well plates.
    big_endian : bool
        As the CV7000 writes its files.
    corrections : bool
        Write correction images, too.
    ended : bool
        Whether the .mrf file says when the measurement ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width = next(iter(planes.values())).shape[1]
    positions = positions or {field: (0.0, field * width * pixel_size_um) for _, field, _, _, _ in planes}
    records = []
    kinds = [(key, image, "") for key, image in planes.items()]
    kinds += [(key, image, "Maximum") for key, image in (projections or {}).items()]
    for number, ((well, field, channel, z, t), image, kind) in enumerate(kinds):
        action = (actions or {}).get(channel, 1)
        z_text = "" if kind else f"Z{z:02d}"
        stem = f"{plate}_{spell(well, blocks)}_T{t:04d}F{field:03d}L01A{action:02d}{z_text}C{channel:02d}"
        if (well, field, channel, z, t) not in absent:
            write_image(folder / (stem + suffix), image, big_endian)
        y_um, x_um = positions[field]
        row, column = parse_well(well)
        facts = {
            "Type": "IMG",
            "Time": (BEGIN + timedelta(seconds=number)).isoformat(timespec="milliseconds"),
            "Column": column + 1,
            "Row": row + 1,
            "TimePoint": t,
            "FieldIndex": field,
            "ZIndex": z,
            "TimelineIndex": 1,
            "ActionIndex": action,
            "Action": "3D",
            "X": x_um,
            "Y": -y_um,
            "Z": (z - 1) * STEP_UM,
            "Ch": channel,
        }
        if kind:
            facts["ZImageProcessing"] = kind
        records.append(element("MeasurementRecord", facts, f"{stem}.tif"))
    for well, text in errors:
        row, column = parse_well(well)
        facts = {"Type": "ERR", "Time": BEGIN.isoformat(), "Column": column + 1, "Row": row + 1, "TimePoint": 1}
        records.append(element("MeasurementRecord", facts, text))
    sources = {channel: f"SC_{BANDS[channel - 1].replace('/', '-')}_20x_M10_CH{channel:02d}.tif" for channel in (1, 2)}
    if corrections:
        image = next(iter(planes.values()))
        for name in ("DC_sCMOS #1_CAM1.tif", *sources.values()):
            write_image(folder / name, image, big_endian)
    texts = {
        "mlf": ("MeasurementData.mlf", document("MeasurementData", {}, records)),
        "mrf": ("MeasurementDetail.mrf", detail(plate, shape, pixel_size_um, channels, sources, ended)),
        "mes": (f"{plate}.mes", settings(channels)),
        "wpi": (f"{plate}.wpi", document("WellPlate", {"Name": plate, "Columns": shape[1], "Rows": shape[0]}, [])),
    }
    for kind in metadata:
        name, text = texts[kind]
        (folder / name).write_bytes(text.encode("utf-8-sig"))


def write_image(path, image, big_endian=False):
    """Write one plane as TIFF or PNG."""
    if path.suffix == ".png":
        path.write_bytes(png_encode(image))
    else:
        tifffile.imwrite(path, image, byteorder=">" if big_endian else "<")


def spell(well, blocks):
    """A well as file names spell it: ``B03``, or ``A01.b3`` in blocks of 4 × 4."""
    row, column = parse_well(well)
    if not blocks:
        return well
    return f"{row_name(row // 4)}{column // 4 + 1:02d}.{'abcd'[row % 4]}{column % 4 + 1}"


def element(tag, facts, text=None):
    """An element of the vendor's namespace, its attributes in it, too."""
    attributes = "".join(f" bts:{key}={quoteattr(str(value))}" for key, value in facts.items())
    return f"<bts:{tag}{attributes} />" if text is None else f"<bts:{tag}{attributes}>{escape(text)}</bts:{tag}>"


def document(root, facts, lines):
    """An XML file with lines as Windows ends them."""
    attributes = "".join(f" bts:{key}={quoteattr(str(value))}" for key, value in facts.items())
    head = f'<bts:{root} bts:Version="1.0"{attributes} xmlns:bts="{NAMESPACE}">'
    return "\r\n".join(['<?xml version="1.0" encoding="utf-8"?>', head, *lines, f"</bts:{root}>", ""])


def detail(plate, shape, pixel_size_um, channels, sources, ended):
    """Text of the .mrf file."""
    facts = {
        "OperatorName": "constructed",
        "Title": plate,
        "BeginTime": BEGIN.isoformat(),
        "MeasurementSettingFileName": f"{plate}.mes",
        "ColumnCount": shape[1],
        "RowCount": shape[0],
        "TargetSystem": "CV8000",
    }
    if ended:
        facts["EndTime"] = (BEGIN + timedelta(hours=3)).isoformat()
    lines = [element("MeasurementSamplePlate", {"Name": plate, "WellPlateFileName": f"{plate}.wpi"})]
    for channel in range(1, len(channels) + 1):
        sizes = {"HorizontalPixelDimension": pixel_size_um, "VerticalPixelDimension": pixel_size_um}
        source = {"CameraNumber": 1, "ShadingCorrectionSource": sources.get(channel, "")}
        lines.append(element("MeasurementChannel", {"Ch": channel, **sizes, **source}))
    return document("MeasurementDetail", facts, lines)


def settings(channels):
    """Text of the .mes file."""
    numbers = range(1, len(channels) + 1)
    asked = "".join(f"<bts:Ch>{channel}</bts:Ch>" for channel in numbers)
    slices = f'bts:TopDistance="20" bts:BottomDistance="-4" bts:SliceLength="{STEP_UM}"'
    stack = f"<bts:ActionAcquire3D {slices}>{asked}</bts:ActionAcquire3D>"
    lines = [f'<bts:Timelapse><bts:Timeline bts:Color="#ff44ee66">{stack}</bts:Timeline></bts:Timelapse>']
    lines.append("<bts:ChannelList>")
    for channel, name in enumerate(channels, 1):
        facts = {"Ch": channel, "Target": name, "Acquisition": BANDS[channel - 1], "Color": COLORS[channel - 1]}
        lines.append(element("Channel", facts, "").replace("></", "><bts:LightSourceName>405</bts:LightSourceName></"))
    lines.append("</bts:ChannelList>")
    return document("MeasurementSetting", {}, lines)
