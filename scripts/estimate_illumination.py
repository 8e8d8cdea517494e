"""Estimate the flat-fields of a plate."""

from plateloom.engine.parts import start_job
from plateloom.stages.illumination import estimate_plate

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    estimate_plate(
        plate=snakemake.wildcards.plate,
        settings=snakemake.params.settings,
        code=snakemake.params.code,
        assembled=snakemake.input.assembled,
        converted=snakemake.input.converted,
        record=snakemake.output.record,
    )
