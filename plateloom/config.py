"""Every setting of a screen: default, unit and meaning. The config file, its schema and its page in docs come from here."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from plateloom.errors import ConfigError, PlateloomError, did_you_mean
from plateloom.readers import READERS, suggest_reader
from plateloom.readers.folders import compile_expression
from plateloom.store.layout import model_folder

TRAINED = str(model_folder("segmenter") / "nuclei.safetensors")  # weights that a screen trains itself


def takes_bool(annotation):
    """Whether a setting of this type can be yes or no."""
    return annotation in (bool, Any) or any(takes_bool(part) for part in get_args(annotation))


class Section(BaseModel):
    """A group of settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, given):
        """YAML's yes and no would be 1 and 0."""
        for name, value in given.items() if isinstance(given, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and not takes_bool(field.annotation):
                raise ValueError(f"{name}: {'yes' if value else 'no'} is no number or text")
        return given


class Channel(Section):
    """One channel of the plates."""

    source: str = Field(
        description="What the source calls it: the text of the pattern's group `channel`.", coerce_numbers_to_str=True
    )
    color: str = Field("FFFFFF", pattern="^#?[0-9A-Fa-f]{6}$", description="Color in viewers, RRGGBB.")
    window: tuple[int, int] | None = Field(
        None, description="Display range [counts]; default: each field's own 1 to 99.9 %."
    )

    @field_validator("window")
    @classmethod
    def _ordered(cls, window):
        if window and window[0] >= window[1]:
            raise ValueError(f"{list(window)}: the lower end first, the upper end second")
        return window


class Conversion(Section):
    """Source folder -> plate.zarr images."""

    layout: Literal["fields", "stitched"] = Field(
        "fields",
        description="One image per field, or one per well, of its fields put side by side by their positions (whole pixels; "
        "where fields overlap, a pixel is that of the field whose center is nearest).",
    )
    z: Literal["max", "mean", "best focus", "keep"] = Field(
        "max",
        description="How the z planes of a field become one: brightest value, mean, sharpest plane of each channel; or "
        "`keep` them all: cells are then found and measured in volumes (`segmentation.method: volume`), and what looks at "
        "planes sees their brightest values.",
    )
    z_step_um: float | None = Field(
        None, gt=0, description="Distance of z planes that are kept [µm]; default: what the source's metadata say."
    )
    time: int | Literal["keep"] | None = Field(
        None,
        description="Which time point, as the source counts them; or `keep` all, which only conversion and viewers "
        "understand. Needed only where the source has several.",
    )
    pixel_size_um: float | None = Field(
        None, gt=0, description="Size of a pixel [µm/px]; default: what the source's metadata say."
    )
    levels: int = Field(3, ge=1, le=8, description="Levels of the image pyramid, each half the size of the last.")
    ngff: Literal["0.5", "0.4"] = Field(
        "0.5",
        description="Version of OME-Zarr: 0.5 (Zarr 3, sharded), or 0.4 (Zarr 2) for QuPath, OMERO, Bio-Formats, MoBIE.",
    )
    codec: Literal["blosc", "zstd", "zlib"] = Field(
        "blosc", description="Compression: blosc (zstd after a byte shuffle), zstd (0.5 only), zlib (0.4 only)."
    )
    compression: int = Field(2, ge=1, le=9, description="Level of the compression: 1 fast … 9 small.")
    chunk_px: int = Field(
        512,
        ge=64,
        description="Side of a chunk, the least that a reader decodes, as nearly as fields are cut evenly [px].",
    )
    shard_px: int = Field(
        2048,
        ge=64,
        description="Side of a shard, the least that is written, where wells are stitched [px]; single fields are one shard "
        "per level, with all planes that they keep.",
    )

    @field_validator("ngff", mode="before")
    @classmethod
    def _without_quotes(cls, value):
        return str(value) if isinstance(value, float) else value

    @model_validator(mode="after")
    def _codec_of_format(self):
        if self.codec == {"0.5": "zlib", "0.4": "zstd"}[self.ngff]:
            raise ValueError(f"codec {self.codec} does not exist in OME-Zarr {self.ngff}; take blosc")
        return self


class Illumination(Section):
    """One flat-field per plate and channel."""

    method: str = Field(
        "median",
        description="`median` of many fields; `lowrank`, which is faster and needs background in every field; `vendor`: what "
        "the microscope's own software says (Harmony's polynomials, the CellVoyager's shading images); or `none`.",
    )
    parameters: dict = Field({}, description="The method's own parameters; `plateloom config --methods` lists them.")
    fields: int = Field(
        64,
        ge=1,
        description="Fields that a flat-field is estimated from, of few wells, chosen by a hash of their position: a late "
        "well outside of the choice leaves the flat-field as it is.",
    )
    late: Literal["follow", "keep"] = Field(
        "follow",
        description="What a late well inside the choice does: `follow` estimates again, which ends as a run that had all "
        "images from the start and recomputes the plate; `keep` leaves the flat-field as it is while the fields that it was "
        "made from are still there, unchanged, and as many as half of the present choice or 32.",
    )


class Restoration(Section):
    """One step of the restoration of pixels."""

    method: str = Field(description="`background`, `gaussian`, `median` or `non_local_means`.")
    parameters: dict = Field({}, description="The method's own parameters; `plateloom config --methods` lists them.")
    channels: list[str] | None = Field(None, description="Channels that it is done to; default: all.")


class Quality(Section):
    """Measurements of every field and channel, and flags."""

    parameters: dict = Field({}, description="Thresholds; `plateloom config --methods` lists them.")


class Training(Section):
    """The network of the method unet, fitted to your own annotated fields before anything is segmented with it."""

    images: str = Field(
        "",
        description="Folder of images of nuclei, one channel, bright on dark, TIFF, PNG or NPY: a path, from the screen's "
        "folder. Empty: nothing is trained.",
    )
    labels: str = Field(
        "", description="Folder of their label images, of the same names: one number per nucleus, 0 for background."
    )
    start: str = Field(
        "shipped",
        description="Weights to go on from: `shipped`, those that come with Plateloom, or a path. Empty: a new network.",
    )
    steps: int | None = Field(None, ge=1, description="Steps at most; default: 600, of a new network 6000.")
    batch_size: int = Field(8, ge=1, description="Patches per step.")
    learning_rate: float | None = Field(
        None, gt=0, description="At the start; default: 0.0005, of a new network 0.003 (dimensionless)."
    )
    validations: int = Field(
        10, ge=1, description="Checkpoints on the way; a job that was killed goes on from the last."
    )
    all_images: bool = Field(False, description="Keep no image out of training (yes/no): no validation, no early stop.")
    full_precision: bool = Field(False, description="Train in float32 (yes/no): faster on processors without bfloat16.")
    seed: int = Field(0, ge=0, description="Every random number follows from it.")


class Segmentation(Section):
    """Images -> labels of Nuclei, Cells and Cytoplasm."""

    method: str = Field("watershed", description="Name of a registered method.")
    parameters: dict = Field({}, description="The method's own parameters; `plateloom config --methods` lists them.")
    training: Training = Field(Training(), description="")


class Features(Section):
    """Measurements of every cell."""

    families: list[str] | None = Field(
        None, description="Families to measure; default: all, of volumes AreaShape, Location and Intensity."
    )
    channels: list[str] | None = Field(None, description="Channels to measure; default: all.")
    texture_scales: list[Annotated[int, Field(ge=1)]] = Field(
        [3, 5, 10], min_length=1, description="Distances between the pixels that texture compares [px]."
    )
    neighbor_distance: int = Field(5, ge=1, description="Neighbors are counted within this distance [px].")
    physical_units: bool = Field(
        False,
        description="Give lengths and areas also in µm and µm², in columns of their own that end in _um and _um2.",
    )
    precision: Literal["float64", "float32"] = Field(
        "float64", description="Type of the tables; float32 halves them and rounds values by up to 6e-8 of their size."
    )
    row_group_rows: int = Field(
        1000,
        ge=1,
        description="Tables are written in row groups of whole fields, as many as reach so many cells; 1: one per field, which "
        "takes several times as long to write.",
    )


class Profiling(Section):
    """Cells -> one normalized row per well, and the quality of the assay."""

    parameters: dict = Field(
        {}, description="How wells are aggregated, normalized and judged; `plateloom config --methods` lists it."
    )
    exclude_flagged: bool = Field(
        True, description="Leave fields that QC has flagged out of profiles; models never learn from them."
    )
    exclude_unlike_counts: bool = Field(
        False,
        description="Leave fields out of profiles that have far fewer or more nuclei than the others of their well; off: they "
        "are only told.",
    )
    exclude_badly_restored: bool = Field(
        False,
        description="Leave cells out of profiles that the autoencoder restores badly, debris for instance "
        "(`latent.autoencoder.error_limit`); profiles then wait for it, and change with it.",
    )


class Autoencoder(Section):
    """A network that is trained on crops of single cells, and gives a few numbers for each."""

    enabled: bool = Field(True, description="Train it, and encode every cell.")
    method: str = Field(
        "autoencoder",
        description="`autoencoder` compresses and restores crops; `contrastive` learns to know a cell again, turned or brighter; "
        "`backbone` is a network of your own with its weights, not trained here.",
    )
    crop_um: float = Field(32.0, gt=0, description="Side of the square cut out round a cell [µm].")
    mask: Literal["none", "others", "cell"] = Field(
        "none", description="What becomes 0 in a crop: nothing, the other cells, or everything but the cell."
    )
    normalize: Literal["screen", "plate"] = Field(
        "screen",
        description="Where the range of intensities that crops are stretched by comes from, per channel: crops of the whole "
        "screen, or fields of each plate.",
    )
    wells: int = Field(
        400, ge=2, description="Wells that the cells are drawn from, chosen by a hash of plate and well."
    )
    cells: int = Field(20000, ge=100, description="Cells that it is trained on, drawn evenly over these wells.")
    holdout: float = Field(0.2, gt=0, lt=1, description="Share of the wells kept out of training to test it.")
    plates: list[str] | None = Field(
        None, description="Plates it is trained on; default: all. Name them to keep it as plates are added."
    )
    error_limit: float = Field(
        4.0,
        gt=0,
        description="A cell is restored badly if its error (`Latent_error`) lies so far above the median of held-out cells, on "
        "the scale of logarithms [robust SD].",
    )
    parameters: dict = Field(
        {}, description="Of the network and its training; `plateloom config --methods` lists them."
    )


class Clusters(Section):
    """Groups of cells that look alike, found without labels on the cells that the map is fitted on; each cell gets its own."""

    method: str = Field(
        "kmeans",
        description="`kmeans`, `hdbscan`, `leiden` (needs leidenalg and igraph, which are under the GPL) or `none`.",
    )
    resamples: int = Field(
        20, ge=2, description="So many times clusters are looked for again, in some of the wells: are they found again?"
    )
    parameters: dict = Field({}, description="Of the method; `plateloom config --methods` lists them.")


class Maps(Section):
    """Maps of cells and of wells."""

    method: str = Field("umap", description="`umap`, `densmap`, `pacmap` (needs the package pacmap) or `pca`.")
    inputs: Literal["features", "latent"] = Field(
        "features", description="What the map of cells is of: features, or the latents of `latent.autoencoder`."
    )
    wells: int = Field(
        400, ge=1, description="Wells that the cells are drawn from, chosen by a hash of plate and well."
    )
    cells: int = Field(
        10000,
        ge=100,
        description="Cells that the map is fitted on, drawn evenly over these wells; all are placed on it.",
    )
    plates: list[str] | None = Field(None, description="Plates it is fitted on; default: all.")
    parameters: dict = Field({}, description="Of the map; `plateloom config --methods` lists them.")
    clusters: Clusters = Field(Clusters(), description="")


class Latent(Section):
    """Latent representations of cells and wells."""

    autoencoder: Autoencoder = Field(Autoencoder(), description="")
    maps: Maps = Field(Maps(), description="")


class Comparison(Section):
    """Profiles of features and of latents: how plates mix before and after correction, and which serve better."""

    enabled: bool = Field(True, description="Compare them.")
    sphering: float | None = Field(
        0.1,
        gt=0,
        description="Sphere profiles by the negative controls of all plates: what controls vary in counts less. Added to their SD "
        "in each direction, so that few control wells do not raise noise [SD of a feature]; null: do not.",
    )
    neighbors: int = Field(10, ge=2, description="Nearest wells whose plates are looked at.")


class Classification(Section):
    """Classes of cells, learned from labeled wells or cells."""

    labels: str = Field(
        "",
        description="`controls`: positive against negative control wells. Else a table in the screen's folder with columns "
        "`plate, well, class`, for single cells also `field, object`, as `annotations.tsv`, which `plateloom annotate` collects. "
        "Empty: no classification.",
    )
    target: Literal["class", "number"] = Field(
        "class",
        description="What the labels are: names of classes, or numbers (a dose, a count, a score), which methods for numbers "
        "predict.",
    )
    inputs: Literal["features", "latent", "crops"] = Field(
        "features",
        description="What is learned from: the measured features, the latents (`latent.autoencoder`), or crops of the cells, by "
        "a network (`method: cnn`).",
    )
    surroundings: bool = Field(
        False,
        description="Learn also from features in whose values the cells around show (Granularity, Neighbors). Where whole wells "
        "are labeled, these tell the well, and rare cells among others are overlooked.",
    )
    method: str = Field(
        "logistic",
        description="`logistic`, `linear_svm`, `random_forest`, `gradient_boosting` or `nearest_neighbors`; from crops `cnn`; for "
        "numbers `ridge` or `forest_regression`.",
    )
    parameters: dict = Field({}, description="The method's own parameters; `plateloom config --methods` lists them.")
    tune: bool = Field(
        False,
        description="Search the method's main parameter, within each fold by other wells (nested, so the test stays honest); "
        "takes some ten times as long.",
    )
    balance: Literal["weights", "subsample", "none"] = Field(
        "weights",
        description="Of classes with unequal numbers of cells: rare ones weigh more, abundant ones are drawn from, or neither.",
    )
    scheme: Literal["well", "plate", "batch"] = Field(
        "well",
        description="What is kept together when cells are split for testing; never single cells. Plates and batches are left "
        "out one at a time.",
    )
    folds: int = Field(5, ge=2, description="Number of folds.")
    coverage: float = Field(
        0.9,
        ge=0.5,
        le=0.99,
        description="How often the set of classes that cannot be excluded (`Set_size`) shall hold the true one, in wells not seen; "
        "0.9 needs 9 labeled wells of each class.",
    )
    cells: int = Field(20000, ge=100, description="Cells that it is trained on at most, drawn evenly over wells.")

    @model_validator(mode="after")
    def _numbers_of_a_table(self):
        if self.target == "number" and self.labels == "controls":
            raise ValueError("`target: number` needs a table of labels; controls are classes")
        if self.target == "number" and self.inputs == "crops":
            raise ValueError("`inputs: crops` is for classes")
        if self.target == "number" and self.tune:
            raise ValueError("`tune` is for classes")
        return self


class Report(Section):
    """The pages."""

    montage_wells: int = Field(12, ge=1, description="Wells shown as pictures with outlines.")
    flagged_pictures: int = Field(24, ge=0, description="Fields flagged by quality control that are shown, at most.")
    composite: list[str] | None = Field(
        None, description="Channels shown in pictures, at most 3; default: the first ones."
    )


class Engine(Section):
    """How jobs run. Nothing here changes a result."""

    kind: Literal["processes", "threads", "address", "slurm"] = Field(
        "processes", description="Dask workers: processes of the job, threads, a running scheduler, or Slurm jobs."
    )
    tasks_per_worker: int = Field(2, ge=1, description="Tiles in flight per worker; bounds memory.")
    address: str | None = Field(None, description="Address of a running Dask scheduler.")
    slurm: dict = Field({}, description="Arguments of dask_jobqueue.SLURMCluster, and `jobs`, their number.")
    tile_px: int = Field(2048, ge=64, description="Images larger than this are worked on in tiles of this side [px].")
    device: Literal["require", "prefer", "cpu"] = Field("prefer", description="Whether to use a GPU.")
    scratch: str = Field(
        "",
        description="Folder on the disk of the node, e.g. `$TMPDIR`, for files that only one job reads: pieces of stitched wells "
        "and of tiled images, and what a network trains on. Empty: beside the results.",
    )
    recompute_without_asking_hours: float = Field(
        1.0,
        ge=0,
        description="Most work that `plateloom run` makes again, only because Plateloom's code has changed, without "
        "--recompute [core-hours].",
    )
    end_marker: bool = Field(
        True, description="Put a plate off whose microscope marks the end of a measurement, and has not yet."
    )
    settle_minutes: float = Field(
        0, ge=0, description="A plate is put off to the next run while its newest file is younger than this [min]."
    )


class Nightly(Section):
    """`plateloom nightly`: which folders of an inbox are plates, and when they are whole. Nothing here changes a result."""

    folders: str = Field("*", description="Folders of the inbox that are plates, as a glob; `*/*`: one level down.")
    ignore: list[str] = Field([], description="Folders that are none, as globs.")
    name: str = Field(
        "(?P<plate>.+)",
        description="Regular expression with a group `plate`: what the plate is called, of the folder's name. Groups "
        "`acquisition` (the number of a plate that was imaged again) and `batch` may be in it.",
    )
    barcode: bool = Field(
        False,
        description="Apply it to what the microscope's metadata call the plate, where they do, not to the folder.",
    )
    batch: str = Field("", description="Batch of new plates, where `name` does not say.")
    plate_map: str | list[str] = Field(
        "maps/{plate}.tsv",
        description="Map of a new plate, below the screen's folder; of several, the first that is there. A plate without one "
        "waits; an empty text as the last of several: it is taken without a map.",
    )
    end_marker: str = Field(
        "", description="Glob of a file that ends a plate, e.g. `*.finished`; without it a plate waits."
    )
    files: int = Field(
        0,
        ge=0,
        description="Image files that a plate has at least; with fewer it waits. 0: what metadata declare, if any.",
    )
    settle_minutes: float = Field(
        10, ge=0, description="Names, sizes and times of a plate's files are the same in two looks so far apart [min]."
    )
    patience_hours: float = Field(
        48,
        ge=0,
        description="A plate that lacks files and has not changed for so long is taken as it is [h]; without its end marker "
        "never.",
    )
    hook: str = Field(
        "", description="Command for a shell that gets the night's line on its standard input, to send as mail or chat."
    )

    @field_validator("name")
    @classmethod
    def _has_group(cls, text):
        if "plate" not in compile_expression(text).groupindex:
            raise ValueError(f"{text!r} has no group (?P<plate>…)")
        return text


class Config(Section):
    """A screen's config.yaml."""

    plates: str = Field(
        "plates.tsv", description="Table of plates: plate, source, reader, plate_map, batch, acquisition."
    )
    parts: int = Field(
        1, ge=1, le=64, description="Jobs per plate and stage: 1 on a workstation, about 8 on a cluster."
    )
    max_failed_fields: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Share of a plate's fields that may fail before the plate does, at conversion or in segmentation.",
    )
    readers: dict[str, dict] = Field({}, description="Parameters of readers by name, e.g. `pattern: {pattern: …}`.")
    channels: dict[str, Channel] = Field({}, description="The plates' channels: name -> source, color, window.")
    conversion: Conversion = Field(Conversion(), description="")
    illumination: Illumination = Field(Illumination(), description="")
    restoration: list[Restoration] = Field(
        [],
        description="What is done to pixels after the correction of illumination whenever they are read, in this order; the "
        "images stay as they are: `- {method: background, parameters: {radius_um: 25}, channels: [DNA]}` … (channels: null "
        "means all); `background`, `gaussian`, `median`, `non_local_means`.",
    )
    quality: Quality = Field(Quality(), description="")
    segmentation: Segmentation = Field(Segmentation(), description="")
    features: Features = Field(Features(), description="")
    profiling: Profiling = Field(Profiling(), description="")
    latent: Latent = Field(Latent(), description="")
    comparison: Comparison = Field(Comparison(), description="")
    classification: Classification = Field(Classification(), description="")
    report: Report = Field(Report(), description="")
    engine: Engine = Field(Engine(), description="")
    nightly: Nightly = Field(Nightly(), description="")
    complete_only: bool = Field(
        False, description="Run what needs all plates on those that are complete; set by Plateloom itself."
    )


