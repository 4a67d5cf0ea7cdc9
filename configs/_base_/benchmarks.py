"""The table of benchmarks, and how they are run. A new benchmark of an existing kind is one entry.

Files lie below `benchmark_folder` as their authors publish them (docs/dataset_prepare.md says where), boxes in
`benchmark_box_folder` as <benchmark>.json; None asks without boxes.
"""

from mg_llava.boxes import BoxSelection
from mg_llava.evaluation import GQA, EvaluationRunner, MultipleChoice, TextVQA, VQAv2, YesNo

benchmark_folder = "data/eval"
benchmark_box_folder = "data/eval/boxes"
evaluation_batch_size = 16

benchmarks = [
    dict(data_root="${benchmark_folder}", box_folder="${benchmark_box_folder}", **entry)
    for entry in (
        dict(type=MultipleChoice, name="mmbench_dev", data_file="MMBench_DEV_EN.tsv", circular=True),
        dict(type=MultipleChoice, name="mmbench_test", data_file="MMBench_TEST_EN.tsv", circular=True),
        dict(type=MultipleChoice, name="seed_image", data_file="SEEDBench_IMG.tsv"),
        dict(type=MultipleChoice, name="scienceqa_test", data_file="ScienceQA_TEST.tsv"),
        dict(type=MultipleChoice, name="ai2d_test", data_file="AI2D_TEST.tsv"),
        # with the words that an OCR system read, as LLaVA-1.5 reports it; ocr_hints=False asks without
        dict(
            type=TextVQA,
            name="textvqa_val",
            data_file="textvqa/llava_textvqa_val_v051_ocr.jsonl",
            answer_file="textvqa/TextVQA_0.5.1_val.json",
            image_folder="textvqa/train_images",
        ),
        dict(
            type=YesNo,
            name="pope",
            data_file=[f"pope/coco_pope_{negatives}.json" for negatives in ("random", "popular", "adversarial")],
            image_folder="coco/val2014",
        ),
        dict(
            type=GQA,
            name="gqa_testdev",
            data_file="gqa/llava_gqa_testdev_balanced.jsonl",
            answer_file="gqa/testdev_balanced_questions.json",
            image_folder="gqa/images",
        ),
        dict(
            type=VQAv2,
            name="vqav2_testdev",
            data_file="vqav2/llava_vqav2_mscoco_test-dev2015.jsonl",
            upload_questions="vqav2/llava_vqav2_mscoco_test2015.jsonl",
            image_folder="vqav2/test2015",
        ),
    )
]

evaluation = dict(
    type=EvaluationRunner,
    batch_size="${evaluation_batch_size}",
    num_workers="${dataloader_num_workers}",
    tokenizer="${tokenizer}",
    image_processor="${image_processor}",
    prompt_template="${prompt_template}",
    boxes=dict(
        type=BoxSelection,
        iou_threshold="${box_iou_threshold}",
        limit_num="${box_limit_num}",
        limit_mode="${box_limit_mode}",
    ),
)
