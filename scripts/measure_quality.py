"""Measure the quality of one part of a plate."""

from plateloom.engine.parts import start_job
from plateloom.stages.quality import measure_part

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    measure_part(
        plate=snakemake.wildcards.plate,
        part=int(snakemake.wildcards.part),
        parts=snakemake.params.parts,
        settings=snakemake.params.settings,
        code=snakemake.params.code,
        assembled=snakemake.input.assembled,
        converted=snakemake.input.converted,
        record=snakemake.output.record,
    )
