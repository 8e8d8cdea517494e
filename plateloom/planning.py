"""What Snakemake needs to know of a screen: its plates, each stage's settings, code and listing. Reads no pixel."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from plateloom import restoration
from plateloom.acceptances import read_accepted
from plateloom.config import TRAINED, load_config, method_modules
from plateloom.engine import locks
from plateloom.errors import ConfigError, DataFault, PlateloomError
from plateloom.ledgers import describe
from plateloom.quarantines import read_quarantined
from plateloom.readers import READERS, load_reader, suggest_reader
from plateloom.readers.folders import digest_changes
from plateloom.segmentation import COMPARTMENTS, measured_compartments, memory_of_volume, takes_device, works_on_volumes
from plateloom.store.annotations import digest_pairs, list_pairs
from plateloom.store.cell_labels import list_labeled_plates
from plateloom.store.corrections import list_corrections
from plateloom.store.layout import part_of, record_path, screen_record
from plateloom.store.provenance import PACKAGE, code_digest, digest_large, file_digest, read_json
from plateloom.store.sheets import read_sheet

PLATE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
LISTED_ALONE = 8  # so many source folders are listed sooner than other processes have started,
ALONE_SECONDS = 1.0  # and as many as in this time
LISTERS = 8
USUAL_WELLS = 384
SOURCES = Path(".plateloom/sources.json")
MOST_FOLDERS = 500  # of a source, to remember: of more, each look would cost what a listing does
SETTLED_S = 5.0  # that a folder must have been left alone before it is listed: times of folders are no finer than 2 s on some systems
_digest_code = functools.cache(code_digest)  # asked for each plate anew; a process has one code
TOLD_OF_QUARANTINES = {  # what a stage must know of what people have taken out; what is said of it changes no number
    "flagging": lambda screen, plate: sorted(screen.quarantined_wells(plate)),
    "profiling": lambda screen, plate: sorted(screen.quarantined_wells(plate)),
    "report": lambda screen, plate: screen.quarantined_wells(plate),
    "profiles": lambda screen, plate: sorted(screen.quarantined_plates),
    "screen_report": lambda screen, plate: screen.quarantined_plates,
}
OF_THE_RUN = ("complete_plates", "failed_stages")  # that a run on complete plates only begins with
NO_PLATE = "lists no plate; each has a line: plate, source, reader, plate_map, batch"
PLATE_COLUMNS = {"plate", "source", "reader", "plate_map", "batch", "acquisition"}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step, as the status page, the DAG and the code digests know it.

    Attributes
    ----------
    scope : {'part', 'plate', 'screen'}
        What one job works on.
    script : str
        Also the rule's and the log's name.
    after : tuple of str
        Stages whose records it always waits for (the nearest ones); see `Screen.after`.
    modules : tuple of str
        What computes; the chosen methods' modules come on top.
    sections : tuple of str
        Config sections whose methods it runs.
    """

    scope: str
    script: str
    after: tuple
    modules: tuple
    sections: tuple = ()


STAGES = {
    "training": Stage("screen", "train_segmenter", (), ("plateloom.stages.training",)),
    "conversion": Stage("part", "convert_plate", (), ("plateloom.stages.conversion",)),
    "assembly": Stage("plate", "assemble_plate", ("conversion",), ("plateloom.stages.conversion",)),
    "illumination": Stage(
        "plate", "estimate_illumination", ("assembly",), ("plateloom.stages.illumination",), ("illumination",)
    ),
    "quality": Stage("part", "measure_quality", ("assembly",), ("plateloom.stages.quality",)),
    "flagging": Stage("plate", "flag_fields", ("quality",), ("plateloom.stages.quality",)),
    "segmentation": Stage(
        "part", "segment_plate", ("illumination", "training"), ("plateloom.stages.segmentation",), ("segmentation",)
    ),
    "features": Stage("part", "measure_features", ("segmentation",), ("plateloom.stages.features",)),
    "profiling": Stage("plate", "profile_plate", ("features", "flagging"), ("plateloom.stages.profiling",)),
    "profiles": Stage("screen", "profile_screen", ("profiling",), ("plateloom.stages.profiling",), ("latent.maps",)),
    "autoencoder": Stage(
        "screen",
        "train_autoencoder",
        ("segmentation", "flagging"),
        ("plateloom.stages.latent",),
        ("latent.autoencoder",),
    ),
    "latent": Stage("part", "encode_plate", ("autoencoder",), ("plateloom.stages.latent",), ("latent.autoencoder",)),
    "latent_profiling": Stage(
        "plate", "profile_latents", ("latent", "profiling"), ("plateloom.stages.comparison",), ("latent.autoencoder",)
    ),
    "comparison": Stage("screen", "compare_spaces", ("profiles", "latent_profiling"), ("plateloom.stages.comparison",)),
    "map": Stage(
        "screen",
        "fit_map",
        ("features", "flagging"),
        ("plateloom.stages.maps",),
        ("latent.maps", "latent.maps.clusters"),
    ),
    "maps": Stage("part", "map_plate", ("map",), ("plateloom.stages.maps",)),
    "classifier": Stage(
        "screen",
        "train_classifier",
        ("features", "profiling"),
        ("plateloom.stages.classification",),
        ("classification",),
    ),
    "classes": Stage(
        "part", "classify_plate", ("classifier",), ("plateloom.stages.classification",), ("classification",)
    ),
    "report": Stage("plate", "report_plate", ("profiles", "latent", "maps", "classes"), ("plateloom.stages.report",)),
    "screen_report": Stage("screen", "report_screen", ("report", "comparison"), ("plateloom.stages.screen_report",)),
}


