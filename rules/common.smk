# Functions that rules call: targets, settings, code and listings of a screen. No rule stands here.

from plateloom.driver import (
    begin_run as _begin_run,
    end_run,
    finish_complete_plates,
    open_screen,
)
from plateloom.estimate import time_limit
from plateloom.planning import PLATE_NAME, STAGES

SCREEN = open_screen(config, main=workflow.is_main_process)
PARTS = range(SCREEN.config.parts)
RECORD = "results/plates/{plate}/records/{stage}/part-{part}.json"


def begin_run():
    """Take the lock of the screen and freeze its config for the run."""
    _begin_run(SCREEN)


def every_target():
    """Records of all stages: one that was lost on the way is made again, though the reports are there.

    Of a plate whose source has gone, what comes of its images; they cannot be read again.
    """
    targets = []
    for stage in SCREEN.stages():
        if stage == "training" and SCREEN.config.complete_only:
            continue  # plates are complete with it; where it failed, none is, and it is not tried once more
        if STAGES[stage].scope == "screen":
            targets.append(f"results/screen/records/{stage}.json")
            continue
        parts = PARTS if STAGES[stage].scope == "part" else [0]
        plates = SCREEN.plates_with(stage)
        if stage == "conversion":
            plates = [plate for plate in plates if SCREEN.has_source(plate)]
        targets += expand(RECORD, stage=stage, part=parts, plate=plates)
    return targets


def every_part(stage):
    """Records of all parts of the plate of the rule's wildcard."""
    return expand(RECORD, stage=stage, part=PARTS, allow_missing=True)


def every_plate(stage):
    """Records of a stage for all parts of all plates that screen-level steps read; without those on which it has failed."""
    parts = PARTS if STAGES[stage].scope == "part" else [0]
    return expand(RECORD, stage=stage, part=parts, plate=SCREEN.plates_with(stage))


def if_wanted(stage, records):
    """Records of a stage as a list, which is empty where the screen's config does not ask for it."""
    return (
        ([records] if isinstance(records, str) else records)
        if stage in SCREEN.stages()
        else []
    )


def if_learned_from(inputs, records):
    """Records as a list, which is empty where the classifier learns from something else."""
    wanted = SCREEN.config.classification.inputs == inputs
    return ([records] if isinstance(records, str) else records) if wanted else []


def if_mapped(records):
    """Records of latents as a list, which is empty where the map of cells is of features."""
    wanted = SCREEN.config.latent.maps.inputs == "latent"
    return ([records] if isinstance(records, str) else records) if wanted else []


def if_profiles_need(inputs, records):
    """Records as a list, which is empty where profiles are made without them."""
    wanted = inputs == "latent" and SCREEN.config.profiling.exclude_badly_restored
    return records if wanted else []


def if_normalized_by_plate(records):
    """Records as a list, which is empty where crops are stretched alike in the whole screen."""
    wanted = SCREEN.config.latent.autoencoder.normalize == "plate"
    return [records] if wanted else []


def settings_of(stage):
    """Everything in the config that can change a stage's result."""
    if stage in ("conversion", "flagging", "profiling", "report"):
        return lambda wildcards: SCREEN.settings(stage, wildcards.plate)
    return SCREEN.settings(stage)


def code_of(stage):
    """Digest of a stage's code, or of the earlier code whose results a person has kept."""
    # Plates may have readers of their own.
    plates = SCREEN.plates if stage == "conversion" else [None]
    if len(set().union(*(SCREEN.codes(stage, plate) for plate in plates))) == 1:
        return SCREEN.code(stage)
    return lambda wildcards: SCREEN.code_for(
        stage, wildcards.get("plate"), int(wildcards.get("part", 0))
    )


def listing_of(wildcards):
    """Digest of the source files of a part."""
    return SCREEN.listing(wildcards.plate, int(wildcards.part))


def corrections_of(wildcards):
    """Digests of the labels of a part that people have corrected, by well and field."""
    return SCREEN.corrections(wildcards.plate, int(wildcards.part))


def deferral_of(wildcards):
    """When a part was last put off because its files were still on their way."""
    return SCREEN.deferral(wildcards.plate, int(wildcards.part))


def source_of(wildcards):
    """Source folder of a plate."""
    return SCREEN.plates[wildcards.plate].source


def reader_of(wildcards):
    """Reader of a plate."""
    return SCREEN.plates[wildcards.plate].reader


def plate_map_of(wildcards):
    """A plate's map: its path, and a digest of what it says."""
    return [SCREEN.plates[wildcards.plate].plate_map, SCREEN.plate_map(wildcards.plate)]


def batch_of(wildcards):
    """The batch that a plate was stained in."""
    return SCREEN.plates[wildcards.plate].batch


def memory_for(gigabytes, volumes_of=None):
    """Memory of a job [MB]: with four copies of one of the plate's fields per thread, and more with each attempt.

    A stage that holds volumes, `volumes_of`, asks for one per thread as well.
    """

    def memory(wildcards, threads, attempt):
        field_mb, *_ = SCREEN.size(wildcards.get("plate"))
        volume_mb = SCREEN.volume_mb(volumes_of, wildcards.plate) if volumes_of else 0
        return int((1000 * gigabytes + threads * (4 * field_mb + volume_mb)) * attempt)

    return memory


def runtime_for(stage, minutes):
    """Time limit of a job [min]: a least one, and more for a large plate, part or screen, and with each attempt."""

    def runtime(wildcards, threads, attempt):
        plate, part = wildcards.get("plate"), int(wildcards.get("part", 0))
        return int(
            attempt
            * time_limit(SCREEN, stage, plate, part, threads=threads, least=minutes)
        )

    return runtime


def gpus_for(stage):
    """GPUs that a job asks for."""
    return SCREEN.gpus(stage)
