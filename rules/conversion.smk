# Conversion: source folder -> plate.zarr images, one job per part of a plate; then one job that lists its wells.


rule convert_plate:
    output:
        record="results/plates/{plate}/records/conversion/part-{part}.json",
    log:
        "logs/convert_plate/{plate}/part-{part}.log",
    benchmark:
        "benchmarks/convert_plate/{plate}/part-{part}.tsv"
    conda:
        "../envs/core.yaml"
    threads: 2
    resources:
        mem_mb=memory_for(4 + SCREEN.stacks_gb),
        runtime=runtime_for("conversion", 120),
    params:
        source=source_of,
        reader=reader_of,
        listing=listing_of,
        deferral=deferral_of,
        parts=len(PARTS),
        settings=settings_of("conversion"),
        code=code_of("conversion"),
    message:
        "Converting {wildcards.plate}, part {wildcards.part}"
    script:
        "../scripts/convert_plate.py"


rule assemble_plate:
    input:
        converted=every_part("conversion"),
    output:
        record="results/plates/{plate}/records/assembly/part-0.json",
    log:
        "logs/assemble_plate/{plate}/part-0.log",
    benchmark:
        "benchmarks/assemble_plate/{plate}/part-0.tsv"
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=memory_for(2),
        runtime=runtime_for("assembly", 30),
    params:
        max_failed_fields=SCREEN.config.max_failed_fields,
        code=code_of("assembly"),
    message:
        "Assembling {wildcards.plate}"
    script:
        "../scripts/assemble_plate.py"