@dataclasses.dataclass(frozen=True)
class Plate:
    """One row of plates.tsv; a plate that was imaged again has its acquisition's number in its name."""

    plate: str
    source: str
    reader: str
    plate_map: str = ""
    batch: str = ""


class Screen:
    """A screen's folder, read once.

    Parameters
    ----------
    settings : dict
        The merged config.
    folder : path, optional
        The screen's folder; default: the current one.
    frozen : dict, optional
        What `freeze` gave when the run began: it holds instead of what plates.tsv and the source folders say now.
    quick : bool
        Whether a source folder is listed only where that may tell something new; see `_remembered`.

    Raises
    ------
    ConfigError
        If config or plates.tsv are wrong.
    """

    def __init__(self, settings, folder=".", *, frozen=None, quick=False):
        self.folder, self._quick = Path(folder), quick
        self.config = load_config(settings if frozen is None else frozen["config"])
        if frozen is None:
            rows = read_plates(self.folder / self.config.plates)
        else:
            rows = [Plate(**row) for row in frozen["plates"]]
            self._listings, self._deferrals = frozen["listings"], frozen["deferrals"]
            self._sizes = frozen["sizes"]
            self._corrections, self._weights = frozen["corrections"], frozen["weights"]
            self._encoder_weights = frozen["encoder_weights"]
            self._annotations = frozen["annotations"]
        self.plates = {plate.plate: plate for plate in rows}
        # Cached properties: what is complete changes while a run works, and its jobs must agree.
        vars(self).update({name: frozen[name] for name in OF_THE_RUN if name in (frozen or ())})
        if frozen is None:
            self._quarantined = read_quarantined(self.folder, self.plates)
            self._accepted = read_accepted(self.folder, STAGES)
        else:
            self._quarantined, self._accepted, self._codes = (
                frozen[name] for name in ("quarantined", "accepted", "codes")
            )

    def freeze(self):
        """Everything that a run's jobs need of config, plate list and listings, as JSON."""
        plates = [dataclasses.asdict(plate) for plate in self.plates.values()]
        return {
            "config": self.config.model_dump(mode="json"),
            "plates": plates,
            "listings": self._listings,
            "sizes": self._sizes,
            "deferrals": self._deferrals,
            "corrections": self._corrections,
            "weights": self._weights,
            "encoder_weights": self._encoder_weights,
            "annotations": self._annotations,
            "quarantined": self._quarantined,
            "accepted": self._accepted,
            "codes": self._codes,
        } | ({name: getattr(self, name) for name in OF_THE_RUN} if self.config.complete_only else {})

    def quarantined_wells(self, plate):
        """Wells of a plate that a person has taken out, with who, when and why."""
        return {well: describe(entry) for well, entry in self._quarantined.get(plate, {}).items() if well}

    @functools.cached_property
    def quarantined_plates(self):
        """Plates that a person has taken out, with who, when and why."""
        return {plate: describe(wells[""]) for plate, wells in self._quarantined.items() if "" in wells}

    @functools.cached_property
    def complete_plates(self):
        """Plates that screen-level steps run on."""
        kept = [plate for plate in self.plates if plate not in self.quarantined_plates]
        if not self.config.complete_only:
            return kept
        return [plate for plate in kept if self.is_complete(plate)]

    @functools.cached_property
    def failed_stages(self):
        """Stages of which a job of a complete plate has failed since the run began, by plate; a run of all plates tries them."""
        if not self.config.complete_only:
            return {}
        lock = self.folder / locks.RUN
        since = lock.stat().st_mtime if lock.exists() else 0.0
        stages = [stage for stage in self.stages() if STAGES[stage].scope != "screen"]
        found = {
            plate: [
                stage
                for stage in stages
                if any(_has_failed(self.folder / path, since) for path in self.records(stage, plate))
            ]
            for plate in self.complete_plates
        }
        return {plate: failed for plate, failed in found.items() if failed}

    def plates_with(self, stage):
        """Complete plates that have a stage's results, or may: of the others it, or what it needs of the plate, has failed."""
        chain = self._of_plate(stage)
        return [plate for plate in self.complete_plates if not chain & set(self.failed_stages.get(plate, ()))]

    def missing_from(self, stage):
        """Plates that steps of the screen do without that read a stage's results, though nobody has taken them out."""
        return sorted(set(self.plates) - set(self.plates_with(stage)) - set(self.quarantined_plates))

    def _of_plate(self, stage):
        """A stage, and those of the same plate that it is made from without a step of the screen between."""
        above = [name for name in self.after(stage) if STAGES[name].scope != "screen"]
        return {stage}.union(*map(self._of_plate, above))

    def is_complete(self, plate):
        """Whether every record of every stage that screen-level steps read is there and good."""
        needed = (
            "training",
            "conversion",
            "assembly",
            "illumination",
            "quality",
            "flagging",
            "segmentation",
            "features",
            "profiling",
        )
        if self.config.profiling.exclude_badly_restored and not all(
            (self.folder / path).exists() for path in self.records("latent", plate)
        ):  # profiles then wait for the autoencoder, which waits for every plate
            needed = needed[:-1]
        return all(
            _read(self.folder / path).get("status") in ("done", "failed", "skipped")
            for stage in needed
            if stage in self.stages()
            for path in self.records(stage, plate)
        )

    def after(self, stage):
        """Stages whose records a stage waits for with this screen's config (the nearest ones)."""
        return nearest_stages(self.config)[stage]

    def stages(self):
        """Names of the stages that this screen's config asks for, none before one that it waits for."""
        off = set()
        if not self.config.segmentation.training.images:
            off |= {"training"}
        if not self.config.latent.autoencoder.enabled:
            off |= {"autoencoder", "latent", "latent_profiling"}
        if not self.config.comparison.enabled:
            off |= {"comparison"}
        if not self.config.classification.labels:
            off |= {"classifier", "classes"}
        left, placed = [name for name in STAGES if name not in off], []
        while left:
            placed.append(next(name for name in left if not set(self.after(name)) & set(left)))
            left.remove(placed[-1])
        return placed

    def records(self, stage, plate=None):
        """Paths of a stage's records, below the screen's folder."""
        scope = STAGES[stage].scope
        if scope == "screen":
            return [screen_record(stage)]
        parts = range(self.config.parts) if scope == "part" else [0]
        return [record_path(plate, stage, part) for part in parts]

    def settings(self, stage, plate=None):
        """All settings that can change a stage's result, and none that cannot.

        Returns
        -------
        dict
            JSON values only.
        """
        config = self.config.model_dump(mode="json")
        latent, training = config["latent"], config["segmentation"].pop("training")
        if stage == "conversion":
            params = self._reader_params(self.plates[plate].reader)
            return {"channels": config["channels"], "conversion": config["conversion"], "reader_params": params}
        measured = measured_compartments(config["segmentation"]["method"])
        level = config["quality"]["parameters"].get("saturation_level")
        chosen = {
            "illumination": config["illumination"]
            | ({"restoration": config["restoration"]} if config["restoration"] else {}),
            "quality": {"saturation_level": level} if level is not None else {},
            "flagging": config["quality"],
            "segmentation": config["segmentation"] | ({"weights": self._weights} if self._weights else {}),
            "training": training | {"content": self._annotations},
            "features": config["features"]
            | {"channels": config["features"]["channels"] or list(config["channels"])}
            | ({} if measured == COMPARTMENTS else {"compartments": list(measured)})
            | ({"volumes": True} if self.has_volumes else {}),
            "profiling": config["profiling"]
            | (
                {"error_limit": latent["autoencoder"]["error_limit"]}
                if config["profiling"]["exclude_badly_restored"]
                else {}
            ),
            "profiles": config["profiling"]
            | {"map": latent["maps"]["method"]}
            | ({"learned_from": named} if stage == "profiles" and (named := self.learned_from) else {}),
            "assembly": {"max_failed_fields": config["max_failed_fields"]},
            "autoencoder": {name: value for name, value in latent["autoencoder"].items() if name != "error_limit"}
            | ({"weights": self._encoder_weights} if self._encoder_weights else {}),
            "latent": {name: latent["autoencoder"][name] for name in ("crop_um", "normalize")},
            "latent_profiling": self._settings_of_latent_profiles(config),
            "comparison": {
                "comparison": {name: value for name, value in config["comparison"].items() if name != "enabled"},
                "parameters": config["profiling"]["parameters"],
            },
            "map": latent["maps"],
            "classifier": config["classification"],
            "report": self._page_settings(config, training),
            "screen_report": self._page_settings(config, training),
        }
        return chosen.get(stage, {}) | self._quarantine_settings(stage, plate)

    @staticmethod
    def _settings_of_latent_profiles(config):
        """What of the profiles of features holds for those of latents."""
        profiling = config["profiling"]
        names = ("aggregate", "normalize_to", "method", "min_controls")
        found = {name: profiling[name] for name in ("exclude_flagged", "exclude_unlike_counts")}
        found["parameters"] = {name: profiling["parameters"][name] for name in names}
        if profiling["exclude_badly_restored"]:
            found["error_limit"] = config["latent"]["autoencoder"]["error_limit"]
        return found

    def _quarantine_settings(self, stage, plate):
        """What a stage must know of what people have taken out; nothing where they have not, as before there was any."""
        found = TOLD_OF_QUARANTINES[stage](self, plate) if stage in TOLD_OF_QUARANTINES else None
        return {"quarantined": found} if found else {}

    def _reader_params(self, reader):
        """Parameters of a reader, its own defaults where the config is silent."""
        given = self.config.readers.get(reader)
        return load_reader(reader).Params().model_dump(mode="json") if given is None else given

    @staticmethod
    def _page_settings(config, training):
        """What a page shows: everything that can change a result."""
        if training["images"]:
            config = config | {"segmentation": config["segmentation"] | {"training": training}}
        science = {
            name: value
            for name, value in config.items()
            if name not in ("engine", "parts", "complete_only", "plates", "nightly")
        }
        return {"report": config["report"], "channels": config["channels"], "config": science}

    def recorded_settings(self, stage, plate=None):
        """What a record says that its stage was configured with: its settings, and the tables that people write."""
        extra = {}
        if stage == "profiling":
            extra = {"batch": self.plates[plate].batch, "plate_map": self.plate_map(plate)}
        elif stage == "classifier":
            extra = {"labels": self.labels()}
        return self.settings(stage, plate) | extra

    def codes(self, stage, plate=None):
        """Digests of code whose results of a stage hold: the present one, and those that a person has kept."""
        code = self.code(stage, plate)
        return {code} | {row["keeps"] for row in self._accepted if (row["stage"], row["code"]) == (stage, code)}

    def code_for(self, stage, plate=None, part=0):
        """Digest that a job works by: that of the results that are there, if they hold; else the present one.

        So a late image of a plate that is kept leaves its other wells as they are.
        """
        codes = self._codes.get(stage, {}).get(plate or "")
        return codes[part] if codes else self.code(stage, plate)

    @functools.cached_property
    def _codes(self):
        """Digests by stage, plate and part, of the stages of which a person has kept results."""
        found = {}
        for stage in self.stages():
            for plate in self.plates if STAGES[stage].scope != "screen" else [""]:
                known = self.codes(stage, plate or None)
                if len(known) == 1:
                    continue
                made = [_read(self.folder / path).get("code") for path in self.records(stage, plate)]
                codes = [code if code in known else self.code(stage, plate or None) for code in made]
                found.setdefault(stage, {})[plate] = codes
        return found

    def code(self, stage, plate=None):
        """Digest of the code that makes a stage's results; of a plate where plates differ in it: by their readers."""
        if stage not in self.stages():
            return ""
        chosen = STAGES[stage]
        modules = list(chosen.modules)
        methods = self._methods
        modules += [methods[section].__name__ for section in chosen.sections if section in methods]
        if stage == "conversion":
            plates = [self.plates[plate]] if plate in self.plates else self.plates.values()
            modules += sorted({READERS[one.reader] for one in plates})
        if stage == "illumination":  # whose fingerprint all have that read pixels
            modules += sorted({restoration.METHODS[step.method] for step in self.config.restoration})
        if stage == "features":
            from plateloom.features import FAMILIES

            families = self.config.features.families or FAMILIES
            modules += ["plateloom.features.volume"] if self.has_volumes else [FAMILIES[name] for name in families]
        return _digest_code(*modules, str(PACKAGE.parent / "scripts" / f"{chosen.script}.py"))

    @property
    def has_volumes(self):
        """Whether cells are found and measured in volumes."""
        return works_on_volumes(self.config.segmentation.method)

    @property
    def segments_on_gpu(self):
        """Whether segmentation runs a network, which wants a GPU."""
        return takes_device(self._methods["segmentation"])

    @functools.cached_property
    def _weights(self):
        """Digests of the models of the user that segmentation reads, by path."""
        files, problems = list_weights(self.config, self.folder)
        if problems:
            raise ConfigError(problems)
        return {file: digest_large(self.folder / file) for file in files}

    @functools.cached_property
    def _encoder_weights(self):
        """Digests of the models of the user that crops are encoded with, by path."""
        files, problems = list_encoder_weights(self.config, self.folder)
        if problems:
            raise ConfigError(problems)
        return {file: digest_large(self.folder / file) for file in files}

    @functools.cached_property
    def _annotations(self):
        """Digests of what the network is trained on; empty where none is."""
        training = self.config.segmentation.training
        if not training.images:
            return {}
        found = digest_pairs(self.folder / training.images, self.folder / training.labels)
        if training.start not in ("", "shipped"):
            found["start"] = digest_large(self.folder / training.start)
        return found

    @functools.cached_property
    def _methods(self):
        return method_modules(self.config)

    def listing(self, plate, part):
        """Digest of the source files of one part: names, sizes and times.

        A source folder that has gone (archived, not mounted) is no change: the last listing holds.
        """
        return self._listings[plate][part]

    def has_source(self, plate):
        """Whether a plate's source folder is there."""
        return (self.folder / self.plates[plate].source).exists()

    def deferral(self, plate, part):
        """Which attempt a part was last deferred in: a value that makes it run again, and stays once it is done."""
        return self._deferrals[plate][part]

    def gpus(self, stage):
        """GPUs that a job asks for: one, unless the config says `cpu` or the stage's method runs no network."""
        networks = ("training", "autoencoder", "latent")
        networks += ("segmentation",) if self.segments_on_gpu else ()
        networks += ("classifier", "classes") if self.config.classification.inputs == "crops" else ()
        return int(stage in networks and self.config.engine.device != "cpu")

    def wells(self, plate, unknown=USUAL_WELLS):
        """How many wells a plate has, by the names of its source files; `unknown` where they do not say."""
        return self._sizes.get(plate, {}).get("wells") or unknown

    def source_gb(self, plate, part):
        """What the source files of a part hold [GB]; 0 where they are gone, or their listing has no sizes (OME-Zarr)."""
        found = self._sizes.get(plate)
        return 1e-9 * found["bytes"][part] if found else 0.0

    def size(self, plate):
        """How large a plate is, as soon as it is assembled; before that, and without a plate, nothing is known.

        Parameters
        ----------
        plate : str or None

        Returns
        -------
        field_mb : float
            One field in all channels [MB].
        gigapixels : float
            All fields in all channels, with all planes that are kept [10⁹ px].
        fields : int
        """
        facts = (plate and read_json(self.folder / record_path(plate, "assembly")) or {}).get("facts", {})
        height, width, *_ = facts.get("accepted") or (0, 0)
        pixels, fields = height * width * len(self.config.channels), facts.get("fields", 0)
        return 2e-6 * pixels, 1e-9 * pixels * facts.get("planes", 1) * fields, fields

    @property
    def stacks_gb(self):
        """What conversion holds of stacks that are kept [GB]: a guess, since nobody knows their size before; else 0."""
        return 12.0 if self.config.conversion.z == "keep" else 0.0

    def volume_mb(self, stage, plate):
        """What a thread of a stage needs for one of the plate's volumes [MB]; 0 where none is segmented or measured."""
        facts = (self.has_volumes and read_json(self.folder / record_path(plate, "assembly")) or {}).get("facts", {})
        height, width, *_ = facts.get("accepted") or (0, 0)
        return memory_of_volume(stage, (facts.get("planes", 1), height, width), len(self.config.channels))

    @property
    def crops_gb(self):
        """All crops that a classifier learns from together [GB]; 0 where it learns from something else."""
        chosen = self.config.classification
        if chosen.inputs != "crops" or not chosen.labels:
            return 0.0
        side = self._methods["classification"].Params(**chosen.parameters).out_px
        return 2e-9 * chosen.cells * len(self.config.channels) * side**2

    @functools.cached_property
    def _deferrals(self):
        """Attempts by plate and part."""
        return {
            plate: [_last_deferral(self.folder / path) for path in self.records("conversion", plate)]
            for plate in self.plates
        }

    @functools.cached_property
    def _sources(self):
        """What the source folders that are there hold, by plate; see `list_source`."""
        asked = {plate: self._asked(plate) for plate in self.plates if self.has_source(plate)}
        known = self._remembered(asked) if self._quick else {}
        left = {plate: one for plate, one in asked.items() if plate not in known}
        return known | dict(zip(left, _list_sources(list(left.values())), strict=True))

    def _asked(self, plate):
        """Arguments of `list_source` for a plate."""
        row = self.plates[plate]
        return [str(self.folder / row.source), row.reader, self._reader_params(row.reader), self.config.parts]

    def remember_sources(self):
        """What the source folders held when they were listed, and the times of the folders, for `_remembered`; as JSON."""
        return {
            plate: {"asked": [self.plates[plate].source, *self._asked(plate)[1:]], "folders": folders, "found": found}
            for plate, (*found, folders) in self._sources.items()
            if folders
        }

    def _remembered(self, asked):
        """Of sources to be listed those that were when the last run began, and in which no file has come or gone since.

        Of plates that are converted: others may still be written. What was never listed nor converted is left empty: nothing is
        compared with it.
        """
        known, found = _read(self.folder / SOURCES), {}
        for plate, (source, *more) in asked.items():
            said, records = known.get(plate, {}), [self.folder / path for path in self.records("conversion", plate)]
            if not any(map(os.path.exists, records)):
                found[plate] = ([""] * self.config.parts, {}, {})
            elif (
                said.get("asked") == [self.plates[plate].source, *more]
                and all(_read(path).get("status") == "done" for path in records if os.path.exists(path))
                and all(_times(source, name) == times for name, times in said["folders"].items())
            ):
                found[plate] = (*said["found"], said["folders"])
        return found

    @functools.cached_property
    def _listings(self):
        """Digests by plate and part."""
        found = {plate: digests for plate, (digests, *_) in self._sources.items()}
        for plate in self.plates.keys() - found.keys():
            records = [_read(self.folder / path) for path in self.records("conversion", plate)]
            found[plate] = [record.get("facts", {}).get("listing", "no source folder") for record in records]
        return found

    @functools.cached_property
    def _sizes(self):
        """Wells and bytes by plate; see `list_source`."""
        return {plate: size for plate, (_, size, _) in self._sources.items()}

    def corrections(self, plate, part):
        """Digests of the labels that people have corrected, by well and field of one part."""
        found = self._corrections[plate]
        return {well: fields for well, fields in found.items() if part_of(well, self.config.parts) == part}

    @functools.cached_property
    def _corrections(self):
        """Digests by plate, well and field."""
        return {plate: list_corrections(self.folder, plate) for plate in self.plates}

    def plate_map(self, plate):
        """Digest of a plate's map; empty where it has none."""
        name = self.plates[plate].plate_map
        return file_digest((self.folder / name).read_bytes()) if name else ""

    def labels(self):
        """Digest of the table of labels for the classifier."""
        path = self.folder / (self.config.classification.labels or ".")
        return file_digest(path.read_bytes()) if path.is_file() else self.config.classification.labels

    @property
    def learned_from(self):
        """Plates that a model keeps to as others are added: those of the table of labels, or the encoder's; None: all."""
        path, encoder = self.folder / (self.config.classification.labels or "."), self.config.latent.autoencoder
        if path.is_file():
            return list_labeled_plates(path)
        return sorted(encoder.plates) if encoder.enabled and encoder.plates else None

    def plate_table(self):
        """Plates that the screen's page reads, with batch and map, as JSON rows."""
        return [dataclasses.asdict(self.plates[plate]) for plate in self.plates_with("report")]


