"""`plateloom train-pixels`: train the classifier of the segmentation method `pixels` with scribbles or masks."""

import os
import re
import shlex
from pathlib import Path

import click

from plateloom.errors import ConfigError, counted, did_you_mean

folder_type = click.Path(exists=True, file_okay=False, path_type=Path)
FEW = 100  # painted pixels of a class, from which on a classifier is worth a try


@click.command()
@click.argument("screen", required=False, type=folder_type)
@click.option(
    "--labels",
    type=folder_type,
    required=True,
    help="Folder of what was painted: PLATE/WELL/FIELD/pixels.tif; with --images files of the images' names.",
)
@click.option(
    "--output",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Classifier, a .safetensors file; its card is written beside it as .json.  [default: SCREEN/pixels.safetensors]",
)
@click.option(
    "--images", type=folder_type, default=None, help="Folder of images to train on, in place of a screen's fields."
)
@click.option("--pixel-size", type=click.FloatRange(0, min_open=True), default=None, help="Of --images [µm/px].")
@click.option(
    "--classes",
    default=None,
    metavar="A,B,…",
    help="What 1, 2, … mean.  [default: classes.json in --labels, else background,nuclei,cells]",
)
@click.option("--channels", default=None, metavar="A,B,…", help="Channels to look at.  [default: all of the screen]")
@click.option(
    "--sigmas",
    default=None,
    metavar="A,B,…",
    help="Of the filters [µm].  [default: 0.7, 1.6, 3.5 and 7 pixels of the images]",
)
@click.option("--absolute", is_flag=True, help="Take intensities as they are: for images that are not bright on dark.")
@click.option("--trees", type=click.IntRange(1, 1000), default=50, show_default=True, help="Of the forest.")
@click.option(
    "--pixels",
    type=click.IntRange(10),
    default=2000,
    show_default=True,
    help="Painted pixels to learn from, by class and image, at most.",
)
@click.option(
    "--maps", type=click.Path(file_okay=False, path_type=Path), default=None, help="Write probabilities as TIFF here."
)
@click.option(
    "--also",
    multiple=True,
    metavar="PLATE/WELL/FIELD",
    help="With --maps: a field that was not painted; may be repeated.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Every random number follows from it."
)
@click.option("--threads", type=click.IntRange(1), default=None, help="Of the processor.  [default: all cores]")
def command(
    screen,
    labels,
    output,
    images,
    pixel_size,
    classes,
    channels,
    sigmas,
    absolute,
    trees,
    pixels,
    maps,
    also,
    seed,
    threads,
):
    """Train a pixel classifier from painted fields of SCREEN, or from painted images, and test it.

    Paint a few strokes of each class on fields of several wells and leave the rest 0: `plateloom labels export` writes images to
    paint on. In place of strokes whole nuclei and cells do, Nuclei.tif and Cells.tif as that command writes them. The test
    holds out whole wells (with --images: images), never single pixels.

    \b
    plateloom labels export screens/demo --wells A01,B02,C03 --to painted
    plateloom train-pixels screens/demo --labels painted --channels DNA,ER
    plateloom train-pixels --images fields/ --labels painted/ --pixel-size 0.65 --channels DNA --out pixels.safetensors

    Then, in the screen's config.yaml:

    \b
    segmentation:
      method: pixels
      parameters: {model: pixels.safetensors, nucleus_diameter_um: 12, cells_class: cells}
    """
    problems = _find_problems(screen, output, images, pixel_size, channels, maps, also)
    wide = _numbers(sigmas, problems)
    if problems:
        raise ConfigError(problems)
    from plateloom.segmentation.pixel_training import TrainingParams, train_pixels
    from plateloom.stages.pixels import CLASSES, MAPS, read_classes, read_painted_images, write_maps, write_pixel_model

    names = _names(classes) or read_classes(labels) or list(CLASSES)
    if images is None:
        output = output or screen / "pixels.safetensors"
        chosen, examples, others = _read_screen(screen, labels, names, _names(channels), also)
    else:
        chosen, others = _names(channels), []
        examples = read_painted_images(images, labels, channels=chosen, pixel_size_um=pixel_size)
    params = TrainingParams(
        sigmas_um=wide, intensities="absolute" if absolute else "relative", trees=trees, pixels=pixels, seed=seed
    )
    painted = sum(bool(one.paint.any()) for one in examples)
    click.echo(f"{counted(painted, 'image')} painted, channels {', '.join(chosen)}")

    def keep(example, found):
        write_maps(maps / example.name / MAPS, found, names, example.pixel_size_um)

    try:
        model = train_pixels(
            examples,
            channels=chosen,
            classes=names,
            params=params,
            versions=_versions(),
            threads=threads or len(os.sched_getaffinity(0)),
            on_map=None if maps is None else keep,
        )
        sha256 = write_pixel_model(output, model)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    _say(model.card, "image" if images else "well")
    if maps is not None:
        _write_others(maps, model, others)
        click.echo(f"probabilities of {counted(len(examples) + len(others), 'image')} in {str(maps)!r}")
    click.echo(f"{output}: SHA-256 {sha256}")
    if screen is not None:
        setting = shlex.quote(f"model={os.path.relpath(output, screen)}")
        click.echo(
            f"to look at it: plateloom preview {shlex.quote(str(screen))} --set segmentation.method=pixels --set {setting}"
        )


