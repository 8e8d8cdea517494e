"""Classify the cells of one part of a plate."""

from plateloom.engine.parts import start_job
from plateloom.stages.classification import classify_part

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    classify_part(
        plate=snakemake.wildcards.plate,
        part=int(snakemake.wildcards.part),
        parts=snakemake.params.parts,
        code=snakemake.params.code,
        trained=snakemake.input.trained,
        measured=snakemake.input.measured,
        encoded=snakemake.input.encoded,
        record=snakemake.output.record,
    )
