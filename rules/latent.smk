# Latent: crops of cells -> autoencoder -> latent columns of every cell; features -> map -> place of every cell.


rule train_autoencoder:
    input:
        segmented=every_plate("segmentation"),
        illuminated=every_plate("illumination"),
        flagged=every_plate("flagging"),
    output:
        record="results/screen/records/autoencoder.json",
    log:
        "logs/train_autoencoder.log",
    benchmark:
        "benchmarks/train_autoencoder.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 2
    resources:
        gpu=gpus_for("autoencoder"),
        mem_mb=memory_for(8),
        runtime=runtime_for("autoencoder", 480),
    params:
        plates=SCREEN.complete_plates,
        missing=SCREEN.missing_from("segmentation"),
        settings=settings_of("autoencoder"),
        code=code_of("autoencoder"),
    message:
        "Training the autoencoder"
    script:
        "../scripts/train_autoencoder.py"


rule encode_plate:
    input:
        trained="results/screen/records/autoencoder.json",
        segmented="results/plates/{plate}/records/segmentation/part-{part}.json",
        illuminated="results/plates/{plate}/records/illumination/part-0.json",
        flagged=if_normalized_by_plate(
            "results/plates/{plate}/records/flagging/part-0.json"
        ),
    output:
        record="results/plates/{plate}/records/latent/part-{part}.json",
    log:
        "logs/encode_plate/{plate}/part-{part}.log",
    benchmark:
        "benchmarks/encode_plate/{plate}/part-{part}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 2
    resources:
        gpu=gpus_for("latent"),
        mem_mb=memory_for(6),
        runtime=runtime_for("latent", 120),
    params:
        parts=len(PARTS),
        settings=settings_of("latent"),
        code=code_of("latent"),
    message:
        "Encoding the cells of {wildcards.plate}, part {wildcards.part}"
    script:
        "../scripts/encode_plate.py"


rule fit_map:
    input:
        measured=every_plate("features"),
        flagged=every_plate("flagging"),
        encoded=if_mapped(every_plate("latent")),
    output:
        record="results/screen/records/map.json",
    log:
        "logs/fit_map.log",
    benchmark:
        "benchmarks/fit_map.tsv"
    conda:
        "../envs/core.yaml"
    threads: 2
    resources:
        mem_mb=memory_for(8),
        runtime=runtime_for("map", 120),
    params:
        plates=SCREEN.complete_plates,
        missing=SCREEN.missing_from(SCREEN.config.latent.maps.inputs),
        settings=settings_of("map"),
        code=code_of("map"),
    message:
        "Fitting the map of cells"
    script:
        "../scripts/fit_map.py"


rule map_plate:
    input:
        fitted="results/screen/records/map.json",
        measured="results/plates/{plate}/records/features/part-{part}.json",
        encoded=if_mapped("results/plates/{plate}/records/latent/part-{part}.json"),
    output:
        record="results/plates/{plate}/records/maps/part-{part}.json",
    log:
        "logs/map_plate/{plate}/part-{part}.log",
    benchmark:
        "benchmarks/map_plate/{plate}/part-{part}.tsv"
    conda:
        "../envs/core.yaml"
    threads: 2
    resources:
        mem_mb=memory_for(4),
        runtime=runtime_for("maps", 60),
    params:
        parts=len(PARTS),
        code=code_of("maps"),
    message:
        "Placing the cells of {wildcards.plate} on the map, part {wildcards.part}"
    script:
        "../scripts/map_plate.py"
