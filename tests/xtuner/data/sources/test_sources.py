"""Records of tables and shards: what is read, under which names, and what is refused."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.source_files import write_tar
from xtuner.data.records.records import Record
from xtuner.data.sources import open_pictures, open_source
from xtuner.data.sources.locate import source_name
from xtuner.data.sources.places import Place, picture_name, read_place
from xtuner.data.tables import parquet as parquet_module
from xtuner.errors import SampleError, XTunerError

TALK = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTUNER_CACHE", str(tmp_path / "cache"))


def picture(kind: str = "PNG", shade: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 0)).save(out, kind)
    return out.getvalue()


def table(tmp_path: Path, columns: dict[str, Any], name: str = "a.parquet", **options: Any) -> str:
    pq.write_table(pa.table(columns), tmp_path / name, **options)
    return str(tmp_path / name)


def read(path: str, **columns: str) -> list[Any]:
    return list(open_source(path, columns or None).records())


def values(path: str, **columns: str) -> list[Any]:
    found = read(path, **columns)
    assert all(isinstance(item, Record) for item in found), found
    return [item.value for item in found]


def opened(path: str, image: str, folder: str = "") -> Any:
    return open_pictures(folder, path).open(image)


class TestForms:
    """One cell, many ways to write it."""

    @pytest.mark.parametrize(
        "cell",
        [
            TALK,
            json.dumps(TALK),
            {"from": ["human", "gpt"], "value": ["<image>\nQ", "A"]},
        ],
        ids=["structs", "json", "struct of lists"],
    )
    def test_conversations(self, cell: Any, tmp_path: Path) -> None:
        assert values(table(tmp_path, {"conversations": [cell]}))[0]["conversations"] == TALK

    @pytest.mark.parametrize(
        ("cell", "kind"),
        [
            (picture(), pa.binary()),
            (picture(), pa.large_binary()),
            ({"bytes": picture(), "path": None}, None),
            ({"bytes": picture()}, None),
            ([picture()], None),
            ([{"bytes": picture(), "path": "x.png"}], None),
        ],
        ids=["bytes", "large bytes", "feature", "bytes only", "list of bytes", "list of features"],
    )
    @pytest.mark.parametrize("statistics", [True, False])
    def test_pictures_with_bytes(self, cell: Any, kind: Any, statistics: bool, tmp_path: Path) -> None:
        empty = [] if isinstance(cell, list) else None
        column = pa.array([cell, empty, cell, None], kind)
        path = table(tmp_path, {"image": column, "messages": [TALK] * 4}, row_group_size=2, write_statistics=statistics)
        images = [value["image"] for value in values(path)]
        assert not images[1] and images[3] is None
        for image in (images[0], images[2]):
            image = image[0] if isinstance(cell, list) else image
            assert opened(path, image).read() == picture()

    def test_pictures_by_path_and_by_bytes_in_one_column(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in/b.png").write_bytes(picture())
        cells = [{"bytes": picture(shade=9), "path": "a.png"}, {"bytes": None, "path": "b.png"}]
        path = table(tmp_path, {"image": cells, "messages": [TALK] * 2})
        first, second = (value["image"] for value in values(path))
        assert opened(path, first, str(tmp_path / "in")).read() == picture(shade=9)
        assert opened(path, second, str(tmp_path / "in")) == str(tmp_path / "in/b.png")
        assert (picture_name(first), picture_name(second)) == ("a.png", "b.png")

    def test_paths_are_paths(self, tmp_path: Path) -> None:
        for number, cell in enumerate(("a.png", {"path": "a.png"}, {"bytes": None, "path": "a.png"})):
            columns = {"image": [cell], "images_more": [1], "messages": [TALK]}
            assert values(table(tmp_path, columns, name=f"{number}.parquet"))[0]["image"] == "a.png"

    def test_other_names(self, tmp_path: Path) -> None:
        path = table(tmp_path, {"chat": [TALK], "jpg": [picture()], "key": ["7"]})
        (value,) = values(path, conversations="chat", image="jpg", id="key")
        assert value["id"] == "7" and value["conversations"] == TALK
        assert opened(path, value["image"]).read() == picture()

    def test_every_row_of_every_group(self, tmp_path: Path) -> None:
        content = [bytes([number]) * 50 for number in range(20)]
        path = table(tmp_path, {"image": content, "messages": [TALK] * 20}, row_group_size=3)
        files = open_pictures("", path)
        images = [value["image"] for value in values(path)]
        for number in np.random.default_rng(0).permutation(20):
            assert files.open(images[number]).read() == content[number]  # type: ignore[union-attr]

    def test_a_name_with_any_characters(self, tmp_path: Path) -> None:
        path = table(tmp_path, {"im#a@ge[0]": [picture()], "messages": [TALK]}, name="a#b@c [1].parquet")
        (value,) = values(path, image="im#a@ge[0]")
        assert opened(path, value["image"]).read() == picture()
        place = read_place(value["image"])
        assert place is not None and str(place) == value["image"] and place.file == "a#b@c [1].parquet"
        assert read_place("source:no-mark") is None and read_place("a/b.png") is None
        assert str(Place("f", "s", "n@m")).endswith("#s@n@m") and read_place(str(Place("f", "s", "n@m"))).name == "n@m"


class TestIdentity:
    def test_the_same_for_another_place_and_packing(self, tmp_path: Path) -> None:
        columns = {"image": [picture()] * 4, "messages": [TALK] * 4}
        first = table(tmp_path, columns)
        (tmp_path / "other").mkdir()
        second = table(tmp_path / "other", columns, compression="zstd", row_group_size=1)
        one, other = (open_source(path).identity() for path in (first, second))
        assert one["digest"] == other["digest"] and one["size"] == 4
        third = table(tmp_path / "other", {**columns, "messages": [TALK] * 3 + [TALK[:1] + TALK[:1]]}, name="b.parquet")
        assert open_source(third).identity()["digest"] != one["digest"]

    def test_is_remembered(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = table(tmp_path, {"messages": [TALK]})
        first = open_source(path).identity()
        monkeypatch.setattr("xtuner.data.sources.table.records_digest", None)
        assert open_source(path).identity() == first


class TestWebDataset:
    def test_png_and_jpeg_in_one_shard(self, tmp_path: Path) -> None:
        text = json.dumps({"conversations": TALK}).encode()
        members = [("a.png", picture()), ("a.json", text), ("b.jpg", picture("JPEG")), ("b.json", text)]
        write_tar(tmp_path / "s.tar", members)
        path = str(tmp_path / "s.tar")
        images = [value["image"] for value in values(path)]
        assert [opened(path, image[0]).read() for image in images] == [picture(), picture("JPEG")]
        assert [value["id"] for value in values(path)] == ["a", "b"]

    def test_folders_are_part_of_the_key_and_links_and_odd_members_are_not_read(self, tmp_path: Path) -> None:
        text = json.dumps({"messages": TALK}).encode()
        write_tar(tmp_path / "s.tar", [("x/1.json", text), ("y/1.json", text), ("../../1.json", text)])
        with tarfile.open(tmp_path / "s.tar", "a") as tar:
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
                link = tarfile.TarInfo("z.png")
                link.type, link.linkname = kind, "/etc/passwd"
                tar.addfile(link)
        found = values(str(tmp_path / "s.tar"))
        assert [value["id"] for value in found] == ["x/1", "y/1", "../../1"]
        assert not any(value.get("image") for value in found)

    def test_chosen_pictures_and_fields(self, tmp_path: Path) -> None:
        members = [
            ("a.seg.png", picture()), ("a.jpg", picture("JPEG")), ("a.chat.json", json.dumps(TALK).encode()),
        ]  # fmt: skip
        write_tar(tmp_path / "s.tar", members)
        path = str(tmp_path / "s.tar")
        (value,) = values(path, conversations="chat.json", image="jpg")
        assert value["conversations"] == TALK and opened(path, value["image"][0]).read() == picture("JPEG")

    def test_a_member_that_is_no_json_is_one_problem(self, tmp_path: Path) -> None:
        good = json.dumps({"messages": TALK}).encode()
        write_tar(tmp_path / "s.tar", [("a.json", good), ("b.json", b"{"), ("c.json", b"\xff"), ("d.txt", b"x")])
        found = read(str(tmp_path / "s.tar"))
        kinds = [item if isinstance(item, Record) else item.partition(":")[0] for item in found[1:]]
        assert kinds == ["malformed JSON", "malformed text", "no messages"]

    def test_no_messages_lists_what_there_is(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "s.tar", [("a.jpg", picture("JPEG")), ("a.txt", b"a caption")])
        with pytest.raises(XTunerError, match=r"columns 'txt', 'jpg': expected 'conversations' or 'messages'"):
            read(str(tmp_path / "s.tar"))


class TestRefused:
    def test_a_source_without_the_columns(self, tmp_path: Path) -> None:
        path = table(tmp_path, {"question": ["q"], "answer": ["a"]})
        with pytest.raises(XTunerError, match=r"columns 'question', 'answer': expected 'conversations'.*data_columns"):
            read(path)
        with pytest.raises(XTunerError, match=r"names 'chat' for 'conversations'"):
            read(path, conversations="chat")
        with pytest.raises(XTunerError, match=r"names the field 'conversation': .*Did you mean 'conversations'"):
            read(path, conversation="question")
        with pytest.raises(XTunerError, match="expected dict"):
            open_source(path, ["a"])  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "shards/a-{0..3}.tar.zst"])
    def test_compressed_tar(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(XTunerError, match="is a compressed tar, in which nothing can be read in place"):
            open_source(str(tmp_path / name))

    def test_two_columns_that_may_be_meant(self, tmp_path: Path) -> None:
        path = table(tmp_path, {"messages": [TALK], "conversations": [TALK]})
        with pytest.raises(XTunerError, match=r"'conversations' and 'messages' may both be what is said"):
            read(path)
        assert values(path, messages="messages")[0]["messages"] == TALK

    @pytest.mark.parametrize("cell", [3, 1.5, True, {"a": 1}])
    def test_columns_of_other_types(self, cell: Any, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match=r"column 'image' .* holds no pictures: expected bytes, paths"):
            read(table(tmp_path, {"image": [cell], "messages": [TALK]}))
        if not isinstance(cell, dict):
            with pytest.raises(XTunerError, match=r"column 'messages' .* is of type .*: expected a list of"):
                read(table(tmp_path, {"messages": [cell]}, name="b.parquet"))

    def test_a_picture_column_of_text(self, tmp_path: Path) -> None:
        cells = ["a dog\non a mat", "x" * 2000, "https://x/y.png", "data:image/png;base64,xx"]
        found = read(table(tmp_path, {"image": cells, "messages": [TALK] * 4}))
        assert all(isinstance(item, str) and item.startswith("bad picture: record number") for item in found)
        assert "holds the text" in str(found[0]) and "expected a path" in str(found[0])

    def test_null_pictures(self, tmp_path: Path) -> None:
        cells = [[None], [{"bytes": None, "path": None}], [{"bytes": picture(), "path": ""}]]
        found = read(table(tmp_path, {"image": cells, "messages": [TALK] * 3}))
        assert [isinstance(item, str) and "picture 1 of column 'image' is null" in item for item in found] == [1, 1, 0]

    def test_empty_sources(self, tmp_path: Path) -> None:
        empty = pa.table({"messages": pa.array([], pa.list_(pa.struct({"from": pa.string(), "value": pa.string()})))})
        pq.write_table(empty, tmp_path / "e.parquet")
        assert read(str(tmp_path / "e.parquet")) == []
        write_tar(tmp_path / "e.tar", [])
        assert read(str(tmp_path / "e.tar")) == []
        (tmp_path / "folder").mkdir()
        with pytest.raises(XTunerError, match=r"is a folder with nothing: expected"):
            open_source(str(tmp_path / "folder"))
        with pytest.raises(XTunerError, match=r"no file fits"):
            open_source(str(tmp_path / "*.parquet.gone"))

    @pytest.mark.parametrize("keep", [0, 3, 100, -1])
    def test_files_that_are_cut_off(self, keep: int, tmp_path: Path) -> None:
        columns = {"image": [picture()] * 50, "messages": [TALK] * 50}
        table(tmp_path, columns, name="t.parquet")
        with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, pa.table(columns).schema) as out:
            out.write_table(pa.table(columns))
        text = json.dumps({"messages": TALK}).encode()
        write_tar(tmp_path / "t.tar", [(f"{number}.json", text) for number in range(200)])
        for name in ("t.parquet", "t.arrow"):
            size = os.path.getsize(tmp_path / name)
            os.truncate(tmp_path / name, keep if keep >= 0 else size - 20)
            with pytest.raises(XTunerError, match="cannot be read .*copy it again"):
                read(str(tmp_path / name))
        os.truncate(tmp_path / "t.tar", 512 * 399 + 5 if keep < 0 else keep or 1)
        with pytest.raises(XTunerError, match=r"cannot be read .*copy it again"):
            read(str(tmp_path / "t.tar"))

    def test_bytes_that_are_wrong_in_the_middle(self, tmp_path: Path) -> None:
        path = Path(table(tmp_path, {"image": [os.urandom(300)] * 50, "messages": [TALK] * 50}, compression="zstd"))
        content = bytearray(path.read_bytes())
        draw = np.random.default_rng(0)
        for _ in range(60):
            broken = bytearray(content)
            for place in draw.integers(4, len(content) - 8, 8):
                broken[place] ^= int(draw.integers(1, 256))
            path.write_bytes(broken)
            try:
                for item in read(str(path)):
                    if isinstance(item, Record) and item.value["image"]:
                        opened(str(path), item.value["image"])
            except XTunerError:
                continue

    def test_arrow_offsets_that_lead_elsewhere(self, tmp_path: Path) -> None:
        data = pa.table({"messages": [json.dumps(TALK)] * 3})
        with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, data.schema) as out:
            out.write_table(data)
        path = tmp_path / "a.arrow"
        content = path.read_bytes()
        size = len(json.dumps(TALK))
        offsets = struct.pack("<4i", 0, size, 2 * size, 3 * size)
        assert offsets in content
        path.write_bytes(content.replace(offsets, struct.pack("<4i", 0, size, 2**30, 2**30 + 5)))
        with pytest.raises(XTunerError, match="cannot be read"):
            read(str(path))

    def test_row_groups_too_large_for_one_picture(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = table(tmp_path, {"image": [os.urandom(2000) for _ in range(10)], "messages": [TALK] * 10})
        files, (first, *_) = open_pictures("", path), values(path)
        monkeypatch.setattr(parquet_module, "MOST_PICTURE_BYTES", 10_000)
        monkeypatch.setattr("xtuner.data.sources.table.MOST_PICTURE_BYTES", 10_000)
        with pytest.raises(XTunerError, match=r"has 0 MB of pictures, .*xtuner convert dataset"):
            read(path)
        with pytest.raises(SampleError, match="convert dataset"):
            files.open(first["image"])
        assert len(list(open_source(path, random_access=False).records())) == 10

    def test_splits_of_a_saved_dict(self, tmp_path: Path) -> None:
        part = datasets.Dataset.from_dict({"messages": [TALK]})
        datasets.DatasetDict({"train": part, "dev": part}).save_to_disk(tmp_path / "all")
        with pytest.raises(XTunerError, match="holds the splits dev, train: name one of them"):
            open_source(str(tmp_path / "all"))
        assert len(values(str(tmp_path / "all/train"))) == 1
        (tmp_path / "all/train/state.json").write_text("{")
        with pytest.raises(XTunerError, match="save_to_disk made it, but cannot be read"):
            open_source(str(tmp_path / "all/train"))

    def test_files_of_several_kinds(self, tmp_path: Path) -> None:
        table(tmp_path, {"messages": [TALK]})
        write_tar(tmp_path / "b.tar", [])
        with pytest.raises(XTunerError, match=r"1 of parquet .*1 of webdataset .*expected files of one kind"):
            open_source(str(tmp_path))
        with pytest.raises(XTunerError, match="names 0 shards"):
            open_source(str(tmp_path / "{005..001}.tar"))

    def test_places_of_another_source(self, tmp_path: Path) -> None:
        path = table(tmp_path, {"image": [picture()], "messages": [TALK]})
        files = open_pictures("", path)
        cells = ("b.parquet#image[0]", "a.parquet#image[5]", "a.parquet#other[0]", "a.parquet#x")
        cells += ("../a.parquet#image[0]", f"a.parquet#image[{10**20}]")
        odd = [f"source:{cell}" for cell in cells]
        for place in odd:
            assert not files.holds(place)
            with pytest.raises(SampleError, match="belongs to another data source"):
                files.open(place)
        assert files.missing(pa.array([*odd, "source:a.parquet#image[0]"])) == odd
        write_tar(tmp_path / "s.tar", [("a.json", json.dumps({"messages": TALK}).encode())])
        shard = open_pictures("", str(tmp_path / "s.tar"))
        assert not shard.holds("source:s.tar#0+999999999") and not shard.holds("source:s.tar#-1+2")
        with pytest.raises(SampleError, match="truncated"):
            shard.open("source:s.tar#0+9999999")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/train.json", "train"),
        ("hf://owner/name:train", "name_train"),
        ("shards/*.tar", "shards"),
        ("a/b-{000..015}.tar", "b-_000..015"),
        ("data/saved", "saved"),
    ],
)
def test_names(path: str, name: str) -> None:
    assert source_name(path) == name


class TestPlacesInParquet:
    def test_of_an_encoding_that_splits_the_bytes_the_cell_is_read(self, tmp_path: Path) -> None:
        content = [b"same beginning of all " * 20 + bytes([number]) * 9 for number in range(12)]
        encoding = {"image": "DELTA_BYTE_ARRAY"}
        columns = {"image": content, "messages": [json.dumps(TALK)] * 12}
        path = table(tmp_path, columns, compression="none", use_dictionary=False, column_encoding=encoding)
        images = [value["image"] for value in values(path)]
        assert any("image[" in image for image in images)
        assert [opened(path, image).read() for image in images] == content

    @pytest.mark.parametrize("dictionary", [True, False])
    @pytest.mark.parametrize("in_lists", [True, False])
    def test_pictures_without_compression_are_read_alone(
        self, dictionary: bool, in_lists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draw = np.random.default_rng(0)
        content = [draw.bytes(int(draw.integers(0, 3000))) for _ in range(40)]
        content[7] = content[3]
        cells: list[Any] = [{"bytes": one, "path": None} for one in content]
        cells[5] = None
        column = [[cell] if cell else [] for cell in cells] if in_lists else cells
        path = table(
            tmp_path,
            {"image": column, "messages": [TALK] * 40},
            compression="none",
            use_dictionary=dictionary,
            row_group_size=9,
            data_page_size=2000,
        )
        images = [value["image"] for value in values(path)]
        monkeypatch.setattr(parquet_module.ParquetTable, "bytes_of", None)
        monkeypatch.setattr(parquet_module, "MOST_PICTURE_BYTES", 1)
        files = open_pictures("", path)
        for number, image in enumerate(images):
            if number == 5:
                assert not image
                continue
            image = image[0] if in_lists else image
            assert "[" not in image and files.holds(image)
            assert files.open(image).read() == content[number]  # type: ignore[union-attr]
