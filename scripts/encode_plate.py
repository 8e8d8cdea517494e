"""Encode the cells of one part of a plate."""

from plateloom.engine.parts import start_job
from plateloom.stages.latent import encode_part

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    encode_part(
        plate=snakemake.wildcards.plate,
        part=int(snakemake.wildcards.part),
        parts=snakemake.params.parts,
        settings=snakemake.params.settings,
        code=snakemake.params.code,
        trained=snakemake.input.trained,
        segmented=snakemake.input.segmented,
        illuminated=snakemake.input.illuminated,
        flagged=snakemake.input.flagged,
        record=snakemake.output.record,
    )