def load_config(settings):
    """Check a merged config and fill in its defaults, the chosen methods' own parameters included.

    Parameters
    ----------
    settings : dict
        What Snakemake, or a YAML file, gives.

    Returns
    -------
    Config

    Raises
    ------
    ConfigError
        Listing every mistake at once, each with what to type instead.
    """
    problems = []
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        problems += explain(error, Config)
        try:  # with defaults in the wrong places, the other mistakes come to light at once
            config = Config.model_validate(_without(settings, [mistake["loc"] for mistake in error.errors()]))
        except ValidationError:
            raise ConfigError(problems) from None
    for section, module in method_modules(config, problems).items():
        holder = _holder(config, section)
        try:
            params = module.Params.model_validate(
                holder["parameters"] if isinstance(holder, dict) else holder.parameters
            )
        except ValidationError as error:
            problems += explain(error, module.Params, prefix=f"{section}.parameters.")
            continue
        if not isinstance(holder, dict):
            holder.parameters = params.model_dump(mode="json")
    problems += _check_restoration(config) + _check_training(config) + _check_volumes(config)
    if (
        config.classification.labels
        and config.classification.inputs == "latent"
        and not config.latent.autoencoder.enabled
    ):
        problems.append("classification.inputs: latents are made with `latent: {autoencoder: {enabled: true}}` only")
    encoder = config.latent.autoencoder
    if config.latent.maps.inputs == "latent" and not encoder.enabled:
        problems.append("latent.maps.inputs: latents are made with `latent: {autoencoder: {enabled: true}}` only")
    if config.profiling.exclude_badly_restored and not (encoder.enabled and encoder.method == "autoencoder"):
        problems.append(
            "profiling.exclude_badly_restored: cells are restored with `latent: {autoencoder: {enabled: true, method: "
            "autoencoder}}` only"
        )
    for name, params in config.readers.items():
        if name not in READERS:
            problems.append(f"readers.{name}: no such reader.{suggest_reader(name)} Readers: {', '.join(READERS)}")
            continue
        from plateloom.readers import load_reader

        try:
            config.readers[name] = load_reader(name).Params.model_validate(params).model_dump(mode="json")
        except ValidationError as error:
            problems += explain(error, load_reader(name).Params, prefix=f"readers.{name}.")
    if not config.channels and not any(problem.startswith("channels") for problem in problems):
        problems.append("channels: none given; name them as the source does, e.g. channels: {DNA: {source: '1'}}")
    for name in config.channels:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            near = re.sub(r"[^\w.+-]|^[.+-]+", "", name) or "DNA"
            problems.append(
                f"channels: {name!r} is no name for columns and files: letters, digits, _ . + - only, e.g. {near}: {{source: …}}"
            )
    sources = [channel.source for channel in config.channels.values()]
    if len(set(sources)) < len(sources):
        problems.append(f"channels: two of them have the same source ({', '.join(sources)})")
    problems += _check_readout(config)
    for where, names in _channel_uses(config) if config.channels else ():
        for name in names:
            if name not in config.channels:
                problems.append(
                    f"{where}: no channel {name!r}.{did_you_mean(name, config.channels)} Channels: {', '.join(config.channels)}"
                )
    if problems:
        raise ConfigError(problems)
    return config


