"""`plateloom train-segmenter`: train the network of the method `unet` on your own annotated fields."""

import json
import os
from pathlib import Path

import click

from plateloom.errors import ConfigError, ModelMismatchError

SHIPPED = "shipped"


@click.command()
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of images of nuclei, one channel, bright on dark: TIFF, PNG or NPY.",
)
@click.option(
    "--labels",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of their label images, of the same names: one number per nucleus, 0 for background.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Weights, a .safetensors file; curves and facts are written beside it as .json.",
)
@click.option(
    "--from",
    "start",
    default=None,
    metavar="FILE",
    help="Go on from these weights; `shipped`: from those that come with Plateloom. Else a new network is trained.",
)
@click.option("--steps", type=click.IntRange(1), default=None, help="Steps at most.  [default: 6000; 600 with --from]")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Patches per step.")
@click.option("--learning-rate", type=float, default=None, help="At the start.  [default: 0.003; 0.0005 with --from]")
@click.option("--validations", type=click.IntRange(1), default=10, show_default=True, help="Checkpoints on the way.")
@click.option("--all-images", is_flag=True, help="Keep no image out of training: no validation, no early stop.")
@click.option("--full-precision", is_flag=True, help="Train in float32: faster on processors without bfloat16.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Every random number follows from it."
)
@click.option(
    "--device",
    type=click.Choice(["require", "prefer", "cpu"]),
    default="prefer",
    show_default=True,
    help="Whether to use a GPU.",
)
@click.option("--threads", type=click.IntRange(1), default=None, help="Of the processor.  [default: all cores]")
def command(
    images,
    labels,
    output,
    start,
    steps,
    batch_size,
    learning_rate,
    validations,
    all_images,
    full_precision,
    seed,
    device,
    threads,
):
    """Train the network of the segmentation method `unet`, or fit the shipped one to your own nuclei.

    Ten annotated fields are enough for the latter. Every fifth image is kept out of training; the weights that are best
    on these are written. If it is interrupted, the same command goes on where it stopped.

    \b
    plateloom train-segmenter --images fields/ --labels nuclei/ --from shipped --output nuclei.safetensors
    plateloom train-segmenter --images fields/ --labels nuclei/ --output nuclei.safetensors --steps 20000

    Then, in the screen's config.yaml:

    \b
    segmentation:
      method: unet
      parameters: {weights: nuclei.safetensors}
    """
    if output.suffix != ".safetensors":
        raise ConfigError(f"--output {str(output)!r}: expected a name that ends in .safetensors")
    if not output.resolve().parent.is_dir():
        raise ConfigError(f"--output {str(output)!r}: there is no folder {str(output.parent)!r}; make it first")
    names, fields, truth = _read_pairs(images, labels)
    import torch

    from plateloom.segmentation import network_file
    from plateloom.segmentation.network import load_network, save_network
    from plateloom.segmentation.training import TrainingParams, train

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    begin = None
    if start is not None:
        path = network_file.SHIPPED if start == SHIPPED else Path(start)
        if not path.is_file():
            raise ConfigError(f"--from {start!r}: there is no such file")
        begin = load_network(path)
    steps = steps or (6000 if begin is None else 600)
    params = TrainingParams(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        holdout=not all_images,
        validate_every=max(1, steps // validations),
        patience=max(3, validations // 2),
        mixed_precision=not full_precision,
        seed=seed,
        device=device,
    )
    checkpoint = output.with_suffix(".checkpoint")
    click.echo(f"{len(names)} images; weights go to {str(output)!r}")
    try:
        trained = train(
            fields,
            truth,
            params=params,
            start=begin,
            resume=_read_checkpoint(checkpoint),
            on_checkpoint=lambda state, history: _report(checkpoint, state, history[-1]),
        )
    except ModelMismatchError as error:
        if not checkpoint.exists():
            raise
        raise ConfigError(f"{str(checkpoint)!r}: {error} Remove that file to train from the start") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    sha256 = save_network(output, trained.network)
    about = {"sha256": sha256, "config": trained.network.config, "training": trained.facts, "curves": trained.history}
    output.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    checkpoint.unlink(missing_ok=True)
    click.echo(f"{output}: SHA-256 {sha256}")


def _report(checkpoint, state, row):
    """Leave a checkpoint and say how far the training is."""
    from safetensors.torch import save

    from plateloom.store.provenance import write_bytes

    write_bytes(checkpoint, save(state))
    loss = "" if row["loss"] is None else f"  loss {row['loss']:.4f}"
    scores = "" if row["ap"] is None else f"  F1 {row['f1']:.3f}  AP {row['ap']:.3f}  mean AP {row['mean_ap']:.3f}"
    click.echo(f"step {row['step']:>6}{loss}{scores}")


def _read_checkpoint(path):
    """State of an interrupted training; None where there is none."""
    if not path.exists():
        return None
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise ConfigError(f"{str(path)!r} is not whole ({error}); remove it to train from the start") from None


def _read_pairs(images, labels):
    """Names, images as float32 in [0, 1], and labels of two folders; files are matched by name."""
    import numpy as np

    from plateloom.cli.evaluate import _read_file as read_labels

    sides = [_list_files(images), _list_files(labels)]
    problems = [
        f"{str(path)!r} has no {name!r}, which {str(other)!r} has"
        for path, other, missing in (
            (images, labels, sides[1].keys() - sides[0]),
            (labels, images, sides[0].keys() - sides[1]),
        )
        for name in sorted(missing)
    ]
    fields, truth, names = [], [], sorted(sides[0].keys() & sides[1].keys())
    for name in names if not problems else ():
        try:
            field, drawn = _read_image(sides[0][name]), read_labels(sides[1][name])
        except ConfigError as error:
            problems += error.problems
            continue
        if field.shape != drawn.shape:
            problems.append(
                f"{name!r}: the image is {field.shape}, its labels are {drawn.shape}; expected one pixel grid"
            )
        elif drawn.dtype.kind not in "iu" or drawn.min() < 0:
            problems.append(f"{name!r}: labels are {drawn.dtype}; expected one number per nucleus, 0 for background")
        else:
            fields.append(field)
            truth.append(np.asarray(drawn, np.int64))
    if problems:
        raise ConfigError(problems)
    return names, fields, truth


def _list_files(folder):
    """Stem to path of the image files of a folder."""
    from plateloom.cli.evaluate import SUFFIXES

    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    if not files:
        raise ConfigError(f"{str(folder)!r} holds no images ({', '.join(SUFFIXES)})")
    found = {}
    for path in files:
        if (stem := path.stem.removesuffix(".ome")) in found:
            raise ConfigError(f"{found[stem].name!r} and {path.name!r} in {str(folder)!r} are one image; remove one")
        found[stem] = path
    return found


def _read_image(path):
    """An image of one channel, float32 in [0, 1]."""
    import numpy as np

    try:
        if path.suffix.lower() == ".npy":
            pixels = np.load(path, allow_pickle=False)
        elif path.suffix.lower() == ".png":
            from PIL import Image

            pixels = np.asarray(Image.open(path))
        else:
            from tifffile import imread

            pixels = imread(path)
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder finds wrong
        raise ConfigError(f"{str(path)!r} cannot be read as an image: {error or type(error).__name__}") from None
    pixels = pixels.reshape(pixels.shape[-2:]) if pixels.ndim > 2 and pixels[..., 0, 0].size == 1 else pixels
    if pixels.ndim != 2 or pixels.dtype.kind not in "uif":
        raise ConfigError(
            f"{str(path)!r} is {pixels.dtype} {pixels.shape}; expected one channel, rows and columns of numbers"
        )
    # Brightness does not matter, its range does: histograms end at 2.
    largest = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "ui" else max(float(pixels.max(initial=0)), 1.0)
    pixels = pixels.astype(np.float32) / np.float32(largest)
    if not np.isfinite(pixels).all():
        raise ConfigError(f"{str(path)!r} has pixels that are not finite numbers")
    return pixels
