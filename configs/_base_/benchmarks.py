"""The table of benchmarks, and how to run them. A new benchmark of an existing kind is one entry.

Put the files below `benchmark_folder` as their authors publish them (docs/dataset_prepare.md says where), and boxes in
`benchmark_box_folder` as <benchmark>.json; None runs without boxes.
"""

from mg_llava.evaluation import (  # isort: skip
    GQA, MME, MMVP, OCRVQA, ChartQA, DocVQA, EvaluationRunner, HallusionBench, LLaVABench, MathVista, MMVet,
    MultipleChoice, MVBench, NExTQA, RefCOCO, TallyQA, TextVQA, VideoMME, VideoQA, VizWiz, VQAv2, YesNo,
)  # fmt: skip

benchmark_folder = "data/eval"
benchmark_box_folder = "data/eval/boxes"
evaluation_batch_size = 16

# fmt: off
benchmarks = [
    dict(data_root="${benchmark_folder}", box_folder="${benchmark_box_folder}", frame_sampling="${frame_sampling}",
         **entry)
    for entry in (
        dict(type=MultipleChoice, name="mmbench_dev", data_file="MMBench_DEV_EN.tsv", circular=True),
        dict(type=MultipleChoice, name="mmbench_test", data_file="MMBench_TEST_EN.tsv", circular=True),
        dict(type=MultipleChoice, name="mmbench_cn_dev", data_file="MMBench_DEV_CN.tsv", circular=True),
        dict(type=MultipleChoice, name="mmbench_cn_test", data_file="MMBench_TEST_CN.tsv", circular=True),
        dict(type=MultipleChoice, name="ccbench", data_file="CCBench.tsv", circular=True),
        dict(type=MultipleChoice, name="seed_image", data_file="SEEDBench_IMG.tsv"),
        dict(type=MultipleChoice, name="scienceqa_test", data_file="ScienceQA_TEST.tsv"),
        dict(type=MultipleChoice, name="ai2d_test", data_file="AI2D_TEST.tsv"),
        dict(type=MultipleChoice, name="mmstar", data_file="MMStar.tsv"),
        dict(type=MultipleChoice, name="realworldqa", data_file="RealWorldQA.tsv"),
        dict(type=MultipleChoice, name="blink_val", data_file="BLINK.tsv"),
        dict(type=MultipleChoice, name="vstar_bench", data_file="VStarBench.tsv"),
        dict(type=MultipleChoice, name="mmmu_val", data_file="MMMU_DEV_VAL.tsv", split="validation",
             open_questions=True),
        dict(type=MME, name="mme", data_file="MME.tsv"),
        dict(type=HallusionBench, name="hallusion_bench", data_file="HallusionBench.tsv"),
        dict(type=DocVQA, name="docvqa_val", data_file="DocVQA_VAL.tsv", max_new_tokens=32),
        dict(type=OCRVQA, name="ocrvqa_testcore", data_file="OCRVQA_TESTCORE.tsv", max_new_tokens=32),
        dict(type=ChartQA, name="chartqa_test", data_file=["chartqa/test_human.json", "chartqa/test_augmented.json"],
             image_folder="chartqa/png"),
        dict(type=TallyQA, name="tallyqa_test", data_file="tallyqa/test.json", image_folder="tallyqa"),
        *(
            dict(type=RefCOCO, name=name, data_file=f"refcoco/{name}.jsonl", image_folder="coco")
            for name in (*(f"refcoco{plus}_{part}" for plus in ("", "+") for part in ("val", "testA", "testB")),
                         "refcocog_val", "refcocog_test")
        ),
        # a judge reads answers without an option or number, and all answers of MM-Vet and LLaVA-Bench
        dict(type=MMVP, name="mmvp", data_file="mmvp/Questions.csv", image_folder="mmvp", max_new_tokens=128),
        dict(type=MathVista, name="mathvista_testmini", data_file="mathvista/testmini.json", image_folder="mathvista",
             max_new_tokens=1024),
        dict(type=MMVet, name="mm_vet", data_file="mm-vet/llava-mm-vet.jsonl", answer_file="mm-vet/mm-vet.json",
             image_folder="mm-vet/images"),
        dict(type=LLaVABench, name="llava_bench", data_file="llava-bench-in-the-wild/questions.jsonl",
             context_file="llava-bench-in-the-wild/context.jsonl",
             answer_file="llava-bench-in-the-wild/answers_gpt4.jsonl", image_folder="llava-bench-in-the-wild/images"),
        # with the words that an OCR system read, as in LLaVA-1.5's figures; ocr_hints=False leaves them out
        dict(type=TextVQA, name="textvqa_val", data_file="textvqa/llava_textvqa_val_v051_ocr.jsonl",
             answer_file="textvqa/TextVQA_0.5.1_val.json", image_folder="textvqa/train_images"),
        dict(type=YesNo, name="pope", image_folder="coco/val2014",
             data_file=[f"pope/coco_pope_{negatives}.json" for negatives in ("random", "popular", "adversarial")]),
        dict(type=GQA, name="gqa_testdev", data_file="gqa/llava_gqa_testdev_balanced.jsonl",
             answer_file="gqa/testdev_balanced_questions.json", choices_file="gqa/testdev_choices.json",
             image_folder="gqa/images"),
        dict(type=VizWiz, name="vizwiz_val", data_file="vizwiz/val.json", image_folder="vizwiz/val"),
        dict(type=VizWiz, name="vizwiz_test", data_file="vizwiz/llava_test.jsonl", image_folder="vizwiz/test"),
        dict(type=VQAv2, name="vqav2_testdev", data_file="vqav2/llava_vqav2_mscoco_test-dev2015.jsonl",
             upload_questions="vqav2/llava_vqav2_mscoco_test2015.jsonl", image_folder="vqav2/test2015"),
        # videos: the first four with a judge, as Video-ChatGPT has it
        *(
            dict(type=VideoQA, name=name, data_file=f"{name}/test_q.json", answer_file=f"{name}/test_a.json",
                 image_folder=f"{name}/videos")
            for name in ("msvd_qa", "msrvtt_qa", "activitynet_qa", "tgif_qa")
        ),
        dict(type=MVBench, name="mvbench", data_file="MVBench.tsv", image_folder="mvbench/video"),
        dict(type=VideoMME, name="video_mme", data_file="Video-MME.tsv", image_folder="video_mme/video"),
        dict(type=NExTQA, name="nextqa_test", data_file="nextqa/test.csv", map_file="nextqa/map_vid_vidorID.json",
             image_folder="nextqa/videos"),
    )
]
evaluation = dict(
    type=EvaluationRunner, batch_size="${evaluation_batch_size}", num_workers="${dataloader_num_workers}",
    tokenizer="${tokenizer}", image_processor="${image_processor}", prompt_template="${prompt_template}",
    special_tokens_in_text="${special_tokens_in_text}", system_prompt="${system_prompt}", boxes="${box_selection}",
)
# fmt: on
