# Features: images and labels -> one row per cell, one job per part of a plate.


rule measure_features:
    input:
        segmented="results/plates/{plate}/records/segmentation/part-{part}.json",
        illuminated="results/plates/{plate}/records/illumination/part-0.json",
    output:
        record="results/plates/{plate}/records/features/part-{part}.json",
    log:
        "logs/measure_features/{plate}/part-{part}.log",
    benchmark:
        "benchmarks/measure_features/{plate}/part-{part}.tsv"
    conda:
        "../envs/core.yaml"
    threads: 2
    resources:
        mem_mb=memory_for(6, volumes_of="features"),
        runtime=runtime_for("features", 240),
    params:
        parts=len(PARTS),
        settings=settings_of("features"),
        code=code_of("features"),
    message:
        "Measuring the cells of {wildcards.plate}, part {wildcards.part}"
    script:
        "../scripts/measure_features.py"
