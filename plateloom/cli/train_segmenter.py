"""`plateloom train-segmenter`: train the network of the method `unet` on your own annotated fields."""

import json
import os
from pathlib import Path

import click

from plateloom.errors import ConfigError


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
    default="",
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

    A screen can also train its network itself, before it is segmented: the section segmentation.training of its config.yaml.
    """
    if output.suffix != ".safetensors":
        raise ConfigError(f"--output {str(output)!r}: expected a name that ends in .safetensors")
    if not output.resolve().parent.is_dir():
        raise ConfigError(f"--output {str(output)!r}: there is no folder {str(output.parent)!r}; make it first")
    from plateloom.segmentation.network import save_network
    from plateloom.stages.training import train_network

    checkpoint = output.with_suffix(".checkpoint")
    click.echo(f"weights go to {str(output)!r}")
    trained, _ = train_network(
        images,
        labels,
        start=start,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        validations=validations,
        all_images=all_images,
        full_precision=full_precision,
        seed=seed,
        device=device,
        threads=threads or len(os.sched_getaffinity(0)),
        checkpoint=checkpoint,
        say=click.echo,
    )
    sha256 = save_network(output, trained.network)
    about = {"sha256": sha256, "config": trained.network.config, "training": trained.facts, "curves": trained.history}
    output.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    checkpoint.unlink(missing_ok=True)
    click.echo(f"{output}: SHA-256 {sha256}")
