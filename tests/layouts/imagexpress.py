"""A constructed ImageXpress plate, laid out as MetaXpress exports it or keeps it beside its database.

Names, folders, the .HTD and the description of each TIFF are made after real plates; pixels are whatever is given.
"""

import hashlib
import uuid
from xml.sax.saxutils import quoteattr

import numpy as np
import tifffile

from plateloom.wells import parse_well, well_name

PITCH_UM = 9000.0  # from well to well
STEP_UM = 2.5  # from plane to plane


def write(
    folder,
    planes,
    *,
    pixel_size_um=0.65,
    positions=None,
    shape=(8, 12),
    channels=("DNA", "GFP"),
    name="Screen_1",
    layout="export",
    projected=(),
    repeated=(),
    sites=None,
    waves=None,
    times=True,
    steps=None,
    offsets=True,
    tags=True,
    thumbs=False,
    suffix=None,
    index=True,
    declared=None,
):
    """Write a plate.

    Parameters
    ----------
    folder : Path
    planes : dict of (str, int, int, int, int) to ndarray of uint16, shape (Y, X)
        By well, field, channel, z and t, all but the well counted from 1.
    pixel_size_um : float
        [µm/px].
    positions : dict of int to (float, float), optional
        y and x of each field's center in its well [µm], y downwards; default: a row of fields side by side.
    shape : tuple of int
        Rows and columns of the plate.
    channels : sequence of str
        Names of the wavelengths.
    name : str
        Of the plate.
    layout : {'export', 'database'}
    projected : collection of int
        Channels whose maximum projection is written as well.
    repeated : collection of int
        Channels of one plane, written into every ZStep folder as the export does.
    sites, waves, steps : bool, optional
        Whether names have ``_s1`` and ``_w1``, and whether there are ZStep folders; default: where there is more than one.
    times : bool
        Whether there are TimePoint folders.
    offsets : bool
        Whether the tags say where fields lie in their well, beside where the stage stood.
    tags : bool
        Whether TIFFs have any description.
    thumbs : bool
        Whether each image has a thumbnail.
    suffix : str, optional
        ``.TIF`` of an export, ``.tif`` of the database.
    index : bool
        Whether there is an .HTD in every folder, as an export has it.
    declared : dict of str to str, optional
        Lines of the .HTD that differ, None where one is absent.

    Returns
    -------
    Path
        Folder of the plate's files.
    """
    database = layout == "database"
    fields, waved = sorted({key[1] for key in planes}), sorted({key[2] for key in planes})
    width = next(iter(planes.values())).shape[1] * pixel_size_um
    positions = positions or {field: (0.0, i * width) for i, field in enumerate(fields)}
    sites = len(fields) > 1 if sites is None else sites
    waves = len(waved) > 1 if waves is None else waves
    count = max(key[3] for key in planes)
    steps = count > 1 if steps is None else steps
    suffix = suffix or (".tif" if database else ".TIF")
    root = folder / ("2024-03-05/1717" if database else f"{name}_Plate_77")
    folders = {root}

    def put(pixels, well, field, channel, z, t, place):
        where = root / f"TimePoint_{t}" if times else root
        where = where / f"ZStep_{place}" if steps and (place or not database) else where
        folders.update([where, where.parent])
        where.mkdir(parents=True, exist_ok=True)
        stem = f"{name}_{well}" + f"_s{field}" * sites + f"_w{channel}" * waves
        known = (well, field, channel, z, t)
        text = _description(known, positions[field], pixel_size_um, channels[channel - 1], offsets) if tags else None
        for image, thumb in [(pixels, ""), *([(pixels[::4, ::4], "_thumb")] if thumbs else [])]:
            end = _guid(stem, known, place, thumb) if database else ""
            tifffile.imwrite(where / f"{stem}{thumb}{end}{suffix}", image, description=text, metadata=None)

    for (well, field, channel, z, t), pixels in planes.items():
        if channel in repeated:
            for place in range(0 if projected else 1, count + 1):
                put(pixels, well, field, channel, z, t, place)
        else:
            put(pixels, well, field, channel, z, t, z if steps else 0)
    for channel in projected:
        stacks = {}
        for (well, field, c, _, t), pixels in planes.items():
            if c == channel:
                stacks.setdefault((well, field, t), []).append(pixels)
        for (well, field, t), stack in stacks.items():
            put(np.max(stack, axis=0), well, field, channel, 0, t, 0)
    if index:
        text = index_text(planes, shape=shape, channels=channels, projected=bool(projected), sites=sites, waves=waves)
        for key, value in (declared or {}).items():
            text = replace_line(text, key, value)
        for where in folders:
            (where / f"{name}.HTD").write_bytes(text.encode("latin-1"))
    return root