def nearest_stages(config):
    """Stages whose records each stage waits for with a config, the nearest ones: dict of str to tuple of str."""
    found = {name: stage.after for name, stage in STAGES.items()}
    more = ["classifier", "classes"] if config.classification.inputs == "latent" else []
    more += ["profiling"] if config.profiling.exclude_badly_restored else []
    more += ["map", "maps"] if config.latent.maps.inputs == "latent" else []
    return found | {name: (*found[name], "latent") for name in more}


def _read(path):
    """A record; empty where it is missing, or cannot be read, which `read_screen` tells."""
    try:
        found = read_json(path)
    except OSError:
        return {}
    return found if isinstance(found, dict) else {}


def _has_failed(record, since):
    """Whether a job was begun since a time, has ended, and left no record."""
    lock = record.with_name(f".{record.stem}.lock")
    return not record.exists() and bool(locks.read(lock).get("attempts")) and lock.stat().st_mtime >= since


def list_weights(config, folder):
    """List the models of the user that a screen's segmentation reads; what one is trained on here must be there instead.

    Parameters
    ----------
    config : Config
    folder : path
        The screen's.

    Returns
    -------
    files : list of str
        Paths, as the config gives them.
    problems : list of str
        Those that are not there, and what is wrong with the folders that a network is to be trained on.
    """
    module = method_modules(config)["segmentation"]
    if not hasattr(module, "weights_files"):
        return [], []
    files = module.weights_files(module.Params(**config.segmentation.parameters))
    problems, training = [], config.segmentation.training
    if training.images:
        files = [file for file in files if file != TRAINED]
        try:
            list_pairs(Path(folder, training.images), Path(folder, training.labels))
        except ConfigError as error:
            problems += [f"segmentation.training: {problem}" for problem in error.problems]
        if training.start not in ("", "shipped") and not Path(folder, training.start).is_file():
            problems.append(f"segmentation.training.start: no weights at {training.start!r}; nothing is downloaded")
    return files, problems + _absent("segmentation", files, folder)


