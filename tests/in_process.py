"""A screen's stages without Snakemake, each in this process: what its rules do, in a fraction of the time."""

import os

import yaml

from plateloom.engine import parts
from plateloom.planning import STAGES, Screen
from plateloom.store.layout import record_path


def run_stages(folder, stages=STAGES):
    """Run the stages of a screen of one part per plate, those that its config asks for.

    Parameters
    ----------
    folder : path
        The screen's.
    stages : iterable of str, optional
        Only these, in the order of the pipeline.
    """
    here, before = os.getcwd(), parts.EXECUTION
    os.chdir(folder)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    engine = settings.get("engine", {})
    names = ("tile_px", "settle_minutes", "end_marker", "scratch", "device")
    parts.EXECUTION = parts.Execution(
        threads=1, cluster={"kind": "threads"}, **{name: engine[name] for name in names if name in engine}
    )
    try:
        screen = Screen(settings)
        _Run(screen, set(stages) & set(screen.stages())).run()
    finally:
        parts.EXECUTION = before
        os.chdir(here)


class _Run:
    def __init__(self, screen, stages):
        self.screen, self.stages, self.plates = screen, stages, screen.complete_plates

    def go(self, function, stage, plate=None, *, part=False, settings=True, **more):
        if stage not in self.stages or (plate and plate not in self.screen.plates_with(stage)):
            return
        (record,) = self.screen.records(stage, plate)
        more |= {"plate": plate} if plate else {}
        more |= {"part": 0, "parts": 1} if part else {}
        more |= {"settings": self.screen.settings(stage, plate)} if settings else {}
        function(code=self.screen.code_for(stage, plate), record=str(record), **more)

    def every(self, stage):
        """Records of a stage: the screen's, or all plates'; none where it is not run."""
        if stage not in self.stages:
            return []
        if STAGES[stage].scope == "screen":
            return [f"results/screen/records/{stage}.json"]
        return [str(record_path(plate, stage)) for plate in self.screen.plates_with(stage)]

    def run(self):
        from plateloom.stages import classification, comparison, latent, maps, profiling, screen_report, training

        missing = self.screen.missing_from
        self.go(training.train_segmenter, "training")
        for plate in self.plates:
            self.measure(plate, self.screen.plates[plate])
        plates, measured, flagged = self.plates, self.every("features"), self.every("flagging")
        profiled, segmented, mapped = self.every("profiling"), self.every("segmentation"), self.every("map")
        self.go(profiling.profile_screen, "profiles", plates=plates, missing=missing("profiling"), profiled=profiled)
        self.go(
            latent.train_screen,
            "autoencoder",
            plates=plates,
            missing=missing("segmentation"),
            segmented=segmented,
            illuminated=self.every("illumination"),
            flagged=flagged,
        )
        for plate in self.plates:
            self.encode(plate)
        self.go(
            maps.fit_screen,
            "map",
            plates=plates,
            missing=missing(self.screen.config.latent.maps.inputs),
            measured=measured,
            flagged=flagged,
            encoded=self.every("latent") if self.screen.config.latent.maps.inputs == "latent" else [],
        )
        self.go(
            comparison.compare_screen,
            "comparison",
            missing=missing("latent_profiling"),
            screened="results/screen/records/profiles.json",
            profiled=profiled,
            encoded=self.every("latent_profiling"),
        )
        learned_from = self.screen.config.classification.inputs
        self.go(
            classification.train_screen,
            "classifier",
            plates=plates,
            missing=missing("latent" if learned_from == "latent" else "features"),
            labels=self.screen.labels() if "classifier" in self.stages else None,
            measured=measured,
            profiled=profiled,
            flagged=flagged,
            encoded=self.every("latent") if learned_from == "latent" else [],
        )
        for plate in self.plates:
            self.describe(plate, self.screen.plates[plate])
        self.go(
            screen_report.report_screen,
            "screen_report",
            plates=self.screen.plate_table(),
            missing=missing("report"),
            screened="results/screen/records/profiles.json",
            reported=self.every("report"),
            mapped=mapped,
            encoded=self.every("autoencoder"),
            compared=self.every("comparison"),
            classified=self.every("classifier"),
        )

    def measure(self, plate, row):
        """From images to the profiles of one plate."""
        from plateloom.stages import conversion, features, illumination, profiling, quality, segmentation

        of = {stage: str(record_path(plate, stage)) for stage in STAGES}
        images = {"assembled": of["assembly"], "converted": [of["conversion"]]}
        source = {"source": row.source, "reader": row.reader, "listing": self.screen.listing(plate, 0)}
        limit = self.screen.config.max_failed_fields
        self.go(conversion.convert_part, "conversion", plate, part=True, **source)
        self.go(
            conversion.assemble_plate,
            "assembly",
            plate,
            settings=False,
            max_failed_fields=limit,
            converted=images["converted"],
        )
        self.go(illumination.estimate_plate, "illumination", plate, **images)
        one = images | {"converted": of["conversion"]}
        self.go(quality.measure_part, "quality", plate, part=True, **one)
        self.go(quality.flag_plate, "flagging", plate, measured=[of["quality"]])
        light = {"illuminated": of["illumination"]}
        self.go(
            segmentation.segment_part,
            "segmentation",
            plate,
            part=True,
            corrections=self.screen.corrections(plate, 0),
            converted=of["conversion"],
            trained=self.every("training"),
            **light,
        )
        self.go(features.measure_part, "features", plate, part=True, segmented=of["segmentation"], **light)
        self.go(
            profiling.profile_plate,
            "profiling",
            plate,
            batch=row.batch,
            plate_map=[row.plate_map, self.screen.plate_map(plate)],
            max_failed_fields=limit,
            measured=[of["features"]],
            flagged=of["flagging"],
            encoded=[of["latent"]] if self.screen.config.profiling.exclude_badly_restored else [],
        )

    def encode(self, plate):
        """The latents of a plate's cells."""
        from plateloom.stages import comparison, latent

        of = {stage: str(record_path(plate, stage)) for stage in STAGES}
        self.go(
            latent.encode_part,
            "latent",
            plate,
            part=True,
            trained="results/screen/records/autoencoder.json",
            segmented=of["segmentation"],
            illuminated=of["illumination"],
            flagged=[of["flagging"]] if self.screen.config.latent.autoencoder.normalize == "plate" else [],
        )
        self.go(
            comparison.profile_latents,
            "latent_profiling",
            plate,
            profiled=of["profiling"],
            encoded=[of["latent"]],
        )

    def describe(self, plate, row):
        """What a plate's cells are by the screen's models, and its page."""
        from plateloom.stages import classification, maps, report

        of = {stage: str(record_path(plate, stage)) for stage in STAGES}
        own = lambda stage: [of[stage]] if stage in self.stages else []  # noqa: E731
        screened = "results/screen/records/profiles.json"
        model = "results/screen/records/map.json"
        self.go(
            maps.map_part,
            "maps",
            plate,
            part=True,
            settings=False,
            fitted=model,
            measured=of["features"],
            encoded=own("latent") if self.screen.config.latent.maps.inputs == "latent" else [],
        )
        self.go(
            classification.classify_part,
            "classes",
            plate,
            part=True,
            settings=False,
            trained="results/screen/records/classifier.json",
            measured=of["features"],
            encoded=own("latent") if self.screen.config.classification.inputs == "latent" else [],
        )
        self.go(
            report.report_plate,
            "report",
            plate,
            batch=row.batch,
            source=row.source,
            profiled=of["profiling"],
            flagged=of["flagging"],
            screened=screened,
            mapped=own("maps"),
            classified=own("classes"),
            encoded=own("latent"),
        )
