"""Finding configs by path, by name, and by the file name of a path that does not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

import xtuner
from xtuner.config import config_name, config_root, find_config, list_configs
from xtuner.errors import XTunerError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("_base_/base.py", "vicuna/fuse_v1.5.py", "tiny/tiny_sft.py", "architectures/x.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_list_leaves_out_bases(root):
    assert list_configs(root) == {
        "tiny_sft": root / "tiny/tiny_sft.py",
        "fuse_v1.5": root / "vicuna/fuse_v1.5.py",
    }


def test_two_of_one_name_are_refused(root):
    (root / "vicuna/tiny_sft.py").touch()
    with pytest.raises(XTunerError, match="Two configs are named 'tiny_sft'"):
        list_configs(root)


@pytest.mark.parametrize("name", ["fuse_v1.5", "fuse_v1.5.py", "mg_llava/config/old/fuse_v1.5.py"])
def test_by_name_and_by_the_file_name_of_a_missing_path(root, name):
    assert find_config(name, root) == root / "vicuna/fuse_v1.5.py"


def test_a_file_that_exists_wins(root, tmp_path, monkeypatch):
    own = tmp_path / "own" / "tiny_sft.py"
    own.parent.mkdir()
    own.touch()
    assert find_config(own, root / "vicuna") == own


def test_unknown_suggests_the_nearest(root):
    with pytest.raises(XTunerError, match="did you mean 'tiny_sft'?"):
        find_config("tiny_stf", root)


def test_file_that_is_no_python(tmp_path):
    (tmp_path / "a.json").touch()
    with pytest.raises(XTunerError, match="is not a config"):
        find_config(tmp_path / "a.json")


def test_name_keeps_its_dots():
    assert config_name("a/b/v1.5") == config_name("v1.5.py") == "v1.5"


class TestRoot:
    def test_checkout(self):
        assert (config_root() / "_base_").is_dir()

    def test_installed(self, tmp_path, monkeypatch):
        package = tmp_path / "site-packages" / "xtuner"
        (package.parent / "configs").mkdir(parents=True)  # someone else's
        monkeypatch.setattr(xtuner, "__file__", str(package / "__init__.py"))
        assert config_root() == package / "configs"
