"""Folders whose names say which plane a file holds, in the spelling of many microscopes. Constructed: names as each
software writes them, the pixels are the caller's. Such names hold no position and no pixel size."""

from imagecodecs import jpeg8_encode, png_encode
from tifffile import imwrite

from plateloom.wells import parse_well

NAMES = {
    "plateloom": "{well}_s{field}_w{channel}",
    "bbbc013": "Channel{channel}-{number:02d}-{letter}-{column:02d}",
    "cytation": "{letter}{column}_01_{channel}_{field}Z{z}_{name}_{t:03d}",
    "cytation_roi": "{letter}{column}ROI{field}_01_{channel}_1Z{z}_Confocal {name}_{t:03d}",
    "gen5": "{letter}{column}_{field}Z{z}_{name}_1_{t:03d}_",
    "harmony": "r{row:02d}c{column:02d}f{field:02d}p{z:02d}-ch{channel}sk{t}fk1fl1",
    "yokogawa": "Plate_{well}_T{t:04d}F{field:03d}L01A01Z{z:02d}C{channel:02d}",
    "incell": "{letter} - {column:02d}(fld {field:02d} wv {name} - {name} z {z} time {t} - {t}000ms)",
    "kinetic": "platei3t{t:03d}{well}f{field:02d}d{channel}",
    "evos": "scan_R_p{t}_z{z}_0_{well}f{field:02d}d{channel}",
    "cellomics": "AS_09125_050116030001_{well}f{field:02d}d{channel}",
    "scanr": "{letter}{column}--W{number:05d}--P{field:05d}--Z{z:05d}--T{t:05d}--{name}",
    "generic": "{well}_f{field}_{name}",
}


def write(
    folder,
    planes,
    *,
    pixel_size_um=0.65,
    positions=None,
    shape=(8, 12),
    channels=("DNA", "GFP"),
    layout="harmony",
    suffix=".tif",
):
    """Write each plane into a file of its own.

    Parameters
    ----------
    folder : path
    planes : dict of tuple to ndarray of uint16, shape (Y, X)
        By (well, field, channel, z, t), all but the well counted from 1.
    layout : str
        A key of `NAMES`.
    suffix : str
        ``.tif``, ``.png``, ``.jpg`` (of uint8 only) or any other spelling of them.
    pixel_size_um, positions
        Not in such folders; here so that all layouts are called alike.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for (well, field, channel, z, t), plane in planes.items():
        row, column = parse_well(well)
        name = NAMES[layout].format(
            well=well,
            letter=well.rstrip("0123456789"),
            row=row + 1,
            column=column + 1,
            number=row * shape[1] + column + 1,
            field=field,
            channel=channel,
            name=channels[channel - 1],
            z=z,
            t=t,
        )
        path = folder / (name + suffix)
        if suffix.lower().startswith(".tif"):
            imwrite(path, plane)
        else:
            path.write_bytes((png_encode if suffix.lower() == ".png" else jpeg8_encode)(plane))