def _find_problems(screen, output, images, pixel_size, channels, maps, also):
    """What is wrong with the options."""
    problems = []
    if (screen is None) == (images is None):
        problems.append("give either SCREEN, whose fields were painted, or --images")
    if images is not None:
        problems += [
            f"--images needs {option}"
            for option, value in (("--pixel-size", pixel_size), ("--channels", channels))
            if not value
        ]
        problems += ["--images needs --output"] * (output is None) + ["--also is of a screen"] * bool(also)
    elif pixel_size is not None:
        problems.append("--pixel-size is of --images; a screen's fields know theirs")
    if also and maps is None:
        problems.append("--also needs --maps, where its probabilities go")
    if output is not None and output.suffix != ".safetensors":
        problems.append(f"--output {str(output)!r}: expected a name that ends in .safetensors")
    elif output is not None and not output.resolve().parent.is_dir():
        problems.append(f"--output {str(output)!r}: there is no folder {str(output.parent)!r}; make it first")
    return problems


def _names(text):
    """Words of a comma-separated list."""
    return list(dict.fromkeys(filter(None, (word.strip() for word in (text or "").split(",")))))


def _numbers(text, problems):
    """Sigmas of a comma-separated list; None where none are given."""
    if text is None:
        return None
    try:
        found = tuple(float(word) for word in filter(None, re.split(r"[,\s]+", text)))
    except ValueError:
        found = ()
    if not found or not all(0 < sigma < 1000 for sigma in found):
        problems.append(f"--sigmas {text!r}: expected lengths in µm, such as 0.5,1,2,4")
    return found


def _read_screen(screen, labels, classes, asked, also):
    """Channels, painted fields, and other fields to map: (name, image, pixel size) each."""
    from plateloom.config import read_config
    from plateloom.stages.pixels import check_place, read_field, read_painted_fields

    known = list(read_config(screen).channels)
    if strangers := [name for name in asked if name not in known]:
        raise ConfigError(
            [f"--channels: no {name!r}.{did_you_mean(name, known)} Channels: {', '.join(known)}" for name in strangers]
        )
    channels, folder, before = asked or known, labels.resolve(), os.getcwd()
    os.chdir(screen)
    try:
        examples = read_painted_fields(folder, classes=classes, channels=channels)
        others = []
        for place in also:
            plate, _, rest = place.partition("/")
            well, _, field = rest.partition("/")
            others.append((place, *read_field(plate, well, check_place(plate, well, field), channels)))
    finally:
        os.chdir(before)
    return channels, examples, others


def _versions():
    import sklearn

    from plateloom import __version__

    return {"plateloom": __version__, "scikit-learn": sklearn.__version__}


def _say(card, group):
    """What was learned from, and the test."""
    test = card["test"]
    click.echo(f"{'class':<16}{'pixels':>9}{'F1':>8}")
    for name, count in card["pixels"].items():
        found = None if test is None else test["f1"][name]
        click.echo(f"{name:<16}{count:>9,}{'-' if found is None else f'{found:.3f}':>8}")
        if count < FEW:
            click.echo(f"warning: only {counted(count, 'pixel')} of class {name!r} painted", err=True)
    if test is None:
        click.echo(
            f"warning: all that was painted is of one {group}: no test is possible; paint on two or more", err=True
        )
    else:
        click.echo(f"F1 of pixels, pooled over {counted(test['groups'], group)} held out in {test['folds']} folds")


def _write_others(folder, model, others):
    """Write probabilities of fields that were not painted."""
    from plateloom.segmentation.pixel_training import map_image
    from plateloom.stages.pixels import MAPS, write_maps

    for name, image, pixel_size_um in others:
        found = map_image(model, image, pixel_size_um)
        write_maps(folder / name / MAPS, found, model.card["classes"], pixel_size_um)
