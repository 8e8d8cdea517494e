"""Crops of cells of the screen -> encoder; every cell -> its latent columns, well by well."""

import contextlib
import functools
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from plateloom.devices import choose_device
from plateloom.engine import parts as engine
from plateloom.engine.parts import Outcome, Unit, remover, run_job
from plateloom.errors import ModelMismatchError, PlateLayoutError
from plateloom.latent import METHODS
from plateloom.registry import load_method, log_notices
from plateloom.stages.cell_crops import cut_crops, describe_first, same_channels
from plateloom.stages.illumination import mosaic_of
from plateloom.stages.mosaics import find_centers, source_fields
from plateloom.stages.novelty import ERROR
from plateloom.stages.ranges import choose_range_fields, measure_range
from plateloom.stages.sampling import inputs_of, sample_rows, wells_to_learn_from
from plateloom.store import plate as store
from plateloom.store.crops import CropShards, count_crops, read_crops, write_crops
from plateloom.store.layout import model_folder, plate_folder, plate_store, well_table
from plateloom.store.provenance import check_weights, file_digest, read_json, recipe, write_bytes, write_json
from plateloom.store.tables import read_table

log = logging.getLogger(__name__)
KEPT_ERRORS = 2000  # of held-out cells, in the model's card
RANGE_CROPS = 2000  # that the screen's range of intensities is taken from, at most eight of a well
EXAMPLES = 12  # held-out cells shown on the page, and as many of those that are restored worst


def train_screen(*, plates, settings, code, segmented, illuminated, flagged, record, missing=()):
    """Train the encoder on crops drawn evenly over wells; whole wells are held out to test it.

    Parameters
    ----------
    plates : list of str
        Plates that are complete.
    settings : dict
        The config's section `latent.autoencoder`, without what is done with the errors.
    code : str
    segmented, illuminated, flagged : list of str
        Records of all plates.
    missing : list of str
        Plates that are not complete, which the record names.
    record : str
    """
    folder = model_folder("autoencoder")

    def plan(inputs):
        chosen = [plate for plate in plates if not settings["plates"] or plate in settings["plates"]]
        flatfields = {
            found["plate"]: found["artefacts"]["illumination"]
            for found in inputs["illuminated"]
            if found["status"] == "done"
        }
        wells = wells_to_learn_from(inputs["segmented"], plates=chosen, count=settings["wells"])
        if len(wells) < 2:
            raise PlateLayoutError("fewer than two wells are complete, so nothing can be held out")
        fields, made_from = {}, inputs_of(wells)
        for plate in sorted({well["plate"] for well in wells}) if settings["normalize"] == "plate" else ():
            found, inputs_of_range = choose_range_fields(plate)
            fields[plate] = tuple(found)
            made_from |= inputs_of_range
        made = recipe("autoencoder", parameters=settings, code=code, inputs=made_from)
        work = lambda: _train(folder, wells, flatfields, fields, settings, made)  # noqa: E731
        return [Unit("autoencoder", folder / "model.json", made, work, beside=(folder / "model.safetensors",))]

    run_job(
        "autoencoder",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={"segmented": segmented, "illuminated": illuminated, "flagged": flagged},
        strict=False,
        facts={"missing": sorted(missing)},
    )