def index_text(planes, *, shape, channels, projected=False, sites=True, waves=True):
    """An .HTD as MetaXpress writes it."""
    wells = {key[0] for key in planes}
    fields, times, steps = (len({key[i] for key in planes}) for i in (1, 4, 3))
    lines = [
        '"HTSInfoFile", Version 1.0',
        '"Description", "63x, 0.65 \xb5m"',
        f'"TimePoints", {times}',
        f'"ZSeries", {_flag(steps > 1)}',
        f'"ZSteps", {steps}',
        f'"ZProjection", {_flag(projected)}',
        f'"XWells", {shape[1]}',
        f'"YWells", {shape[0]}',
    ]
    for row in range(shape[0]):
        row_wells = ", ".join(_flag(well_name(row, column) in wells) for column in range(shape[1]))
        lines.append(f'"WellsSelection{row + 1}", {row_wells}')
    lines += [f'"Sites", {_flag(sites)}', f'"XSites", {fields}', '"YSites", 1']
    lines.append('"SiteSelection1", ' + ", ".join(["TRUE"] * fields))
    lines += [f'"Waves", {_flag(waves)}', f'"NWavelengths", {len(channels)}']
    lines += [f'"WaveName{i}", "{channel}"' for i, channel in enumerate(channels, 1)]
    lines += [f'"WaveCollect{i}", 1' for i in range(1, len(channels) + 1)]
    return "\r\n".join([*lines, '"UniquePlateIdentifier", "6f0ba473"', '"EndFile"', ""])


def replace_line(text, key, value):
    """The same .HTD with another value of a key; without the key where it is None."""
    lines = [line for line in text.split("\r\n") if not line.startswith(f'"{key}",')]
    return "\r\n".join(lines[:1] + ([f'"{key}", {value}'] if value is not None else []) + lines[1:])


def _flag(value):
    return "TRUE" if value else "FALSE"


def _description(known, position, pixel_size_um, setting, offsets):
    """What MetaXpress writes into a TIFF."""
    well, field, channel, z, t = known
    row, column = parse_well(well)
    properties = {
        "pixel-size-x": "512",
        "spatial-calibration-state": "on",
        "spatial-calibration-x": f"{pixel_size_um:g}",
        "spatial-calibration-y": f"{pixel_size_um:g}",
        "spatial-calibration-units": "um",
        "plane-guid": "{" + _guid(*known) + "}",
        "acquisition-time-local": f"20240305 1{t % 10}:{field % 60:02d}:{channel:02d}.250",
        "stage-position-x": f"{14380 + PITCH_UM * column + position[1]:.6g}",
        "stage-position-y": f"{11240 + PITCH_UM * row + position[0]:.6g}",
        "z-position": f"{9000 + STEP_UM * z:g}",
        "wavelength": f"{400 + 50 * channel}",
        "_IllumSetting_": setting,
    }
    if offsets:
        properties["OffsetFromWellCenterUmX"] = f"{position[1]:g}"
        properties["OffsetFromWellCenterUmY"] = f"{position[0]:g}"
    lines = ['<prop id="Description" type="string" value="Gain: low noise &#38; high well&#13;&#10;"/>']
    lines += ['<prop id="ApplicationName" type="string" value="MetaMorph"/>', "<PlaneInfo>"]
    for key, value in properties.items():
        tag = "custom-prop" if key[0].isupper() else "prop"
        lines.append(f'<{tag} id={quoteattr(key)} type="string" value={quoteattr(value)}/>')
    return "\r\n".join(["<MetaData>", *lines, "</PlaneInfo>", "</MetaData>"]).encode()


def _guid(*known):
    """The same letters for the same image."""
    return str(uuid.UUID(hashlib.md5(repr(known).encode(), usedforsecurity=False).hexdigest())).upper()
