"""Convert one part of a plate: source folder to OME-Zarr images."""

from plateloom.engine.parts import start_job
from plateloom.stages.conversion import convert_part

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    convert_part(
        plate=snakemake.wildcards.plate,
        part=int(snakemake.wildcards.part),
        parts=snakemake.params.parts,
        source=snakemake.params.source,
        reader=snakemake.params.reader,
        listing=snakemake.params.listing,
        settings=snakemake.params.settings,
        code=snakemake.params.code,
        record=snakemake.output.record,
        deferral=snakemake.params.deferral,
    )
