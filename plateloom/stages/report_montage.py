"""Pictures of fields on a plate's page."""

import numpy as np
import pandas as pd

from plateloom import report
from plateloom.stages.illumination import read_corrected, tile_window, usable_tiles
from plateloom.stages.sampling import choose_wells
from plateloom.store import plate as store
from plateloom.store.layout import plate_folder, plate_store

MONTAGE_PX = 480
FLAGGED_PX = 320
CLEAN_FIELDS = 5  # that say how bright a channel is


def describe_montage(plate, wells, settings, exclusions, flagged, length_unit):
    """Pictures of some fields with the outlines of nuclei and cells, and the colors of their channels.

    Parameters
    ----------
    plate : str
    wells : DataFrame
        `Metadata_CellCount` is NaN where it is not known.
    settings : dict
        Of the page.
    exclusions, flagged : DataFrame
        Fields that are lost, and that quality control has flagged.
    length_unit : str
        Of the scale bar: 'px' where the pixel size is doubted.

    Returns
    -------
    list of Tile
        Empty if no field can be shown.
    dict of str to str
        Color of each channel.
    """
    channels = settings["channels"]
    names = settings["report"]["composite"] or list(channels)[:3]
    colors = {name: f"#{channels[name]['color'].lstrip('#')}" for name in names}
    images = usable_tiles(plate, list(wells["Metadata_Well"]))
    flagged = flagged[["Metadata_Well", "SourceField", "Reason"]].drop_duplicates(["Metadata_Well", "SourceField"])
    bad = set(zip(flagged["Metadata_Well"], flagged["SourceField"], strict=True))
    failed = exclusions[exclusions["what"].isin(["failed", "unlike the plate", "not segmented"])]
    chosen = report.choose_tiles(
        wells,
        settings["report"]["montage_wells"],
        flagged=list(flagged.itertuples(index=False, name=None)),
        failed=list(failed[["Metadata_Well", "Metadata_Field", "reason"]].itertuples(index=False, name=None)),
        order=[well for _, well in choose_wells([("", well) for well in wells["Metadata_Well"]], len(wells))],
    )
    known = wells.set_index("Metadata_Well", drop=False)
    shown = []
    for name, field, why in chosen:
        fields = {other: image for (well, other), image in images.items() if well == name}
        if field is None:
            better = [other for other in fields if (name, other) not in bad] or list(fields)
            field = next(
                (other for other in better if _is_segmented(plate, name, fields[other])), better[0] if better else None
            )
        if field is None:
            continue
        crop = _crop(plate, name, fields[field], field, names) if field in fields else None
        shown.append((known.loc[name], field, why, crop))
    clean = [crop["image"] for well, field, _, crop in shown if crop and (well["Metadata_Well"], field) not in bad]
    clean = clean or [crop["image"] for *_, crop in shown if crop]
    if not clean:
        return [], {}
    windows = [tuple(np.percentile([image[i] for image in clean], [1, 99.7])) for i in range(len(names))]
    tiles = []
    for well, field, why, crop in shown:
        picture = outlines = None
        if crop:
            picture = report.composite_image(crop["image"], list(colors.values()), windows)
            outlines = report.outline_layer(crop["labels"]) if crop["labels"] else None
        tiles.append(
            report.Tile(
                well=well["Metadata_Well"],
                picture=picture,
                outlines=outlines,
                treatment=well["Metadata_Treatment"] or "",
                dose=float(well["Metadata_Dose"]),
                unit=well["Metadata_Unit"] or "",
                cells=int(well["Metadata_CellCount"]) if np.isfinite(well["Metadata_CellCount"]) else None,
                control=well["Metadata_Control"],
                caption=f"field {field}" + (f", {crop['part']}" if crop else ""),
                why=why,
                width_um=crop["width_um"] if crop else float("nan"),
                length_unit=length_unit,
            )
        )
    return tiles, colors


