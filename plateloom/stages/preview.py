"""A few fields straight from the microscope's files, corrected and segmented with the present settings: how a person tunes.

Nothing is written but the page. Fields are read, corrected and segmented as by the stages that follow, with one
difference that the page tells: before the plate has run, its flat-fields come from the few fields that are read.
"""

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from plateloom import illumination, quality, report, restoration, segmentation
from plateloom.errors import ConfigError, PlateLayoutError, UnknownMethodError, some_of
from plateloom.illumination import correction
from plateloom.readers import load_reader
from plateloom.registry import load_method
from plateloom.segmentation import unet
from plateloom.stages.conversion import FAILED, describe_source, read_field
from plateloom.stages.sampling import choose_wells
from plateloom.store.flatfields import read_flatfields
from plateloom.store.layout import plate_folder
from plateloom.store.plate import project_volume, read_group

FLATFIELD_FIELDS = 8  # read for a flat-field, those shown included
MEASURED_FIELDS, MEASURED_PX = 2, 320  # that the width of nuclei is estimated from
MOST_FACTOR = 1.6  # of the width that is set to the estimate
SHOWN_PX = 480
STITCHED = (
    "A run stitches the fields of a well, and its thresholds are those of the whole well; here each field has its own, and its edge "
    "cuts cells."
)
SHOWN_METRICS = ("focus_slope", "saturated_fraction", "background", "contrast")


@dataclass(frozen=True, eq=False)
class _Field:
    """One field: corrected pixels float32 (C, Y, X), of kept planes also (C, Z, Y, X), and the channels that it lacks."""

    well: str
    number: int
    image: np.ndarray
    missing: list
    planes: np.ndarray | None = None
    z_step_um: float | None = None


def preview_plate(*, plate, source, reader, settings, places, count, order, contents, variants):
    """Segment a few fields and describe the page that shows them.

    Parameters
    ----------
    plate : str
    source, reader : str
    settings : dict
        The screen's config, and `reader_params`.
    places : list of (str, int or None)
        Wells and fields asked for; a well without a number stands for its first field. Empty: they are chosen.
    count : int
        Fields to choose.
    order : list of str
        Wells to choose first, such as controls.
    contents : dict of str to dict
        By well, `treatment`, `dose`, `unit`, `control` of the plate's map.
    variants : dict of str to dict
        Name of a setting to the section `segmentation` of the config.

    Returns
    -------
    PreviewReport

    Raises
    ------
    ConfigError
        If there is no well or field that was asked for.
    PlateLayoutError
        If the source has no image.
    """
    module = load_reader(reader)
    found = module.scan(source, module.Params(**settings["reader_params"]))
    described = describe_source(found.images, settings)
    by_place = {}
    for one in described.pop("images"):
        by_place.setdefault((one.well, one.field), []).append(one)
    if not by_place:
        raise PlateLayoutError(f"no image in {source!r} matches the reader {reader!r} and its parameters")
    if settings["conversion"]["time"] == "keep":
        raise PlateLayoutError("conversion keeps time points, which are not segmented: choose one")
    shown = _places(by_place, places) if places else choose_places(list(by_place), count, order)
    parameters = {name: settings[name] for name in ("channels", "conversion")} | described

    def read(place):
        one = read_field(place[1], by_place[place], source, reader, parameters)
        if parameters["conversion"]["z"] == "keep" and one["pixels"] is not None:
            one |= {"planes": one["pixels"], "pixels": one["pixels"].max(axis=1)}
        return one

    raw, losses = {}, []
    for place in shown:
        one = read(place)
        if one["status"] == FAILED:
            reasons = "; ".join(row["Reason"] for row in one["rows"] if row["Reason"])
            losses.append(f"{place[0]}, field {place[1]} cannot be read: {reasons}")
        else:
            raw[place] = one
    if not raw:
        raise PlateLayoutError("; ".join(losses))
    kind = next(iter(raw.values()))["pixels"].shape
    for place in [place for place, one in raw.items() if one["pixels"].shape != kind]:
        losses.append(f"{place[0]}, field {place[1]} has another size than {shown[0][0]}, field {shown[0][1]}.")
        del raw[place]
    channels = list(settings["channels"])
    flat, offset, origin = _flatfields(plate, channels, settings["illumination"], raw, by_place, read, kind)
    pixel, chain = described["pixel_size_um"], settings["restoration"]
    fields = []

    def correct(pixels):
        corrected = correction.correct(pixels, flat, offset=offset)
        return restoration.restore_image(corrected, channels, chain, pixel_size_um=pixel)

    for place, one in raw.items():
        field = _Field(*place, correct(one["pixels"]), one["missing"])
        if "planes" in one:
            planes = np.stack([correct(one["planes"][:, z]) for z in range(one["planes"].shape[1])], axis=1)
            step = settings["conversion"]["z_step_um"] or one["z_step_um"]
            field = replace(field, planes=planes, z_step_um=step)
        fields.append(field)
    segmented = {
        name: [_segment(field, channels, chosen, pixel, settings["engine"]["device"]) for field in fields]
        for name, chosen in variants.items()
    }
    widths = _estimate_widths(fields, channels, variants, pixel)
    composite = settings["report"]["composite"] or _shown_channels(channels, next(iter(variants.values())))
    colors = {name: f"#{settings['channels'][name]['color'].lstrip('#')}" for name in composite}
    picked = [channels.index(name) for name in composite]
    windows = [tuple(np.percentile([_middle(field.image[i]) for field in fields], [1, 99.7])) for i in picked]
    rows = {
        name: tuple(
            _tile(
                field,
                {kind: project_volume(image) for kind, image in labels.items()},
                picked,
                list(colors.values()),
                windows,
                pixel,
                contents.get(field.well, {}),
            )
            for field, (labels, _, _) in zip(fields, done, strict=True)
        )
        for name, done in segmented.items()
    }
    return report.PreviewReport(
        screen="",
        plate=plate,
        source=source,
        rows=rows,
        found=_found(fields, segmented, pixel),
        quality=_quality(plate, raw, channels, settings["quality"]["parameters"]),
        quality_note=f"Measured before correction; fields are compared with those on this page only. Flat-fields: {origin}.",
        sizes="; ".join(f"nuclei in {name} look about {width:.3g} µm wide" for name, width in widths.items()),
        notes=tuple(dict.fromkeys(notice for chosen in variants.values() for notice in _notices(chosen)))
        + ((STITCHED,) if settings["conversion"]["layout"] == "stitched" else ()),
        doubts={
            name: _doubts(fields, done, variants[name], pixel, settings, widths) for name, done in segmented.items()
        },
        losses=tuple(losses),
        colors=colors,
        outlines=report.named_colors(["Nuclei", "Cells"]),
        unseen=tuple(name for name in channels if name not in colors),
        parameters={name: chosen for name, chosen in variants.items()},
    )


