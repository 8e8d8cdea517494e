# Classification: labeled wells or cells -> classifier -> class of every cell.


rule train_classifier:
    input:
        measured=every_plate("features"),
        profiled=every_plate("profiling"),
        flagged=every_plate("flagging"),
        encoded=if_learned_from("latent", every_plate("latent")),
    output:
        record="results/screen/records/classifier.json",
    log:
        "logs/train_classifier.log",
    benchmark:
        "benchmarks/train_classifier.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 2
    resources:
        gpu=gpus_for("classifier"),
        mem_mb=memory_for(8 + 3 * SCREEN.crops_gb),
        runtime=runtime_for("classifier", 120),
    params:
        plates=SCREEN.complete_plates,
        missing=SCREEN.missing_from(
            "latent" if SCREEN.config.classification.inputs == "latent" else "features"
        ),
        labels=SCREEN.labels(),
        settings=settings_of("classifier"),
        code=code_of("classifier"),
    message:
        "Training the classifier"
    script:
        "../scripts/train_classifier.py"


rule classify_plate:
    input:
        trained="results/screen/records/classifier.json",
        measured="results/plates/{plate}/records/features/part-{part}.json",
        encoded=if_learned_from(
            "latent", "results/plates/{plate}/records/latent/part-{part}.json"
        ),
    output:
        record="results/plates/{plate}/records/classes/part-{part}.json",
    log:
        "logs/classify_plate/{plate}/part-{part}.log",
    benchmark:
        "benchmarks/classify_plate/{plate}/part-{part}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 2
    resources:
        gpu=gpus_for("classes"),
        mem_mb=memory_for(4),
        runtime=runtime_for("classes", 60),
    params:
        parts=len(PARTS),
        code=code_of("classes"),
    message:
        "Classifying the cells of {wildcards.plate}, part {wildcards.part}"
    script:
        "../scripts/classify_plate.py"
