"""Pictures in folders, tar, zip and Parquet are the same pictures."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from xtuner.data.pictures.files import picture_files
from xtuner.errors import SampleError, XTunerError

PICTURES = {"a/1.jpg": b"one" * 50, "a/2.jpg": b"two", "b.png": b"\x00\x01" * 1000}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTUNER_CACHE", str(tmp_path / "cache"))


def make(kind: str, folder: Path) -> str:
    if kind == "folder":
        for name, content in PICTURES.items():
            (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "images" / name).write_bytes(content)
        return str(folder / "images")
    if kind == "tar":
        # two shards, found by a pattern
        for number, names in enumerate((["a/1.jpg"], ["a/2.jpg", "b.png"])):
            with tarfile.open(folder / f"{number}.tar", "w") as tar:
                for name in names:
                    member = tarfile.TarInfo(f"./{name}")
                    member.size = len(PICTURES[name])
                    tar.addfile(member, io.BytesIO(PICTURES[name]))
        return str(folder / "*.tar")
    if kind.startswith("zip"):
        method = zipfile.ZIP_DEFLATED if kind == "zip_deflated" else zipfile.ZIP_STORED
        with zipfile.ZipFile(folder / "all.zip", "w", method) as archive:
            archive.writestr("a/", b"")
            for name, content in PICTURES.items():
                archive.writestr(name, content)
        return str(folder / "all.zip")
    if kind == "parquet_struct":
        table = pa.table({"image": [{"bytes": content, "path": name} for name, content in PICTURES.items()]})
    else:
        table = pa.table({"file_name": list(PICTURES), "bytes": list(PICTURES.values())})
    parquet.write_table(table, folder / "all.parquet")
    return str(folder / "all.parquet")


KINDS = ("folder", "tar", "zip", "zip_deflated", "parquet_struct", "parquet_columns")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    files = picture_files(make(kind, tmp_path))
    # as a worker process gets it
    for some in (files, pickle.loads(pickle.dumps(files))):
        for name, content in PICTURES.items():
            found = some.open(name)
            assert (Path(found).read_bytes() if isinstance(found, str) else found.read()) == content
            assert some.holds(name)
    # also under another writing of a name, and in a folder that is not there
    asked = pa.array(["a/1.jpg", "gone.jpg", "./a/2.jpg", "b.png", "c/d.png"])
    assert files.missing(asked) == ["gone.jpg", "c/d.png"]
    assert not files.holds("a/3.jpg")


def test_a_name_that_is_no_text_stands_beside_the_pictures(tmp_path: Path) -> None:
    folder = make("folder", tmp_path)
    (Path(folder) / os.fsdecode(b"\xff.jpg")).touch()
    assert picture_files(folder).missing(pa.array(["b.png", "gone.png"])) == ["gone.png"]


def test_the_index_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = make("tar", tmp_path)
    picture_files(pattern)
    monkeypatch.setattr("xtuner.data.pictures.index._build", None)
    assert picture_files(pattern).holds("b.png")


class TestFaults:
    def test_a_picture_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(SampleError, match="'x.jpg' is in none of the archives .2, "):
            picture_files(make("tar", tmp_path)).open("x.jpg")

    def test_an_archive_that_was_cut_off_later(self, tmp_path: Path) -> None:
        files = picture_files(make("zip", tmp_path))
        os.truncate(tmp_path / "all.zip", 20)
        with pytest.raises(SampleError, match="is truncated; copy it again"):
            files.open("b.png")

    def test_archives_that_cannot_be_read(self, tmp_path: Path) -> None:
        for suffix in ("tar", "zip", "parquet"):
            (tmp_path / f"bad.{suffix}").write_bytes(b"x" * 2000)
            with pytest.raises(XTunerError, match=rf"bad.{suffix}' cannot be read .*copy it again"):
                picture_files(str(tmp_path / f"bad.{suffix}"))

    def test_parquet_without_pictures(self, tmp_path: Path) -> None:
        parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "t.parquet")
        with pytest.raises(XTunerError, match="has the columns text: expected pictures"):
            picture_files(str(tmp_path / "t.parquet"))

    def test_a_pattern_that_fits_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="names no file"):
            picture_files(str(tmp_path / "*.tar"))

    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "all.tar.gz").write_bytes(b"x")
        with pytest.raises(XTunerError, match=r"neither a folder nor one of .tar, .*unpack it"):
            picture_files(str(tmp_path / "all.tar.gz"))


class TestLimits:
    def test_members_that_unpack_to_more_than_is_allowed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("xtuner.data.pictures.files.MOST_BYTES", 10_000)
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("bomb.png", b"\0" * 10_000_000, zipfile.ZIP_DEFLATED)
            archive.writestr("stored.png", b"\0" * 10_001, zipfile.ZIP_STORED)
            archive.writestr("good.png", b"\0" * 10_000, zipfile.ZIP_DEFLATED)
        files = picture_files(str(tmp_path / "a.zip"))
        assert len(files.open("good.png").getvalue()) == 10_000
        for name in ("bomb.png", "stored.png"):
            with pytest.raises(SampleError) as caught:
                files.open(name)
            assert caught.value.kind == "picture too large" and name in str(caught.value)

    def test_names_never_leave_an_archive(self, tmp_path: Path) -> None:
        (tmp_path / "secret.png").write_bytes(b"x")
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("a.png", b"a")
        files = picture_files(str(tmp_path / "a.zip"))
        for name in ("../secret.png", str(tmp_path / "secret.png")):
            assert not files.holds(name) and files.outside(name) is None
            with pytest.raises(SampleError, match="is in none of the archives"):
                files.open(name)

    def test_broken_archives_are_named(self, tmp_path: Path) -> None:
        for suffix in ("zip", "tar", "parquet"):
            (tmp_path / f"a.{suffix}").write_bytes(b"PK\x03\x04 not an archive" * 50)
            with pytest.raises(XTunerError, match=f"a.{suffix}' cannot be read"):
                picture_files(str(tmp_path / f"a.{suffix}"))
