"""Segment one part of a plate: every compartment, tile by tile."""

from plateloom.engine.parts import start_job
from plateloom.stages.segmentation import segment_part

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    segment_part(
        plate=snakemake.wildcards.plate,
        part=int(snakemake.wildcards.part),
        parts=snakemake.params.parts,
        settings=snakemake.params.settings,
        corrections=snakemake.params.corrections,
        code=snakemake.params.code,
        converted=snakemake.input.converted,
        illuminated=snakemake.input.illuminated,
        trained=snakemake.input.trained,
        record=snakemake.output.record,
    )
