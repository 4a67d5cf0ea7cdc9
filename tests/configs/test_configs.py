"""Every shipped config: loads, checks, dumps, reloads, and holds the published settings."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mmengine.config import Config

from xtuner.config import check_config, dump_config, load_config
from xtuner.model.meta import meta_init
from xtuner.registry import build

CONFIGS = Path(__file__).parents[2] / "configs"
LEAVES = sorted(
    path for path in CONFIGS.glob("**/*_padding.py") if path.parent.name not in ("_base_", "tiny", "boxes", "parts")
)
VIDEO = sorted(CONFIGS.glob("**/*_sft_video.py"))
PARTS = sorted(CONFIGS.glob("parts/*.py"))
TINY = sorted(CONFIGS.glob("tiny/*.py"))
BOXES = sorted(CONFIGS.glob("boxes/*.py"))
STAGES = ("pretrain", "sft")
LLMS = ("phi3", "vicuna7b", "vicuna13b", "llama3_8b", "yi34b")

# name: llm, template, deepspeed, then (lr, per device, accumulation) of pretrain and of SFT
PUBLISHED = {
    "phi3": ("microsoft/Phi-3-mini-4k-instruct", "phi3_chat", 2, (1e-3, 32, 1), (2e-5, 8, 1)),
    "vicuna7b": ("lmsys/vicuna-7b-v1.5", "vicuna", 2, (1e-3, 32, 1), (2e-5, 16, 1)),
    "vicuna13b": ("lmsys/vicuna-13b-v1.5", "vicuna", 2, (1e-3, 32, 1), (2e-5, 8, 2)),
    "llama3_8b": ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3_chat", 2, (1e-3, 16, 1), (1e-5, 4, 2)),
    "yi34b": ("01-ai/Yi-1.5-34B-Chat", "chatml", 3, (2e-3, 16, 1), (2e-5, 4, 1)),
}


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def config_name(kind: str, llm: str, stage: str) -> str:
    return f"{kind}_{llm}_clip_L_14_336_{stage}_padding"


@functools.cache
def shipped(kind: str, llm: str, stage: str) -> Config:
    """The config without the check, which `test_loads_checks_dumps_and_reloads` does."""
    return load_config(config_name(kind, llm, stage), check=False)


class TestInventory:
    def test_every_llm_has_both_kinds_and_stages(self) -> None:
        expected = {config_name(k, m, s) for k in ("fuse", "llava") for m in LLMS for s in ("pretrain", "sft")}
        assert len(LEAVES) == 20
        assert {path.stem for path in LEAVES} == expected

    def test_every_llm_has_one_for_videos(self) -> None:
        assert {path.stem for path in VIDEO} == {f"fuse_{llm}_clip_L_14_336_sft_video" for llm in LLMS}

    def test_every_config_is_tested(self) -> None:
        bases = set(CONFIGS.glob("_base_/*.py"))
        assert {*LEAVES, *PARTS, *TINY, *BOXES, *VIDEO} == set(CONFIGS.glob("**/*.py")) - bases

    def test_every_detector_has_one(self) -> None:
        assert {path.stem for path in BOXES} == {"owlv2", "ram_owlv2", "grounding_dino", "omdet_turbo", "florence2"}

    @pytest.mark.parametrize("path", LEAVES + PARTS + BOXES + VIDEO, ids=lambda path: path.stem)
    def test_leaf_is_short(self, path: Path) -> None:
        assert lines_of(path) <= 20

    def test_all_configs_are_short(self) -> None:
        assert sum(lines_of(path) for path in CONFIGS.glob("**/*.py")) <= 700


@pytest.mark.parametrize("path", LEAVES + PARTS + TINY + BOXES + VIDEO, ids=lambda path: path.stem)
def test_loads_checks_dumps_and_reloads(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert check_config(config) == []
    for which, source in (("resolved", config), ("as_written", config.as_written)):
        copy = tmp_path / which / path.name
        copy.parent.mkdir()
        dump_config(source, copy)
        again = load_config(copy)
        assert again.pretty_text == config.pretty_text


class TestPublishedSettings:
    @pytest.mark.parametrize("kind", ["fuse", "llava"])
    @pytest.mark.parametrize("llm", LLMS)
    @pytest.mark.parametrize("stage", ["pretrain", "sft"])
    def test_what_differs(self, kind: str, llm: str, stage: str) -> None:
        config = shipped(kind, llm, stage)
        name, template, zero, *stages = PUBLISHED[llm]
        lr, batch_size, accumulation = stages[stage == "sft"]
        assert config.model.llm.name_or_path == config.tokenizer.name_or_path == name
        assert config.train_dataset.prompt_template == template
        assert config.deepspeed == f"deepspeed_zero{zero}"
        assert config.optimizer.lr == lr
        assert config.train_dataloader.batch_size == batch_size
        assert config.optimizer.accumulative_counts == accumulation

    @pytest.mark.parametrize("stage", ["pretrain", "sft"])
    def test_what_is_common(self, stage: str) -> None:
        config = shipped("fuse", "vicuna7b", stage)
        assert config.schedule.max_epochs == 1 and config.schedule.warmup_ratio == 0.03
        assert tuple(config.optimizer.betas) == (0.9, 0.999)
        assert config.optimizer.weight_decay == 0 and config.optimizer.max_norm == 1
        assert config.train_dataset.max_length == 2048 - 576
        assert config.model.pack is False  # the faster layout where there is no flash attention
        assert config.runtime.save_steps == {"pretrain": 500, "sft": 1000}[stage]
        boxes = config.train_dataset.boxes
        assert (boxes.iou_threshold, boxes.limit_num, boxes.limit_mode) == (0.2, 100, "per_image")

    def test_vicuna13b_sft_makes_128_samples_a_step_on_8_gpus(self) -> None:
        config = shipped("fuse", "vicuna13b", "sft")
        assert config.train_dataloader.batch_size * config.optimizer.accumulative_counts * 8 == 128


class TestVideos:
    @pytest.mark.parametrize("llm", LLMS)
    def test_what_differs_from_stage_2(self, llm: str) -> None:
        config = load_config(f"fuse_{llm}_clip_L_14_336_sft_video", check=False)
        stage_2 = shipped("fuse", llm, "sft")
        differing = {key for key in config if config[key] != stage_2.get(key)}
        settings = {"data_path", "image_folder", "box_json_path", "frame_pooling", "batch_size", "accumulative_counts"}
        parts = {"train_dataset", "train_dataloader", "image_processor", "model", "optimizer", "evaluation"}
        assert differing - {"resolved_from"} <= settings | parts | {"benchmarks"}
        assert config.optimizer.lr == stage_2.optimizer.lr and config.model.trainable == stage_2.model.trainable
        assert config.train_dataloader.batch_size * config.optimizer.accumulative_counts == 16

    def test_frames_are_pooled_alike_everywhere(self) -> None:
        config = load_config("fuse_vicuna7b_clip_L_14_336_sft_video", check=False)
        nodes = [config.model, config.image_processor, config.train_dataset.image_processor]
        assert [node.frame_pooling.side for node in (*nodes, config.evaluation.image_processor)] == [2] * 4
        # by default nothing is pooled
        assert "side" not in shipped("fuse", "vicuna7b", "sft").model.frame_pooling


class TestParts:
    def parts(self, kind: str, stage: str) -> tuple[set[str], set[str]]:
        config = shipped(kind, "yi34b", stage)
        nodes = {key for key, value in config.model.items() if hasattr(value, "get") and value.get("type")}
        return nodes, set(config.model.trainable)

    def test_mg_llava_trains_connectors_first_then_the_llm_too(self) -> None:
        connectors = {"fusion", "projector", "object_encoder"}
        everything = connectors | {"llm", "low_res_encoder", "high_res_encoder", "frame_pooling"}
        assert self.parts("fuse", "pretrain") == (everything, connectors)
        assert self.parts("fuse", "sft") == (everything, connectors | {"llm"})

    def test_baseline_has_low_resolution_only(self) -> None:
        everything = {"llm", "low_res_encoder", "projector", "frame_pooling"}
        assert self.parts("llava", "pretrain") == (everything, {"projector"})
        assert self.parts("llava", "sft") == (everything, {"projector", "llm"})
        config = shipped("llava", "yi34b", "sft")
        assert config.image_processor.image_size == 336
        assert config.train_dataset.box_json_path == ""


class TestOtherEncoders:
    """The shapes of other parts, from the shipped descriptions alone: no weights, no network."""

    # config: low-resolution class, high-resolution class, tokens along a side, channels of the maps, LLM's width
    SHAPES: ClassVar = {
        "siglip2_so400m_dinov3_convnext_l_qwen3_8b": (
            ("SiglipEncoder", 1152, 384),
            ("Dinov3ConvNeXt", [192, 384, 768, 1536], 864),
            27,
            4096,
        ),
        "clip_l_convnext_xxl_vicuna7b": (
            ("ClipEncoder", 1024, 336),
            ("OpenClipConvNeXt", [384, 768, 1536, 3072], 768),
            24,
            4096,
        ),
    }

    def test_each_has_its_line(self) -> None:
        assert {path.stem for path in PARTS} == {f"{name}_{stage}" for name in self.SHAPES for stage in STAGES}

    @pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
    def test_sizes(self, path: Path) -> None:
        with meta_init():
            model = build(load_config(path).model)
        low, high = model.low_res_encoder, model.high_res_encoder
        name, _, stage = path.stem.rpartition("_")
        expected_low, expected_high, side, width = self.SHAPES[name]
        assert (type(low).__name__, low.channels, low.image_size) == expected_low
        assert (type(high).__name__, high.channels, high.image_size) == expected_high
        assert low.grid == high.grid == (side, side)
        assert model.projector.in_channels == low.channels and model.projector.out_channels == width
        assert model.object_encoder.projector.in_channels == sum(high.channels)
        assert all(weight.is_meta for weight in model.parameters())
        assert ("llm" in model.trainable) == (stage == "sft")


@pytest.mark.parametrize(
    ("setting", "value", "reached"),
    [
        ("llm_name_or_path", "other/llm", ["model.llm.name_or_path", "tokenizer.name_or_path"]),
        (
            "visual_encoder_name_or_path",
            "other/clip",
            ["model.low_res_encoder.name_or_path", "train_dataset.image_processor.name_or_path"],
        ),
        ("visual_encoder_aux_path", "other/convnext", ["model.high_res_encoder.path"]),
        (
            "visual_encoder_image_size",
            518,
            ["model.low_res_encoder.image_size", "train_dataset.image_processor.low_res_size"],
        ),
        ("data_path", "other.json", ["train_dataset.data_path"]),
        ("image_folder", "other/images", ["train_dataset.image_folder"]),
        ("box_json_path", "other_boxes.json", ["train_dataset.box_json_path"]),
        ("prompt_template", "bare", ["train_dataset.prompt_template", "evaluation.prompt_template"]),
        ("system_prompt", "Be brief.", ["train_dataset.system_prompt", "evaluation.system_prompt"]),
        ("batch_size", 3, ["train_dataloader.batch_size"]),
        ("max_epochs", 2, ["schedule.max_epochs"]),
        ("lr", 0.5, ["optimizer.lr"]),
        ("pretrained_pth", "a.pth", ["model.pretrained_pth"]),
    ],
)
def test_one_setting_reaches_everything_built_from_it(setting: str, value: Any, reached: list[str]) -> None:
    config = load_config(config_name("fuse", "vicuna7b", "sft"), {setting: value}, check=False)
    for dotted in reached:
        node: Any = config
        for key in dotted.split("."):
            node = node[key]
        assert node == value


@pytest.mark.parametrize("fusion", ["GatedConcatFusion", "ConvConcatFusion", "ConcatFusion"])
def test_the_ablation_is_one_setting(fusion: str) -> None:
    override = {"model.fusion.type": f"mg_llava.model.fusion.{fusion}"}
    assert load_config(config_name("fuse", "vicuna7b", "pretrain"), override).model.fusion.type.endswith(fusion)


def test_a_fine_tuning_config_outside_the_tree(tmp_path: Path) -> None:
    name = config_name("fuse", "vicuna7b", "sft")
    (tmp_path / "configs").symlink_to(CONFIGS)
    path = tmp_path / "my_sft.py"
    path.write_text(
        "from mmengine.config import read_base\n"
        "with read_base():\n"
        f"    from .configs.vicuna.{name} import *\n"
        "data_path = 'mine.json'\n"
        "lr = 1e-6\n",
        encoding="utf-8",
    )
    config = load_config(path)
    assert config.train_dataset.data_path == "mine.json" and config.optimizer.lr == 1e-6


def test_several_sources_pass_the_check_and_a_reload(tmp_path: Path) -> None:
    leaf = tmp_path / "mixed.py"
    leaf.write_text(
        "from mmengine.config import read_base\n"
        "from mg_llava.data.sources import DataSource\n"
        "with read_base():\n"
        "    from .configs.tiny.tiny_sft import *\n"
        "data_path = ['a.json', dict(data_path='b.json', repeats=2), dict(type=DataSource, data_path='c.json')]\n"
        "pack = True\n"
        "max_tokens_per_batch = 4096\n"
    )
    (tmp_path / "configs").symlink_to(CONFIGS)
    cfg = load_config(str(leaf))
    assert cfg.train_dataset.data_path[1]["repeats"] == 2
    assert cfg.train_dataloader.sampler.max_tokens_per_batch == 4096
    dump_config(cfg.as_written, tmp_path / "dumped.py")
    again = load_config(str(tmp_path / "dumped.py"))
    assert len(again.train_dataset.data_path) == 3