def choose_places(places, count, order=()):
    """Choose fields spread over wells: first the wells in the order given, then others by a hash; one field of each.

    Parameters
    ----------
    places : list of (str, int)
        Wells and fields that there are.
    count : int
    order : sequence of str, optional

    Returns
    -------
    list of (str, int)

    Examples
    --------
    >>> choose_places([("A01", 1), ("A01", 2), ("A02", 1)], 2, ["A02"])
    [('A02', 1), ('A01', 1)]
    """
    first = {}
    for well, field in sorted(places):
        first.setdefault(well, field)
    others = [well for _, well in choose_wells([("", well) for well in first], len(first))]
    wells = dict.fromkeys([*(well for well in order if well in first), *others])
    return [(well, first[well]) for well in list(wells)[:count]]


def _places(by_place, asked):
    """The places asked for, each with its field; refused where they are not there."""
    fields = {}
    for well, field in sorted(by_place):
        fields.setdefault(well, []).append(field)
    places, problems = [], []
    for well, field in asked:
        if well not in fields:
            problems.append(f"there is no well {well}; there are {some_of(fields, 20)}")
        elif field is not None and field not in fields[well]:
            problems.append(f"well {well} has no field {field}; it has {some_of(fields[well], 20)}")
        else:
            places.append((well, fields[well][0] if field is None else field))
    if problems:
        raise ConfigError([f"--wells: {problem}" for problem in problems])
    return list(dict.fromkeys(places))


def _flatfields(plate, channels, settings, raw, by_place, read, kind):
    """Flat-fields (C, Y, X), the camera's offset, and where they come from in words."""
    path = plate_folder(plate) / "illumination.zarr"
    found = read_group(path) or {}
    made = found.get("plateloom", {}).get("fingerprint")
    module = load_method(illumination.METHODS, settings["method"], "illumination method")
    params = module.Params(**settings["parameters"])
    if made and set(channels) <= set(found["channels"]) and _recipe_of(found) == (settings["method"], params):
        flat, offset = read_flatfields(path, channels, made)
        if flat.shape[1:] == kind[1:]:
            return flat, offset, "those of the plate's last run"
    if hasattr(module, "evaluate"):
        return np.ones(kind, np.float32), 0.0, "none yet; the vendor's are read when the plate is converted"
    planes = [one["pixels"] for one in raw.values()]
    wanted = max(FLATFIELD_FIELDS, getattr(params, "min_fields", 0))
    for place in choose_places(list(by_place), wanted):
        if len(planes) >= wanted:
            break
        if place not in raw and (one := read(place))["status"] != FAILED and one["pixels"].shape == kind:
            planes.append(one["pixels"])
    found = [
        module.estimate(np.stack([module.shrink(image[c], params) for image in planes]), kind[1:], params)
        for c in range(len(channels))
    ]
    said = [
        f"{name} is not corrected here: {reason}" for name, (_, reason) in zip(channels, found, strict=True) if reason
    ]
    origin = f"from {len(planes)} fields, a run takes up to {settings['fields']}"
    offset = getattr(params, "camera_offset", None) or 0.0
    return np.stack([flat for flat, _ in found]), offset, "; ".join([origin, *said])


