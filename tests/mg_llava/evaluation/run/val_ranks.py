"""Run by torchrun on two ranks: short trainings in the tiny world, with evaluation during training and without."""

from __future__ import annotations

import sys
from pathlib import Path

from xtuner.config import load_config
from xtuner.engine.assemble import assemble
from xtuner.engine.processes.environment import close_environment, setup_environment

STEPS = 12


def options(world: Path) -> dict[str, object]:
    """Settings of the tiny SFT config for a world that stands elsewhere."""
    return {
        "llm_name_or_path": f"{world}/parts/llm",
        "visual_encoder_name_or_path": f"{world}/parts/clip",
        "visual_encoder_aux_path": f"{world}/parts/convnext",
        "image_folder": f"{world}/data",
        "box_json_path": f"{world}/data/boxes.json",
        "data_path": f"{world}/data/sft.json",
        "benchmarks.0.data_file": f"{world}/data/test.json",
        "batch_size": 2,
        "evaluation_batch_size": 3,
        "lr": 1e-2,
        "max_iters": STEPS,
        "save_steps": STEPS,
    }


def main(world: Path, folder: Path) -> None:
    """Leaves one run's folder per case below `folder`."""
    for name, deepspeed in (("ddp", None), ("zero3", "deepspeed_zero3")):
        for case, validation in ((name, {}), (f"{name}_val", {"val_interval": STEPS // 2, "val_limit": 7})):
            cfg = load_config("tiny_sft", {**options(world), **validation})
            environment = setup_environment(always_group=True)
            assemble(cfg, case, folder / case, environment, deepspeed).train()
    close_environment()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