def _train(folder, wells, flatfields, fields, settings, made):
    """Draw crops through Dask, train with a checkpoint per epoch, save; the unit of `train_screen`."""
    import torch
    from safetensors.torch import load_file, save

    from plateloom.latent import network
    from plateloom.latent.crops import normalize_crops

    module = load_method(METHODS, settings["method"], "latent method")
    params = module.Params(**settings["parameters"])
    log_notices(module, params)
    work = folder / f".work-{made['fingerprint']}"
    for old in folder.glob(".work-*"):
        if old != work:
            shutil.rmtree(old)
    work.mkdir(parents=True, exist_ok=True)
    quota = -(-settings["cells"] // len(wells))
    counts = yield [
        (
            crop_well,
            well["plate"],
            well["well"],
            well["fingerprint"],
            well["excluded"],
            flatfields[well["plate"]],
            quota,
            settings["crop_um"],
            params.side_px,
            str(work),
            settings["mask"],
        )
        for well in wells
    ]
    held = max(1, round(settings["holdout"] * len(wells)))
    drawn = {"holdout": wells[:held], "train": wells[held:]}
    if not sum(counts[held:]):
        raise PlateLayoutError("no cell to train on")
    channels = same_channels(sorted({well["plate"] for well in wells}))
    shape = len(channels), params.side_px, params.side_px
    if fields:
        named = [(plate, chosen, flatfields[plate], tuple(channels)) for plate, chosen in fields.items()]
        measured = yield [(measure_range, *one) for one in named]
        ranges = {plate: found for (plate, *_), found in zip(named, measured, strict=True)}
    else:
        ranges = dict.fromkeys({well["plate"] for well in wells}, _range_of(work, drawn["train"], shape))
    sets, private = {}, engine.EXECUTION.private_folder(work)  # of what is read at random in every epoch
    with contextlib.ExitStack() as closing:
        for name, members in drawn.items():
            sets[name] = closing.enter_context(CropShards(private / name, shape))
            for well in members:
                for crops in read_crops(_crops_path(work, well), shape):
                    sets[name].append(normalize_crops(crops, *ranges[well["plate"]]))
        device = choose_device(engine.EXECUTION.device)
        torch.set_num_threads(engine.EXECUTION.threads)
        checkpoint = work / "checkpoint.safetensors"
        resumed = load_file(checkpoint) if checkpoint.exists() else None

        def on_epoch(state, history):
            write_bytes(checkpoint, save(state))
            log.info("epoch %(epoch)d: train %(train).4f, held out %(holdout).4f", history[-1])

        if hasattr(module, "fit"):
            check_weights(settings.get("weights", {}))
            try:
                trained = module.fit(sets["train"], params=params, device=device, holdout=sets["holdout"])
            except ModelMismatchError as error:  # what a person gave is wrong, and stays so
                raise PlateLayoutError(str(error)) from error
            check_weights(settings.get("weights", {}))
        else:
            trained = network.train(
                sets["train"], params=params, device=device, holdout=sets["holdout"], resume=resumed, on_epoch=on_epoch
            )
        model, held_out = trained.model, sets["holdout"]
        errors, pictures, pca = [], {}, None
        if model.reconstructs:
            errors, pictures = _restore(model, held_out)
            pca = network.pca_loss(model, sets["train"], held_out if len(held_out) else sets["train"])
        cells = {name: len(crops) for name, crops in sets.items()}
    write_bytes(folder / "examples.safetensors", save(pictures))
    config, tensors = network.to_tensors(model)
    data = save(tensors)
    write_bytes(folder / "model.safetensors", data)
    low, high = ranges[wells[held]["plate"]] if not fields else (None, None)
    card = {
        "plateloom": made,
        "config": config,
        "content": file_digest(data),
        "weights": settings.get("weights", {}),
        "channels": channels,
        "crop_um": settings["crop_um"],
        "mask": settings["mask"],
        "normalize": settings["normalize"],
        "low": low,
        "high": high,
        "history": trained.history,
        "baseline": trained.baseline if trained.history else None,
        "pca": pca,
        "found": trained.facts,
        "held_out_errors": [float(f"{error:.6g}") for error in errors],
        "wells": {name: [f"{well['plate']}/{well['well']}" for well in members] for name, members in drawn.items()},
        "cells": cells,
        "versions": engine.versions(),
    }
    write_json(folder / "model.json", card)
    shutil.rmtree(work)
    errors = {"pca_error": pca}
    if trained.history:
        errors |= {"held_out_error": trained.history[-1]["holdout"], "mean_crop_error": trained.baseline}
    return Outcome(
        facts={
            "device": device,
            "method": settings["method"],
            "epochs": len(trained.history),
            "resumed_after_epoch": 0 if resumed is None else len(resumed["history"]),
            "cells": cells,
        }
        | {name: error for name, error in errors.items() if error is not None}
        | trained.facts
    )


def _restore(model, crops):
    """Errors of some crops, in their order, and pictures of a few and of the worst: each as it is, and restored."""
    import torch

    from plateloom.latent import network

    chosen = np.linspace(0, len(crops) - 1, min(KEPT_ERRORS, len(crops))).round().astype(int)
    errors = network.encode_with_errors(model, crops[chosen])[1]
    shown = {
        "pairs": chosen[:: max(1, len(chosen) // EXAMPLES)][:EXAMPLES],
        "worst": chosen[np.argsort(-errors, kind="stable")[:EXAMPLES]],
    }
    pictures = {}
    for name, numbers in shown.items():
        some = crops[numbers].astype(np.float32)
        pictures[name] = torch.from_numpy(np.stack([some, network.reconstruct(model, some)]).astype(np.float16))
    return errors, pictures


def crop_well(plate, well, made, excluded, flatfield, quota, crop_um, side_px, folder, mask="none"):
    """Cut out some cells of a well and leave them in a file; runs in a worker.

    Returns
    -------
    int
        Number of cells.
    """
    path = _crops_path(folder, {"plate": plate, "well": well})
    shape = len(_channels_of_plate(plate)), side_px, side_px
    if path.exists():  # drawn before the job was interrupted; the folder's name holds the recipe
        return count_crops(path, shape)
    fields = read_table(well_table(plate, "segmentation", well))
    fields = fields[fields["Status"] == "done"]
    cells = []
    for field, count in zip(fields["Metadata_Field"].astype(int), fields["Count_Nuclei"].astype(int), strict=True):
        cells.append((field, _cells_to_learn_from(plate, well, field, count, made, excluded)))
    chosen = sample_rows(f"{plate}/{well}", sum(len(found) for _, found in cells), quota)

    def blocks():
        before = 0
        for field, found in cells:
            mine = found[chosen[(chosen >= before) & (chosen < before + len(found))] - before]
            before += len(found)
            path_of_field = store.field_path(plate_store(plate), well, field)
            if not len(mine) or store.describe_image(path_of_field)["missing"]:
                continue  # a black channel is nothing to learn from
            values, centers = find_centers(path_of_field, made)
            where = {"flatfield": flatfield, "made": made, "mask": mask, "crop_um": crop_um, "side_px": side_px}
            for _, crops in cut_crops(plate, well, field, values[mine], centers[mine], **where):
                yield crops

    return write_crops(path, blocks())


def _cells_to_learn_from(plate, well, image, count, made, excluded):
    """Places of an image's cells, among all of them, that do not lie on a field that QC has flagged."""
    path = store.field_path(plate_store(plate), well, image)
    if excluded and mosaic_of(path) is not None:
        _, centers = find_centers(path, made)
        return np.flatnonzero(~np.isin(source_fields(path, image, centers), excluded))
    return np.arange(0 if image in excluded else count)


def _crops_path(folder, well):
    return Path(folder) / f"{well['plate']}-{well['well']}.crops"


def _range_of(folder, wells, shape):
    """Range of the screen's channels, from a few crops of each well: two lists of float."""
    from plateloom.latent.crops import intensity_range

    each = max(1, min(8, RANGE_CROPS // len(wells)))
    some = [crops for well in wells[:RANGE_CROPS] for crops in read_crops(_crops_path(folder, well), shape, each)]
    return tuple(value.tolist() for value in intensity_range(np.concatenate(some)))


@functools.cache
def _channels_of_plate(plate):
    return describe_first(plate)[0]


def encode_part(*, plate, part, parts, settings, code, trained, segmented, illuminated, flagged, record):
    """Encode the cells of a part's wells.

    Parameters
    ----------
    plate : str
    part, parts : int
    settings : dict
        `crop_um` and `normalize` of the config's section.
    code : str
    trained, segmented, illuminated : str
        Records.
    flagged : list of str
        Record of QC's flags, where each plate is normalized by itself.
    record : str
    """

    def plan(inputs):
        model = inputs["trained"]["artefacts"]["autoencoder"]
        flatfield = inputs["illuminated"]["artefacts"]["illumination"]
        fields, made_from = choose_range_fields(plate) if settings["normalize"] == "plate" else ((), {})
        return [
            _unit(plate, well, labels, flatfield, model, tuple(fields), made_from, settings, code)
            for well, labels in inputs["segmented"]["artefacts"].items()
        ]

    run_job(
        "latent",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={"trained": trained, "segmented": segmented, "illuminated": illuminated, "flagged": flagged},
        plate=plate,
        part=part,
        parts=parts,
        remove=remover(plate_folder(plate) / "latent", part=part, parts=parts),
    )


def _unit(plate, well, labels, flatfield, model, ranged, made_from, settings, code):
    inputs = {"labels": labels, "illumination": flatfield, "model": model} | made_from
    made = recipe("latent", parameters=settings, code=code, inputs=inputs)

    def work():
        fields = read_table(well_table(plate, "segmentation", well), ["Metadata_Field", "Status"])
        fields = fields.loc[fields["Status"] == "done", "Metadata_Field"].astype(int)
        device = engine.EXECUTION.device
        stretch = None
        if ranged:  # here, in the job's own process: every worker would measure all of it once more
            stretch = measure_range(plate, ranged, flatfield, tuple(_read_card(model)["channels"]))
        tables = yield [
            (encode_field, plate, well, field, flatfield, labels, model, device, stretch) for field in [*fields, None]
        ]
        return Outcome(pd.concat([table for table in tables if len(table)] or tables[-1:], ignore_index=True))

    return Unit(well, well_table(plate, "latent", well), made, work)


def encode_field(plate, well, field, flatfield, made, fingerprint, policy, stretch=None):
    """Latent columns of one field's cells; runs in a worker. Field None gives a table without rows.

    `stretch` is the range that intensities are taken in, two sequences of float of length C; None: that of the model's card.
    The last column, `ERROR`, says how badly a cell is reconstructed; a method that reconstructs nothing has no such one.
    """
    from plateloom.latent import network
    from plateloom.latent.crops import normalize_crops

    model, card = load_autoencoder(fingerprint, choose_device(policy))
    values, centers = np.zeros(0, np.int64), np.zeros((0, 2))
    if field is not None:
        path = store.field_path(plate_store(plate), well, field)
        values, centers = find_centers(path, made)
    latent = np.full((len(values), card["config"]["latent_dim"]), np.nan, np.float32)
    errors = np.full(len(values), np.nan, np.float32)
    if len(values) and not store.describe_image(path)["missing"]:  # a latent vector needs every channel
        low, high = stretch or (card["low"], card["high"])
        where = {"flatfield": flatfield, "made": made, "channels": card["channels"], "crop_um": card["crop_um"]}
        where |= {"mask": card.get("mask", "none"), "side_px": model.side_px}
        for numbers, crops in cut_crops(plate, well, field, values, centers, **where):
            latent[numbers], found = network.encode_with_errors(model, normalize_crops(crops, low, high))
            errors[numbers] = np.nan if found is None else found
    columns = [f"Latent_{model.config['method'].capitalize()}_{i:02d}" for i in range(latent.shape[1])]
    keys = pd.DataFrame(
        {
            "Metadata_Plate": pd.Series([plate] * len(values), dtype="str"),
            "Metadata_Well": pd.Series([well] * len(values), dtype="str"),
            "Metadata_Field": np.full(len(values), field or 0, np.int64),
            "Metadata_ObjectNumber": values.astype(np.int64),
        }
    )
    table = keys.join(pd.DataFrame(latent, columns=columns))
    return table.assign(**{ERROR: errors}) if model.reconstructs else table


@functools.lru_cache(maxsize=1)
def load_autoencoder(fingerprint, device="cpu"):
    """The screen's encoder and its card, if it is the one expected.

    Raises
    ------
    ModelMismatchError
        If another model lies there, or its file was altered.
    """
    from safetensors.torch import load

    from plateloom.latent import network

    folder, card = model_folder("autoencoder"), _read_card(fingerprint)
    data = (folder / "model.safetensors").read_bytes()
    if file_digest(data) != card["content"]:
        raise ModelMismatchError(f"{folder / 'model.safetensors'} was altered: expected {card['content']}")
    check_weights(card.get("weights", {}))  # a network of other people is read from where it lies
    return network.from_tensors(card["config"], load(data)).to(device), card


def _read_card(fingerprint):
    """Card of the screen's encoder, if it is the one expected."""
    folder = model_folder("autoencoder")
    card = read_json(folder / "model.json")
    if card is None or card["plateloom"]["fingerprint"] != fingerprint:
        raise ModelMismatchError(f"{folder} does not hold the model {fingerprint}; run again")
    return card