def _check_restoration(config):
    """Mistakes in the steps of the restoration; fills in their methods' defaults."""
    from plateloom.registry import load_method
    from plateloom.restoration import METHODS

    problems = []
    for i, step in enumerate(config.restoration):
        try:
            params = load_method(METHODS, step.method, "restoration method").Params
            step.parameters = params.model_validate(step.parameters).model_dump(mode="json")
        except PlateloomError as error:
            problems.append(f"restoration.{i}.method: {error}")
        except ValidationError as error:
            problems += explain(error, params, prefix=f"restoration.{i}.parameters.")
    return problems


def _check_training(config):
    """Mistakes in the training of a network; fills in where its weights will lie."""
    chosen, training = config.segmentation, config.segmentation.training
    if not training.images:
        return ["segmentation.training.labels: given without images"] if training.labels else []
    problems = [] if training.labels else ["segmentation.training.labels: no folder of label images given"]
    if chosen.method != "unet":
        problems.append(f"segmentation.training: trains the method unet, and segmentation.method is {chosen.method}")
    elif chosen.parameters.get("weights", "") not in ("", TRAINED):
        problems.append(
            "segmentation.parameters.weights: leave it out where segmentation.training makes the weights; what these go on "
            "from is segmentation.training.start"
        )
    else:
        chosen.parameters["weights"] = TRAINED
    return problems


