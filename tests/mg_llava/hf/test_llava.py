"""``xtuner convert from_llava`` and ``to_llava``: the same logits on both sides, and folders of other versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration, LlavaNextImageProcessorPil, LlavaProcessor

from mg_llava.hf import save_pretrained
from mg_llava.hf.llava import from_llava, to_llava
from mg_llava.model import ConvGateFusion, HighResEncoder, LowResEncoder, MGLLaVA, ObjectEncoder
from mg_llava.pictures import ImageProcessor
from mg_llava.pictures.normalize import PixelNormalizer
from tests.tiny_assistant import randomize, save_picture, tiny_assistant
from tests.tiny_llava import IMAGE_ID, adapter_folder, edit, own_code_folder, rewrite, tiny_llava
from tests.tiny_parts import HIGH_SIZE, tiny_convnext_folder
from xtuner.cli import main
from xtuner.constants import IMAGE_TOKEN_INDEX
from xtuner.errors import XTunerError
from xtuner.model import MLPProjector, build_llm
from xtuner.model.files.weight_files import read_state_dict

TEXT = ([1, 5, 9], [20, 33, 47, 60])
TOKENS = 4


def convert(source: Path, target: Path, *words: str) -> int:
    return main(["convert", "from_llava", str(source), str(target), *words])


def continued(parts: Path, high: Path | None, clip: Path | None = None) -> MGLLaVA:
    """The model of a config that continues a converted LLaVA."""
    more: dict[str, Any] = {}
    if high is not None:
        more = {
            "high_res_encoder": {
                "type": HighResEncoder,
                "path": str(tiny_convnext_folder(high)),
                "image_size": HIGH_SIZE,
            },
            "fusion": {"type": ConvGateFusion},
            "object_encoder": {"type": ObjectEncoder},
        }
    return MGLLaVA(
        llm={"type": build_llm, "name_or_path": str(parts / "llm")},
        low_res_encoder={"type": LowResEncoder, "name_or_path": str(clip or parts / "clip")},
        projector={"type": MLPProjector},
        activation_checkpointing=False,
        pretrained_pth=str(parts / "stage1.pth"),
        **more,
    ).eval()


@torch.inference_mode()
def our_logits(model: MGLLaVA, pixels: torch.Tensor) -> torch.Tensor:
    """Logits for given 336 (here 28) pixels, no boxes; the high-resolution picture is another one altogether."""
    ids = torch.tensor([[*TEXT[0], IMAGE_TOKEN_INDEX, *TEXT[1]]])
    side = model.data_preprocessor.image_size
    batch = model.data_preprocessor(
        {"input_ids": ids, "pixel_values": torch.randint(0, 255, (1, 3, side, side)).byte()}
    )
    batch["low_pixels"] = pixels
    return model(**batch, mode="logits")


@torch.inference_mode()
def their_logits(source: Any, pixels: torch.Tensor) -> torch.Tensor:
    ids = torch.tensor([[*TEXT[0], *[IMAGE_ID] * TOKENS, *TEXT[1]]])
    if hasattr(source.config, "image_grid_pinpoints"):
        # of 1.6 the base tile: its own forward adds image_newline and the other tiles
        states = source.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        embeds = source.get_input_embeddings()(ids)
        embeds[ids == IMAGE_ID] = source.model.multi_modal_projector(states)[0]
        return source.lm_head(source.model.language_model(inputs_embeds=embeds).last_hidden_state)
    return source(input_ids=ids, pixel_values=pixels).logits


@pytest.fixture(params=[False, True], ids=["1.5", "1.6"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    return tmp_path / "source", tiny_llava(tmp_path / "source", next_version=request.param)


@pytest.mark.parametrize("high_resolution", [True, False])
def test_logits_at_step_0_are_the_sources(source: tuple[Path, Any], tmp_path: Path, high_resolution: bool) -> None:
    folder, theirs = source
    assert convert(folder, tmp_path / "parts") == 0
    model = continued(tmp_path / "parts", tmp_path if high_resolution else None)
    pixels = torch.randn(1, 3, 28, 28)
    ours, expected = our_logits(model, pixels), their_logits(theirs, pixels)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(ours, our_logits(model, pixels + 0.3), atol=1e-3)
    assert model.from_checkpoint == {"projector"}


NAMES: dict[str, Callable[[str], str]] = {
    # files on the Hub before transformers 5
    "vision_model": lambda name: name.replace("vision_tower.", "vision_tower.vision_model."),
    # as later versions hold them in memory
    "memory": lambda name: (
        "lm_head.weight"
        if name == "language_model.lm_head.weight"
        else f"model.{name}".replace("language_model.model.", "language_model.")
    ),
}


@pytest.mark.parametrize("names", NAMES)
def test_names_of_other_versions_of_transformers(tmp_path: Path, names: str) -> None:
    theirs = tiny_llava(tmp_path / "source")
    rewrite(tmp_path / "source", NAMES[names])
    assert convert(tmp_path / "source", tmp_path / "parts") == 0
    pixels = torch.randn(1, 3, 28, 28)
    ours = our_logits(continued(tmp_path / "parts", None), pixels)
    torch.testing.assert_close(ours, their_logits(theirs, pixels), rtol=0, atol=1e-6)


def test_tied_embeddings_in_bfloat16(tmp_path: Path) -> None:
    theirs = tiny_llava(tmp_path / "source", tie_word_embeddings=True).bfloat16()
    theirs.save_pretrained(tmp_path / "source")
    assert convert(tmp_path / "source", tmp_path / "parts") == 0
    state = load_file(tmp_path / "parts" / "llm" / "model.safetensors")
    assert "lm_head.weight" not in state and all(value.dtype == torch.bfloat16 for value in state.values())
    model = continued(tmp_path / "parts", None)
    assert torch.equal(model.llm.get_output_embeddings().weight, theirs.get_input_embeddings().weight)


@pytest.mark.parametrize("with_tower", [True, False])
def test_own_code(tmp_path: Path, with_tower: bool) -> None:
    theirs = tiny_llava(tmp_path / "source")
    own = own_code_folder(tmp_path, tmp_path / "source", with_tower)
    # what is left of its first stage does not matter
    torch.save({}, own / "mm_projector.bin")
    assert convert(own, tmp_path / "parts") == 0
    assert (tmp_path / "parts" / "clip").exists() is with_tower
    pixels = torch.randn(1, 3, 28, 28)
    ours = our_logits(continued(tmp_path / "parts", tmp_path, None if with_tower else tmp_path / "clip"), pixels)
    torch.testing.assert_close(ours, their_logits(theirs, pixels), rtol=0, atol=1e-6)


def test_adapters_of_own_code_are_merged(tmp_path: Path) -> None:
    tiny_llava(tmp_path / "source")
    folder, base, merged = adapter_folder(tmp_path, own_code_folder(tmp_path, tmp_path / "source"))
    assert convert(folder, tmp_path / "parts", "--base", str(base)) == 0
    found = read_state_dict(tmp_path / "parts" / "llm")
    assert found.keys() == merged.keys()
    assert all(torch.equal(found[name], merged[name]) for name in merged)
    continued(tmp_path / "parts", tmp_path, tmp_path / "clip")


def test_a_projector_alone(tmp_path: Path) -> None:
    tiny_llava(tmp_path / "source")
    folder, base, _ = adapter_folder(tmp_path, own_code_folder(tmp_path, tmp_path / "source"))
    beside = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
    for file in folder.glob("adapter_*"):
        file.unlink()
    (folder / "non_lora_trainables.bin").unlink()
    alone = {name.removeprefix("base_model.model."): value for name, value in beside.items()}
    torch.save(alone, folder / "mm_projector.bin")
    assert convert(folder, tmp_path / "parts", "--base", str(base)) == 0
    assert load_file(tmp_path / "parts" / "llm" / "model.safetensors").keys() == read_state_dict(base).keys()


def test_marks_are_those_of_the_built_parts(tmp_path: Path, framework_log: list[Any]) -> None:
    tiny_llava(tmp_path / "source")
    assert convert(tmp_path / "source", tmp_path / "parts") == 0
    base = torch.load(tmp_path / "parts" / "stage1.pth", weights_only=True)["base"]
    model = continued(tmp_path / "parts", tmp_path)
    for part in ("llm", "low_res_encoder"):
        assert base["parts"][part]["marks"] == model.part_marks(part)
        assert Path(base["parts"][part]["place"]).is_dir()
    said = [record.getMessage() for record in framework_log]
    assert any("has no fusion, object_encoder: training starts them anew" in line for line in said)
    assert not any("was trained on" in line for line in said)


def test_the_base_tile_of_1_6_is_the_squeezed_picture(tmp_path: Path) -> None:
    tiny_llava(tmp_path / "source", next_version=True)
    settings = from_llava(tmp_path / "source", tmp_path / "parts")
    assert settings["pad_image_to_square"] == "False"
    picture = Image.open(save_picture(tmp_path / "a.png", size=(50, 30)))
    theirs = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=[[28, 56]]
    )
    expected = theirs(picture, return_tensors="pt")["pixel_values"][0, 0]
    pixels = ImageProcessor(settings["visual_encoder_name_or_path"], 28, pad_to_square=False).pixels(picture)
    torch.testing.assert_close(PixelNormalizer()(pixels[None], 28)[1][0], expected, rtol=0, atol=1e-6)


class TestRefused:
    """Nothing is written, and one message names all that is found."""

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"model_type": "llava_onevision"}, "it is a model of type 'llava_onevision': expected llava (1.5) or"),
            ({"model_type": "video_llava"}, "it is a model of type 'video_llava'"),
            ({"model_type": "qwen2_vl"}, "it is a model of type 'qwen2_vl'"),
            ({"vision_feature_layer": -1}, "vision_feature_layer is -1: expected -2"),
            ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer is [-2, -5]"),
            ({"vision_feature_select_strategy": "full"}, "is 'full': expected 'default'"),
            ({"projector_hidden_act": "relu"}, "the projector has 'relu'"),
            ({"multimodal_projector_bias": False}, "no bias: expected Linear, GELU, Linear"),
            ({"vision_config__model_type": "siglip_vision_model"}, "is a 'siglip_vision_model': expected CLIP"),
            ({"text_config__model_type": "no_such_llm"}, "is of type 'no_such_llm', which the installed"),
            ({"text_config__vocab_size": 200}, "config.json says (200, 32)"),
            ({"text_config__hidden_size": "wide"}, "its text_config cannot be read"),
            ({"vision_config__num_hidden_layers": "3"}, "its vision_config cannot be read"),
            ({"text_config__num_hidden_layers": -1, "vision_config__hidden_size": -8}, "it lacks|no model that can be"),
            ({"vision_config": 5}, "lacks text_config or vision_config"),
            ({"quantization_config": {"bits": 4}}, "it is quantised"),
        ],
    )
    def test_transformers(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], message: str
    ) -> None:
        tiny_llava(tmp_path / "source")
        edit(tmp_path / "source", **values)
        self.refuse(tmp_path / "source", tmp_path, capsys, message)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear': expected 'mlp2x_gelu'"),
            ({"mm_vision_select_layer": -1}, "mm_vision_select_layer is -1: expected -2"),
            ({"mm_vision_select_feature": "cls_patch"}, "is 'cls_patch': expected 'patch'"),
            ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
            ({"mm_vision_tower": "google/siglip-so400m-patch14-384"}, "expected a CLIP"),
            ({"model_type": "llava_mpt"}, "it is a model of type 'llava_mpt'"),
        ],
    )
    def test_own_code(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], message: str
    ) -> None:
        tiny_llava(tmp_path / "source")
        folder = own_code_folder(tmp_path, tmp_path / "source", **values)
        self.refuse(folder, tmp_path, capsys, message)

    def test_all_at_once(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tiny_llava(tmp_path / "source")
        edit(tmp_path / "source", vision_feature_layer=-1, projector_hidden_act="relu")
        self.refuse(tmp_path / "source", tmp_path, capsys, "2 problems in the LLaVA folder")

    def test_a_missing_shard(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tiny_llava(tmp_path / "source").save_pretrained(tmp_path / "source", max_shard_size="60KB")
        (tmp_path / "source" / "model.safetensors").unlink(missing_ok=True)
        sorted((tmp_path / "source").glob("model-*"))[1].unlink()
        self.refuse(tmp_path / "source", tmp_path, capsys, "lacks 1 of its")

    def test_missing_weights(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tiny_llava(tmp_path / "source")
        rewrite(tmp_path / "source", lambda name: None if "linear_2" in name else name)
        self.refuse(tmp_path / "source", tmp_path, capsys, "it lacks 2 weights: projector.layers.2.weight")

    def test_no_tokenizer(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tiny_llava(tmp_path / "source")
        (tmp_path / "source" / "tokenizer.json").unlink()
        self.refuse(tmp_path / "source", tmp_path, capsys, "has no tokenizer")

    def test_adapters_without_their_base(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tiny_llava(tmp_path / "source")
        folder, _, _ = adapter_folder(tmp_path, own_code_folder(tmp_path, tmp_path / "source"))
        self.refuse(folder, tmp_path, capsys, "its language model is not found: give the model's folder, --base PATH")

    def test_a_base_that_is_not_needed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tiny_llava(tmp_path / "source")
        self.refuse(tmp_path / "source", tmp_path, capsys, "leave --base out", "--base", str(tmp_path))
        self.refuse(tmp_path / "source", tmp_path, capsys, "holds its CLIP, so leave", "--vision-tower", str(tmp_path))

    def test_no_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.refuse(tmp_path / "none", tmp_path, capsys, "has no config.json: expected a folder of llava (1.5)")
        (tmp_path / "adapters").mkdir()
        (tmp_path / "adapters" / "adapter_config.json").write_text("{}")
        self.refuse(tmp_path / "adapters", tmp_path, capsys, "holds adapters alone and no config.json")

    def test_a_target_with_something_in_it(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tiny_llava(tmp_path / "source")
        assert convert(tmp_path / "source", tmp_path) == 1
        assert "exists and is not empty" in capsys.readouterr().err

    def refuse(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], message: str, *words: str
    ) -> None:
        before = {path.name for path in tmp_path.iterdir()}
        assert convert(folder, tmp_path / "parts", *words) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert any(part in said for part in message.split("|")), said
        assert {path.name for path in tmp_path.iterdir()} == before


class TestToLlava:
    """A baseline trained here, as transformers' own LLaVA reads it."""

    @pytest.fixture(params=[{}, {"tie_word_embeddings": True}], ids=["head", "tied"])
    def exported(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
        assistant, node = tiny_assistant(tmp_path / "parts", low_res_only=True, **request.param)
        randomize(assistant)
        return save_pretrained(assistant, node, tmp_path / "hf"), assistant

    def test_equal_logits_and_ids(self, exported: tuple[Path, Any], tmp_path: Path) -> None:
        folder, assistant = exported
        theirs: Any = LlavaForConditionalGeneration.from_pretrained(to_llava(folder, tmp_path / "llava")).eval()
        image_id = theirs.config.image_token_index
        pixels = torch.randn(1, 3, 28, 28)
        ids = torch.tensor([[*TEXT[0], *[image_id] * TOKENS, *TEXT[1]]])
        with torch.inference_mode():
            expected = our_logits(assistant.model, pixels)
            found = theirs(input_ids=ids, pixel_values=pixels).logits
        torch.testing.assert_close(found[..., : expected.shape[-1]], expected, rtol=0, atol=1e-6)
        # a row that was added for <image> is never the answer
        assert found.argmax(-1).max() < expected.shape[-1]

    def test_processor(self, exported: tuple[Path, Any], tmp_path: Path) -> None:
        folder, assistant = exported
        processor: Any = LlavaProcessor.from_pretrained(to_llava(folder, tmp_path / "llava"))
        picture = assistant.image_processor.open(save_picture(tmp_path / "a.png"))
        found = processor(images=picture, text="<image>\nWhat is it?", return_tensors="pt")
        assert (found["input_ids"] == processor.image_token_id).sum() == TOKENS
        batch = assistant.model.data_preprocessor.normalizer(assistant.image_processor.pixels(picture)[None], 28)
        # one grey level of 255, over the smallest deviation, where torchvision rounds otherwise than Pillow
        torch.testing.assert_close(found["pixel_values"], batch[1], rtol=0, atol=1.01 / 255 / 0.26)

    def test_there_and_back(self, exported: tuple[Path, Any], tmp_path: Path) -> None:
        folder, assistant = exported
        to_llava(folder, tmp_path / "llava")
        assert convert(tmp_path / "llava", tmp_path / "back") == 0
        pixels = torch.randn(1, 3, 28, 28)
        expected = our_logits(assistant.model, pixels)
        found = our_logits(continued(tmp_path / "back", None), pixels)
        assert torch.equal(found[..., : expected.shape[-1]], expected)

    def test_a_model_with_objects_is_refused(self, tmp_path: Path) -> None:
        assistant, node = tiny_assistant(tmp_path / "parts")
        folder = save_pretrained(assistant, node, tmp_path / "hf")
        with pytest.raises(XTunerError, match="(?s)3 problems.*has a high_res_encoder.*has a object_encoder"):
            to_llava(folder, tmp_path / "llava")
        assert not (tmp_path / "llava").exists()

    def test_command(self, exported: tuple[Path, Any], tmp_path: Path) -> None:
        assert main(["convert", "to_llava", str(exported[0]), str(tmp_path / "llava")]) == 0
        assert json.loads((tmp_path / "llava" / "config.json").read_text())["model_type"] == "llava"
