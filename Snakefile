# Plateloom: from the microscope's folder to the list of hits.
#
#   snakemake --directory screens/demo                                  this machine
#   snakemake --directory SCREEN --workflow-profile profiles/slurm      a cluster
#
# Everything is written below the screen's folder:
#   results/plates/{plate}/plate.zarr                            images and labels (OME-Zarr)
#   results/plates/{plate}/{kind}/{well}.parquet                 fields, quality, segmentation, features, latent, maps, classes
#   results/plates/{plate}/profiles.parquet, qc.parquet          one row per well; per field and channel
#   results/plates/{plate}/report.html
#   results/plates/{plate}/records/{stage}/part-{part}.json      what Snakemake tracks
#   results/screen/…                                             profiles, hits, models, report.html, records/{stage}.json
#   logs/{rule}/{plate}/part-{part}.log     benchmarks/{rule}/{plate}/part-{part}.tsv

import sys

from snakemake.utils import min_version

min_version("9.19")
sys.path.insert(0, workflow.basedir)

from plateloom.driver import read_frozen


configfile: workflow.source_path("config/config.yaml")


if read_frozen(main=workflow.is_main_process) is None:

    configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/conversion.smk"
include: "rules/illumination.smk"
include: "rules/quality.smk"
include: "rules/training.smk"
include: "rules/segmentation.smk"
include: "rules/features.smk"
include: "rules/profiling.smk"
include: "rules/latent.smk"
include: "rules/comparison.smk"
include: "rules/classification.smk"
include: "rules/report.smk"


wildcard_constraints:
    plate=PLATE_NAME,
    part=r"\d+",


localrules:
    all,


rule all:
    default_target: True
    input:
        every_target(),
    message:
        "Everything that was asked for is there"


onstart:
    begin_run()


onsuccess:
    end_run()


onerror:
    finish_complete_plates(log)