def _check_volumes(config):
    """Mistakes in what is to be done with volumes."""
    from plateloom.features import VOLUME_FAMILIES
    from plateloom.segmentation import explain_planes, works_on_volumes

    method = config.segmentation.method
    if not works_on_volumes(method):
        return []
    misfit = explain_planes(method, config.conversion.z == "keep")
    problems = [f"segmentation.method: {misfit}"] if misfit else []
    if config.conversion.layout == "stitched":
        problems.append(
            f"segmentation.method: {method} segments a field in one piece, which takes conversion.layout: fields"
        )
    if strange := [name for name in config.features.families or () if name not in VOLUME_FAMILIES]:
        problems.append(
            f"features.families: {', '.join(strange)}: not measured in volumes; families there: {', '.join(VOLUME_FAMILIES)}"
        )
    return problems


def _check_readout(config):
    """Mistakes in the names of features that the assay's readout is made of."""
    from plateloom import features
    from plateloom.features.meaning import describe_columns
    from plateloom.segmentation import measured_compartments, works_on_volumes

    settings = config.features.model_dump(exclude={"channels", "precision", "row_group_rows"})
    settings["volumes"] = works_on_volumes(config.segmentation.method)
    possible = features.VOLUME_FAMILIES if settings["volumes"] else features.FAMILIES
    settings["families"] = [name for name in settings["families"] or possible if name in possible]
    channels = [name for name in config.features.channels or config.channels if name in config.channels]
    problems, given, known = [], config.profiling.parameters, None
    if given.get("readout_denominator") and not given.get("readout"):
        problems.append(
            "profiling.parameters.readout_denominator: there is no readout to divide by it; name that too, readout: "
            "Nuclei_Intensity_MeanIntensity_…"
        )
    for key in ("readout", "readout_denominator"):
        name = config.profiling.parameters.get(key)
        if not name or not isinstance(name, str):
            continue
        if not channels:  # which is a mistake of its own
            continue
        if known is None:
            known = list(describe_columns(measured_compartments(config.segmentation.method), channels, **settings))
        if name == "Metadata_CellCount":
            problems.append(
                f"profiling.parameters.{key}: {name} falls with every field that is left out; write Metadata_CellsPerField"
                + (", and readout_denominator: null" if given.get("readout_denominator") and key == "readout" else "")
            )
        elif name == "Metadata_CellsPerField" and key == "readout" and given.get("readout_denominator"):
            problems.append(
                f"profiling.parameters.readout_denominator: {name} is divided by nothing; write readout_denominator: null"
            )
        elif name not in known and name != "Metadata_CellsPerField":
            family = next((one for one in features.FAMILIES if f"_{one}_" in name), None)
            example = next(
                (one for one in known if "_MeanIntensity_" in one), next(iter(known), "Nuclei_AreaShape_Area")
            )
            if family and config.features.families is not None and family not in config.features.families:
                hint = f" The family {family} is not among features.families"
            else:
                hint = (
                    f"{did_you_mean(name, known)} A feature is Compartment_Family_Measurement_Channel, e.g. {example}"
                )
            problems.append(f"profiling.parameters.{key}: no feature {name!r} is measured.{hint}")
        elif name.startswith("Cytoplasm_") and _is_bare(config.segmentation):
            problems.append(
                f"profiling.parameters.{key}: {name!r} has no value, since cells are no more than their nuclei: set "
                "segmentation.parameters.cells_channel, or cells_distance_um for a ring round them"
            )
    return problems


