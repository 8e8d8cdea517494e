# Training: annotated fields -> the network that the screen is segmented with, where its config asks for one.


rule train_segmenter:
    output:
        record="results/screen/records/training.json",
    log:
        "logs/train_segmenter.log",
    benchmark:
        "benchmarks/train_segmenter.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 2
    resources:
        gpu=gpus_for("training"),
        mem_mb=memory_for(6),
        runtime=runtime_for("training", 480),
    params:
        settings=settings_of("training"),
        code=code_of("training"),
    message:
        "Training the segmentation network"
    script:
        "../scripts/train_segmenter.py"
