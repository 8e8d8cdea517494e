# Segmentation: plate images -> label images, one job per part of a plate.


rule segment_plate:
    input:
        converted="results/plates/{plate}/records/conversion/part-{part}.json",
        illuminated="results/plates/{plate}/records/illumination/part-0.json",
        trained=if_wanted("training", "results/screen/records/training.json"),
    output:
        record="results/plates/{plate}/records/segmentation/part-{part}.json",
    log:
        "logs/segment_plate/{plate}/part-{part}.log",
    benchmark:
        "benchmarks/segment_plate/{plate}/part-{part}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 2
    resources:
        gpu=gpus_for("segmentation"),
        mem_mb=memory_for(6, volumes_of="segmentation"),
        runtime=runtime_for("segmentation", 240),
    params:
        parts=len(PARTS),
        settings=settings_of("segmentation"),
        corrections=corrections_of,
        code=code_of("segmentation"),
    message:
        "Segmenting {wildcards.plate}, part {wildcards.part}"
    script:
        "../scripts/segment_plate.py"