def _is_bare(segmentation):
    """Whether a method that grows cells from nuclei is told neither by what nor how far."""
    given = segmentation.parameters
    return segmentation.method == "watershed" and not given.get("cells_channel") and not given.get("cells_distance_um")


def method_modules(config, problems=None):
    """Modules of the methods that a screen uses, by config section; unknown names are added to `problems`, or raised.

    Returns
    -------
    dict of str to module
        Keys: ``"segmentation"``, ``"latent.autoencoder"`` …; each module has a `Params`.
    """
    from importlib import import_module

    from plateloom import classification, features, illumination, latent, segmentation
    from plateloom.registry import load_method

    chosen = {
        "illumination": (illumination.METHODS, config.illumination.method, "illumination method"),
        "segmentation": (segmentation.METHODS, config.segmentation.method, "segmentation method"),
        "latent.maps": (latent.MAPS, config.latent.maps.method, "map"),
    }
    if config.latent.maps.clusters.method != "none":
        chosen["latent.maps.clusters"] = (latent.CLUSTERINGS, config.latent.maps.clusters.method, "clustering method")
    if config.classification.labels:
        known, kind = (classification.METHODS, "classification method")
        if config.classification.inputs == "crops":
            known, kind = (classification.CROP_METHODS, "classification method for crops")
        if config.classification.target == "number":
            known, kind = (classification.REGRESSORS, "regression method")
        chosen["classification"] = (known, config.classification.method, kind)
    found = {"quality": import_module("plateloom.quality"), "profiling": import_module("plateloom.profiling")}
    if config.latent.autoencoder.enabled:
        chosen["latent.autoencoder"] = (latent.METHODS, config.latent.autoencoder.method, "latent method")
    for section, (methods, name, kind) in chosen.items():
        try:
            found[section] = load_method(methods, name, kind)
        except PlateloomError as error:
            if problems is None:
                raise
            misplaced = _misplaced(config.classification) if section == "classification" else ""
            problems.append(f"{section}.method: {misplaced or error}")
    for name in config.features.families or []:
        if name not in features.FAMILIES and problems is not None:
            problems.append(
                f"features.families: no family {name!r}.{did_you_mean(name, features.FAMILIES)} "
                f"Families: {', '.join(features.FAMILIES)}"
            )
    return found


