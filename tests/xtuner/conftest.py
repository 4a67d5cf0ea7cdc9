"""A small config in two files, as the shipped ones are: a base with references, and a leaf."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

BASE = """
from tests.xtuner.config.config_classes import LLM, Dataset, Model, Part, Settings, build_optimizer

llm_name_or_path = 'base-llm'
data_path = 'base.json'
batch_size = 8
lr = 1e-3
betas = (0.9, 0.999)
seed = 42
trainable = ('part',)
max_length = 100 - 36

tokenizer = dict(type=LLM, name_or_path='${llm_name_or_path}')
model = dict(
    type=Model,
    llm=dict(type=LLM, name_or_path='${llm_name_or_path}'),
    part=dict(type=Part),
    trainable='${trainable}',
)
train_dataset = dict(
    type=Dataset, data_path='${data_path}', tokenizer='${tokenizer}', max_length='${max_length}'
)
train_dataloader = dict(batch_size='${batch_size}', num_workers=0)
optimizer = dict(type=build_optimizer, lr='${lr}', betas='${betas}')
runtime = dict(type=Settings, seed='${seed}')
benchmarks = [dict(type=Settings, names=('${llm_name_or_path} on mme',))]
"""

LEAF = """
from mmengine.config import read_base

with read_base():
    from .base import *
"""

WriteConfig = Callable[..., Path]


@pytest.fixture
def write_config(tmp_path: Path) -> WriteConfig:
    """Returns a function that writes base.py and a leaf that adds `text`, and returns the leaf's path."""

    def write(text: str = "", name: str = "leaf") -> Path:
        (tmp_path / "base.py").write_text(BASE)
        path = tmp_path / f"{name}.py"
        path.write_text(f"{LEAF}\n{text}\n")
        return path

    return write