def _recipe_of(found):
    """Method and parameters that stored flat-fields were made by; None where these are not known any more."""
    made = found["plateloom"].get("parameters", {})
    try:
        module = load_method(illumination.METHODS, made.get("method"), "illumination method")
        return made["method"], module.Params(**made["parameters"])
    except (KeyError, ValueError, UnknownMethodError):
        return None


def _segment(field, channels, chosen, pixel_size_um, device):
    """Labels, why there are none, and seconds."""
    needed = segmentation.needed_channels(chosen["method"], chosen["parameters"])
    if lacking := sorted(needed & set(field.missing)):
        return {}, f"needs {', '.join(lacking)}, which this field lacks", math.nan
    if misfits := segmentation.find_misfits(chosen["method"], chosen["parameters"], pixel_size_um=pixel_size_um):
        return {}, f"cannot work here: {'; '.join(misfits)}", math.nan
    options = {"method": chosen["method"], "params": chosen["parameters"], "pixel_size_um": pixel_size_um}
    started = time.monotonic()
    if misfit := segmentation.explain_planes(chosen["method"], field.planes is not None):
        return {}, misfit, math.nan
    if field.planes is None:
        labels = segmentation.segment_image(field.image, channels, device=device, **options)
    elif field.z_step_um is None:
        return {}, "the files do not say how far the z planes lie apart; set conversion.z_step_um", math.nan
    else:
        labels = segmentation.segment_volume(field.planes, channels, z_step_um=field.z_step_um, **options)
    return labels, "", time.monotonic() - started


def _shown_channels(channels, chosen):
    """The channels that the segmentation looks at, and others up to three."""
    needed = segmentation.needed_channels(chosen["method"], chosen["parameters"])
    named = [name for key, name in chosen["parameters"].items() if key.endswith("_channel")]
    used = [name for name in [*named, *sorted(needed)] if name in channels]
    return list(dict.fromkeys([*used, *channels]))[:3]