def list_encoder_weights(config, folder):
    """List the models of the user that a screen's crops are encoded with, as `list_weights` does."""
    module = method_modules(config).get("latent.autoencoder")
    if not hasattr(module, "weights_files"):
        return [], []
    files = module.weights_files(module.Params(**config.latent.autoencoder.parameters))
    return files, _absent("latent.autoencoder", files, folder)


def _absent(section, files, folder):
    """What is wrong with files of weights that are not there."""
    missing = [file for file in files if not Path(folder, file).is_file()]
    return [f"{section}.parameters: no weights at {file!r}; nothing is downloaded" for file in missing]


def _list_sources(asked):
    """What source folders hold; of many side by side, since millions of files are a minute of system calls.

    Processes rather than threads: calls as short as these spend more time on the interpreter's lock than on their work.
    """
    alone, deadline = [], time.monotonic() + ALONE_SECONDS
    while len(alone) < len(asked) and (len(alone) < LISTED_ALONE or time.monotonic() < deadline):
        alone.append(list_source(*asked[len(alone)]))
    asked = asked[len(alone) :]
    if not asked:
        return alone
    call = "import json, sys; from plateloom.planning import list_source as f; json.dump([f(*one) for one in json.load(sys.stdin)], sys.stdout)"
    paths = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))

    def ask(share):
        command = [sys.executable, "-c", call]
        done = subprocess.run(
            command, input=json.dumps(share), capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
        )
        if done.returncode:
            raise PlateloomError(f"listing the source folders failed: {done.stderr.strip()[-2000:]}")
        return json.loads(done.stdout)

    shares = [asked[i::LISTERS] for i in range(LISTERS)]
    with ThreadPoolExecutor(LISTERS) as pool:
        found = list(pool.map(ask, shares))
    return alone + [found[i % LISTERS][i // LISTERS] for i in range(len(asked))]


def list_source(source, reader, params, parts):
    """List a source folder once.

    Returns
    -------
    digests : list of str
        Of names, sizes and times, one per part.
    size : dict
        `wells`, how many the names tell; `bytes`, a list, one number per part: what belongs to no such well is shared by all.
    folders : dict of str to list of int
        Times [ns] of the folders below the source, by which it is known again; empty where that is not to be relied on.
    """
    module, sizes = load_reader(reader), {}
    folders = _list_folders(source)  # before the files: what comes in between changes these times

    def listing(source, params):
        for well, line in module.listing(source, params):
            size = line.rsplit("/", 2)[-2:-1]
            sizes[well] = sizes.get(well, 0) + (int(size[0]) if size and size[0].isdecimal() else 0)
            yield well, line

    try:
        told = types.SimpleNamespace(listing=listing)
        digests = digest_changes(told, Path(source), module.Params(**params), part_of, parts)
    except (DataFault, OSError, KeyError, ValueError) as fault:  # one plate's folder must not stop the others
        return [f"fault: {fault}"] * parts, {"wells": 0, "bytes": [0] * parts}, {}
    held = [sizes.pop("", 0) // parts] * parts
    for well, size in sizes.items():
        held[part_of(well, parts)] += size
    return digests, {"wells": len(sizes), "bytes": held}, folders


def _list_folders(source):
    """Folders below a source and their times; empty where there are too many, or one was changed just now."""
    found, waiting, now = {}, [""], time.time()
    while waiting and len(found) < MOST_FOLDERS:
        name = waiting.pop()
        found[name] = _times(source, name)
        try:
            with os.scandir(os.path.join(source, name)) as entries:
                waiting += [os.path.join(name, one.name) for one in entries if one.is_dir(follow_symlinks=False)]
        except OSError:
            return {}
    settled = all(times and times[0] < 1e9 * (now - SETTLED_S) for times in found.values())
    return found if settled and not waiting else {}


def _times(source, name):
    """When entries of a folder, or what it is, last changed [ns]; empty where it is gone."""
    try:
        status = os.stat(os.path.join(source, name))
    except OSError:
        return []
    return [status.st_mtime_ns, status.st_ctime_ns]


def _last_deferral(path):
    """What a record of conversion says of being put off; empty if nothing."""
    record = _read(path)
    facts = record.get("facts", {})
    return record["started"] if facts.get("deferred") else facts.get("after_deferral", "")


def read_plates(path):
    """Read plates.tsv as a list of `Plate`; raises `ConfigError` naming every wrong line."""
    plates, problems = list_plates(path)
    if problems:
        raise ConfigError(problems)
    return plates


def list_plates(path):
    """Read plates.tsv, wrong lines and all.

    Parameters
    ----------
    path : path
        Columns `plate` and `source`, and if there are any `reader`, `plate_map`, `batch`, and `acquisition`, a number that
        tells several measurements of one plate apart: ``P1`` imaged again as 2 is the plate ``P1-acquisition2``.

    Returns
    -------
    plates : list of Plate
    problems : list of str
        One line each, with what to type instead.
    """
    numbered, problems = number_plates(path)
    return [plate for _, plate in numbered], problems


def number_plates(path):
    """As `list_plates`, each plate with the line that it stands on: (list of (int, Plate), list of str)."""
    import re

    rows, problems = read_sheet(path, {"plate", "source"}, PLATE_COLUMNS)
    plates, seen = [], {}
    for line, row in rows:
        row = {name: row.get(name, "") for name in PLATE_COLUMNS}
        row["reader"] = row["reader"] or "pattern"
        again = row.pop("acquisition")
        if again and not re.fullmatch("[1-9][0-9]*", again):
            problems.append(f"{path}:{line}: acquisition {again!r}: expected a number from 1, or nothing")
        elif again and again != "1":
            row["plate"] += f"-acquisition{again}"
        if not re.fullmatch(PLATE_NAME, row["plate"]):
            problems.append(f"{path}:{line}: plate {row['plate']!r}: expected letters, digits, '.', '_' and '-' only")
        elif row["plate"] in seen:
            first, advice = seen[row["plate"]], "remove one of the lines"
            if first != row["source"]:
                advice = (
                    f"{first!r} and {row['source']!r}; give one of them another name, or, if the plate was imaged again, "
                    "number both in a column `acquisition`"
                )
            problems.append(f"{path}:{line}: plate {row['plate']!r} stands there twice: {advice}")
        elif row["plate"].lower() in {name.lower() for name in seen}:
            problems.append(f"{path}:{line}: plate {row['plate']!r} differs from another only in capital letters")
        if row["source"] and row["source"] in seen.values() and row["plate"] not in seen:
            owner = next(name for name, source in seen.items() if source == row["source"])
            problems.append(f"{path}:{line}: source {row['source']!r} belongs to another plate already, {owner!r}")
        seen.setdefault(row["plate"], row["source"])
        if row["reader"] not in READERS:
            problems.append(
                f"{path}:{line}: no reader {row['reader']!r}.{suggest_reader(row['reader'])} Readers: {', '.join(READERS)}"
            )
        if not row["source"]:
            problems.append(f"{path}:{line}: plate {row['plate']!r} has no source folder")
        plates.append((line, Plate(**row)))
    if not rows and not problems:
        problems.append(f"{path}: {NO_PLATE}")
    return plates, problems
