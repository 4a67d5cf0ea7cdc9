"""Language models from folders, their number formats, and their shapes from the shipped descriptions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils.logging import is_progress_bar_enabled

from tests.tiny_parts import tiny_llm, tiny_llm_folder
from xtuner.errors import XTunerError
from xtuner.model.llm import build_llm, layout_advice, read_llm_config, resolve_attention, resolve_dtype
from xtuner.model.meta import architecture_file, in_meta_init, meta_init

# parameters of the published models, in millions
PUBLISHED = {
    "lmsys/vicuna-7b-v1.5": (6738.4, 4096),
    "lmsys/vicuna-13b-v1.5": (13015.9, 5120),
    "microsoft/Phi-3-mini-4k-instruct": (3821.1, 3072),
    "meta-llama/Meta-Llama-3-8B-Instruct": (8030.3, 4096),
    "01-ai/Yi-1.5-34B-Chat": (34388.9, 7168),
}


class TestFromAFolder:
    def test_weights(self, tmp_path: Path) -> None:
        built = build_llm(str(tiny_llm_folder(tmp_path)))
        for name, value in tiny_llm().state_dict().items():
            assert torch.equal(built.state_dict()[name], value)

    def test_absent_weights_are_refused(self, tmp_path: Path) -> None:
        file = tiny_llm_folder(tmp_path) / "model.safetensors"
        save_file({n: t for n, t in load_file(file).items() if "layers.0.mlp" not in n}, file, {"format": "pt"})
        with pytest.raises(XTunerError, match=r"lacks 3 weights of its language model, model\.layers\.0\.mlp"):
            build_llm(str(file.parent))

    def test_no_bars_and_no_report(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        file = tiny_llm_folder(tmp_path) / "model.safetensors"
        save_file({**load_file(file), "tower.weight": torch.zeros(2)}, file, {"format": "pt"})
        capfd.readouterr()
        build_llm(str(file.parent))
        told = capfd.readouterr().err
        assert "Loading weights" not in told and "LOAD REPORT" not in told
        assert is_progress_bar_enabled()

    def test_dtype(self, tmp_path: Path) -> None:
        assert build_llm(str(tiny_llm_folder(tmp_path)), dtype="bfloat16").dtype == torch.bfloat16

    def test_attention(self, tmp_path: Path) -> None:
        folder = str(tiny_llm_folder(tmp_path))
        assert build_llm(folder).config._attn_implementation == "sdpa"
        assert build_llm(folder, attn_implementation="eager").config._attn_implementation == "eager"

    def test_no_config(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match=r"has no config\.json"):
            build_llm(str(tmp_path))

    def test_no_weights(self, tmp_path: Path) -> None:
        folder = tiny_llm_folder(tmp_path)
        (folder / "model.safetensors").unlink()
        with pytest.raises(XTunerError, match="the weights of .* cannot be read"):
            build_llm(str(folder))

    def test_no_such_model(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(XTunerError, match="the language model .* cannot be read"):
            read_llm_config(str(tmp_path / "nothing" / "here"))


class TestUnderMetaInit:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_published_sizes(self, name: str) -> None:
        with meta_init():
            llm = build_llm(name)
        millions, width = PUBLISHED[name]
        assert llm.num_parameters() / 1e6 == pytest.approx(millions, abs=0.1)
        assert llm.get_input_embeddings().embedding_dim == width
        assert all(parameter.is_meta for parameter in llm.parameters())

    def test_a_folder_wins_over_the_shipped_description(self, tmp_path: Path) -> None:
        folder = tmp_path / "vicuna-7b-v1.5"
        tiny_llm().save_pretrained(folder)
        with meta_init():
            assert build_llm(str(folder)).config.hidden_size == 32

    def test_context_ends(self) -> None:
        with meta_init():
            assert in_meta_init()
        assert not in_meta_init()
        assert not torch.zeros(1).is_meta

    def test_context_ends_after_an_error(self) -> None:
        with pytest.raises(KeyError), meta_init():
            raise KeyError
        assert not in_meta_init()

    def test_unknown_name_has_no_description(self) -> None:
        assert architecture_file("someone/some-model") is None


def test_dtype_names() -> None:
    assert resolve_dtype("auto") == "auto"
    assert resolve_dtype("float16") == torch.float16
    with pytest.raises(XTunerError, match="dtype is 'bfloat': .* Did you mean 'bfloat16'"):
        resolve_dtype("bfloat")


def test_auto_attention_without_a_gpu() -> None:
    if not torch.cuda.is_available():
        assert resolve_attention("auto") == "sdpa"
    assert resolve_attention("flex_attention") == "flex_attention"


class TestLayoutAdvice:
    """On a CPU the shipped default, padded rows, is right; with flash attention packed ones are."""

    @pytest.mark.parametrize(("attention", "pack"), [("sdpa", False), ("eager", False), ("flash_attention_2", True)])
    def test_none_where_it_fits(self, attention: str, pack: bool) -> None:
        assert layout_advice(attention, pack) is None

    def test_flash_attention_on_padded_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
        said = layout_advice("auto", False)
        assert said is not None and said.startswith("flash_attention_2 ") and "pack=True" in said

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_dense_mask_on_packed_rows(self, attention: str) -> None:
        said = layout_advice(attention, True)
        assert said is not None and f"with {attention} attention" in said and "pack=False" in said