def _middle(plane):
    """The middle of a plane."""
    return plane[tuple(slice(max(0, (n - SHOWN_PX) // 2), (n + SHOWN_PX) // 2) for n in plane.shape[-2:])]


def _tile(field, labels, picked, colors, windows, pixel_size_um, content):
    picture = np.stack([_middle(field.image[i]) for i in picked])
    outlines = {name: _middle(labels[name]) for name in ("Cells", "Nuclei") if name in labels}
    return report.Tile(
        well=field.well,
        picture=report.composite_image(picture, colors, windows),
        outlines=report.outline_layer(outlines) if outlines else None,
        caption=f"field {field.number}, "
        + (f"{field.planes.shape[1]} planes seen from above, " if field.planes is not None else "")
        + (_counted(int(labels["Nuclei"].max())) if labels else "not segmented"),
        width_um=picture.shape[2] * pixel_size_um,
        **{name: content[name] for name in ("treatment", "dose", "unit", "control") if name in content},
    )


def _counted(number):
    return f"{number:,} {'nucleus' if number == 1 else 'nuclei'} in all of it"


def _sizes(labels, pixel_size_um, z_step_um):
    """Diameters of nuclei [µm] and areas of their cells [µm²], of volumes volumes [µm³], by label."""
    count = int(labels["Nuclei"].max()) if labels else 0
    if not count:
        return np.zeros(0), np.zeros(0)
    nuclei, cells = (np.bincount(labels[name].ravel(), minlength=count + 1)[1:] for name in ("Nuclei", "Cells"))
    cells = np.where(cells > 0, cells, np.nan) * pixel_size_um**2
    if labels["Nuclei"].ndim == 3:
        return np.cbrt(6 / math.pi * nuclei * pixel_size_um**2 * z_step_um), cells * z_step_um
    return 2 * np.sqrt(nuclei / math.pi) * pixel_size_um, cells


def _found(fields, segmented, pixel_size_um):
    """One row per setting and field."""
    rows = []
    for name, done in segmented.items():
        for field, (labels, reason, seconds) in zip(fields, done, strict=True):
            diameters, areas = _sizes(labels, pixel_size_um, field.z_step_um)
            rows.append(
                ({"setting": name} if len(segmented) > 1 else {})
                | {
                    "Metadata_Well": field.well,
                    "Metadata_Field": field.number,
                    "nuclei": len(diameters),
                    "nucleus [µm]": float(np.median(diameters)) if len(diameters) else math.nan,
                    "nucleus, 5 % to 95 % [µm]": "{:.1f}–{:.1f}".format(*np.percentile(diameters, [5, 95]))
                    if len(diameters)
                    else "",
                    f"cell [µm{'²' if field.planes is None else '³'}]": float(np.nanmedian(areas))
                    if np.isfinite(areas).any()
                    else math.nan,
                    "nuclei at border": _at_border(labels),
                    "time [s]": round(seconds, 2),
                    "note": reason,
                }
            )
    return pd.DataFrame(rows)


def _at_border(labels):
    """Nuclei that the edge of the field cuts."""
    if not labels:
        return 0
    image = np.moveaxis(labels["Nuclei"], (-2, -1), (0, 1))
    edge = [image[0], image[-1], image[:, 0], image[:, -1]]
    return len(np.setdiff1d(np.concatenate([side.ravel() for side in edge]), [0]))


def _parameters(chosen):
    """Method of a setting's segmentation, and its parameters."""
    module = load_method(segmentation.METHODS, chosen["method"], "segmentation method")
    return module, module.Params(**chosen["parameters"])


def _notices(chosen):
    """What a person must know before using a method."""
    module, params = _parameters(chosen)
    return module.notices(params) if hasattr(module, "notices") else []


def _estimate_widths(fields, channels, variants, pixel_size_um):
    """Width of a typical nucleus [µm] by channel, whatever the settings say; only where there are nuclei to be seen."""
    found = {}
    for chosen in variants.values():
        params = _parameters(chosen)[1]
        name = getattr(params, "nuclei_channel", None)
        if name not in channels or name in found or not hasattr(params, "nucleus_diameter_um"):
            continue
        seen = [_middle(field.image[channels.index(name)]) for field in fields if name not in field.missing]
        sizes = [size for size in map(unet.estimate_diameter, seen[:MEASURED_FIELDS]) if size]
        if sizes:
            found[name] = float(np.median(sizes)) * pixel_size_um
    return found


def _quality(plate, raw, channels, parameters):
    """Metrics and flags of the raw planes."""
    rows, level = [], parameters.get("saturation_level")
    for (well, field), one in raw.items():
        for c, channel in enumerate(channels):
            measured = dict.fromkeys(quality.METRICS, np.nan)
            if channel not in one["missing"]:
                measured = quality.measure_plane(one["pixels"][c], saturation_level=level)
            keys = {"Metadata_Plate": plate, "Metadata_Well": well, "Metadata_Field": field, "SourceField": field}
            rows.append(keys | {"Channel": channel} | measured)
    flagged = quality.flag_fields(pd.DataFrame(rows), quality.Params(**parameters))
    return flagged[["Metadata_Well", "Metadata_Field", "Channel", *SHOWN_METRICS, "Reason"]].rename(
        columns={"Channel": "channel", "Reason": "flags"}
    )


def _doubts(fields, done, chosen, pixel_size_um, settings, widths):
    """What makes a setting's result implausible."""
    params = _parameters(chosen)[1]
    pairs = [(labels, field) for field, (labels, _, _) in zip(fields, done, strict=True) if labels]
    sizes = [_sizes(labels, pixel_size_um, field.z_step_um) for labels, field in pairs]
    flat = all(field.planes is None for _, field in pairs)
    typical, reach = getattr(params, "nucleus_diameter_um", None), getattr(params, "cells_distance_um", None)
    # Without a channel that shows cells the limit is what a cell is: a ring round the nucleus.
    reach = reach if getattr(params, "cells_channel", None) else None
    if reach is None and typical and getattr(params, "cells_channel", None):
        reach = 2.5 * typical
    said = report.doubt_segmentation(
        np.concatenate([one[0] for one in sizes]) if sizes else [],
        np.concatenate([one[1] if flat else np.full(len(one[1]), np.nan) for one in sizes]) if sizes else [],
        [len(one[0]) for one in sizes],
        nucleus_um=typical,
        limits_um=getattr(params, "diameters_um", None),
        reach_um=reach,
    )
    text = report.doubt_pixel_size(pixel_size_um, settings["conversion"]["pixel_size_um"])
    reasons = dict.fromkeys(reason for _, reason, _ in done) if not sizes else ()
    width = widths.get(getattr(params, "nuclei_channel", None))
    if typical and width and not 1 / MOST_FACTOR <= typical / width <= MOST_FACTOR:
        said.insert(
            0,
            f"Nuclei look about {width:.3g} µm wide (an estimate that no setting enters), but segmentation.parameters.nucleus_diameter_um "
            f"is {typical:g}: try nucleus_diameter_um={width:.3g}.",
        )
    return [*filter(None, [text]), *(f"no field is segmented: {reason}" for reason in reasons), *said]