def _misplaced(settings):
    """Which setting a method of classification goes with that is there, but not for these inputs or this target; else empty."""
    from plateloom.classification import CROP_METHODS, METHODS, REGRESSORS

    name = settings.method
    if name not in METHODS | CROP_METHODS | REGRESSORS:
        return ""
    if settings.target == "number":
        return f"{name} learns classes: target: number needs method: {' or '.join(sorted(REGRESSORS, reverse=True))}"
    if name in REGRESSORS:
        return f"{name} learns numbers: set classification.target: number"
    if settings.inputs == "crops":
        return f"{name} learns from tables: inputs: crops needs method: {' or '.join(sorted(CROP_METHODS))}"
    return f"{name} learns from crops: set classification.inputs: crops"


def read_config(folder):
    """Config of a screen: its config.yaml over the defaults.

    Parameters
    ----------
    folder : path
        The screen's folder.

    Returns
    -------
    Config
    """
    import shlex

    import yaml

    path = Path(folder) / "config.yaml"
    try:
        settings = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_unique_keys(yaml.SafeLoader)) or {}
    except FileNotFoundError:
        raise ConfigError(
            f"no {str(path)!r}; `plateloom init {shlex.quote(str(folder))} --source …` writes one"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        if mark := getattr(error, "problem_mark", None):
            said = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
        else:
            said = " ".join(str(error).split())
        raise ConfigError(f"{path}: not YAML: {said}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected `setting: value` lines")
    return load_config(settings)


def _unique_keys(loader):
    """A YAML loader that refuses a key that stands there twice, where others silently take the last."""
    from yaml.constructor import ConstructorError

    class Unique(loader):
        def construct_mapping(self, node, deep=False):
            seen = set()
            for key, _ in node.value:
                name = self.construct_object(key, deep=True)
                if name in seen:
                    raise ConstructorError(None, None, f"{name!r} stands there twice", key.start_mark)
                seen.add(name)
            return super().construct_mapping(node, deep)

    return Unique


def _without(settings, locations):
    """A copy of nested settings that lacks the entries at these locations."""
    kept = {}
    for key, value in settings.items():
        if (key,) in locations:
            continue
        inside = [location[1:] for location in locations if location[0] == key]
        if inside and isinstance(value, list):
            continue
        kept[key] = _without(value, inside) if inside and isinstance(value, dict) else value
    return kept


def _holder(config, section):
    """The section of the config that a dotted name means."""
    for name in section.split("."):
        config = getattr(config, name)
    return config


def _channel_uses(config):
    """Every place in the config that names channels."""
    parameters = config.segmentation.parameters
    for key in ("nuclei_channel", "cells_channel"):
        if parameters.get(key):
            yield f"segmentation.parameters.{key}", [parameters[key]]
    for i, step in enumerate(config.restoration):
        yield f"restoration.{i}.channels", step.channels or []
    yield "features.channels", config.features.channels or []
    yield "report.composite", config.report.composite or []


def explain(error, model, prefix=""):
    """One line per mistake: where, what, and what to type instead."""
    lines = []
    for mistake in error.errors():
        where = (prefix + ".".join(str(part) for part in mistake["loc"])).rstrip(".")
        if mistake["type"] == "extra_forbidden":
            known = _keys_at(model, mistake["loc"][:-1])
            hint = did_you_mean(mistake["loc"][-1], known)
            lines.append(f"{where}: unknown setting.{hint} Known here: {', '.join(known)}")
        else:
            said = mistake["msg"].removeprefix("Value error, ")
            if mistake["type"] in ("dict_type", "model_type", "model_attributes_type"):
                said = "expected `setting: value` lines"
            if mistake["type"] == "string_pattern_mismatch" and where.endswith("color"):
                said = "expected six hexadecimal digits RRGGBB, e.g. FF8000"
            found = "nothing" if mistake["input"] is None else repr(mistake["input"])
            lines.append(f"{where}: {said}" + ("" if mistake["type"] == "value_error" else f"; found {found}"))
    return lines


def _keys_at(model, location):
    """Names of the settings of a nested section."""
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            items = {"channels": Channel, "restoration": Restoration}.get(location[0])
            return list(items.model_fields) if items else []
        model = field.annotation
    return [name for name in getattr(model, "model_fields", {}) if name != "complete_only"]