def picture_flagged(plate, wells, settings, flagged, quality, length_unit):
    """Pictures of fields that quality control has flagged, as they were imaged.

    Parameters
    ----------
    plate, wells, settings, length_unit
        As for `describe_montage`.
    flagged, quality : DataFrame
        Rows of ``qc.parquet``: those flagged, and all.

    Returns
    -------
    list of Tile
        One per field, in the first of its channels that is flagged; of many each kind of flag has as many as the others.
    """
    tiles = usable_tiles(plate, list(wells["Metadata_Well"]))
    first = flagged.drop_duplicates(["Metadata_Well", "SourceField"])
    there = [key in tiles for key in zip(first["Metadata_Well"], first["SourceField"], strict=True)]
    first = first.loc[np.array(there, bool)]
    kinds = first["Reason"].str.split(":").str[0]
    order = pd.DataFrame({"turn": first.groupby(kinds).cumcount(), "kind": kinds}).sort_values(["turn", "kind"]).index
    chosen = first.loc[order[: settings["report"]["flagged_pictures"]]].sort_values(["Metadata_Well", "SourceField"])
    known, windows, pictures = wells.set_index("Metadata_Well"), {}, []
    for row in chosen.to_dict("records"):
        well, field, channel = row["Metadata_Well"], row["SourceField"], row["Channel"]
        if channel not in windows:
            good = quality[(quality["Channel"] == channel) & (quality["Reason"] == "")]
            keys = [key for key in zip(good["Metadata_Well"], good["SourceField"], strict=True) if key in tiles]
            some = keys[:: -(-len(keys) // CLEAN_FIELDS)] if keys else [(well, field)]
            planes = [_plane(plate, *key, tiles[key], channel)[0] for key in some]
            windows[channel] = tuple(np.percentile([np.percentile(plane, [1, 99.7]) for plane in planes], 50, axis=0))
        blurred = row["Reason"].startswith("blurred") and ";" not in row["Reason"]
        pixels, width_um = _plane(plate, well, field, tiles[well, field], channel, middle=blurred)
        pictures.append(
            report.Tile(
                well=well,
                picture=report.composite_image(pixels[None], ["#ffffff"], [windows[channel]]),
                treatment=known["Metadata_Treatment"][well] or "",
                dose=float(known["Metadata_Dose"][well]),
                unit=known["Metadata_Unit"][well] or "",
                control=known["Metadata_Control"][well],
                caption=f"field {field}, {channel}, {'the middle' if blurred else 'all'} of it",
                why=row["Reason"],
                width_um=width_um,
                length_unit=length_unit,
            )
        )
    return pictures


def _plane(plate, well, field, image, channel, *, middle=False):
    """A channel of a field, not corrected: its middle, or all of it, no finer than a picture needs; and its width [µm]."""
    path = store.field_path(plate_store(plate), well, image)
    described = store.describe_image(path)
    spans = _spans(path, field)
    level = 0
    if middle:
        spans = [(max(a, (a + b - FLAGGED_PX) // 2), min((a + b + FLAGGED_PX) // 2, b)) for a, b in spans]
    else:
        while level + 1 < described["levels"] and spans[1][1] - spans[1][0] >> level + 1 >= FLAGGED_PX:
            level += 1
    window = tuple(slice(a >> level, b >> level) for a, b in spans)
    position = described["channels"].index(channel)
    pixels = store.read_image(path, channels=[position], window=window, level=level, z="max")[0]
    return pixels.astype(np.float32), (spans[1][1] - spans[1][0]) * described["pixel_size_um"]


def _spans(path, field):
    """First and last row and column of a field on its image."""
    shape = store.image_shape(path)[-2:]
    return [part.indices(size)[:2] for part, size in zip(tile_window(path, field), shape, strict=True)]


def _is_segmented(plate, well, field):
    return store.read_group(store.field_path(plate_store(plate), well, field) / "labels") is not None


def _crop(plate, well, image, field, channels):
    """The central part of a field: pixels, labels (empty if it was not segmented), what part it is, and its width [µm]."""
    path = store.field_path(plate_store(plate), well, image)
    spans = _spans(path, field)
    shape = [last - first for first, last in spans]
    window = tuple(
        slice(max(first, (first + last - MONTAGE_PX) // 2), min((first + last + MONTAGE_PX) // 2, last))
        for first, last in spans
    )
    height, width = (part.stop - part.start for part in window)
    labels = {}
    if _is_segmented(plate, well, image):
        labels = {kind: store.project_labels(path, kind, window=window) for kind in ("Nuclei", "Cells")}
    whole, described = [height, width] == shape, store.describe_image(path)
    planes = described["shape"][described["axes"].index("z")] if "z" in described["axes"] else 0
    return {
        "image": _pixels(plate, well, image, channels, window),
        "labels": labels,
        "part": (f"all {width} × {height} px" if whole else f"central {width} × {height} of {shape[1]} × {shape[0]} px")
        + (f", {planes} planes seen from above" if planes else ""),
        "width_um": width * described["pixel_size_um"],
    }


def _pixels(plate, well, field, channels, window):
    """Corrected pixels of a window; a channel that the field lacks is black."""
    flatfield = store.read_group(plate_folder(plate) / "illumination.zarr")["plateloom"]["fingerprint"]
    return read_corrected(plate, well, field, flatfield, channels=channels, window=window)
