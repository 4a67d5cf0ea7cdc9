"""Sources to Parquet shards that `datasets.load_dataset` opens: conversations, pictures and videos as bytes, boxes."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from mg_llava.boxes.records import BoxRecord, image_key
from mg_llava.boxes.store import BoxStore
from mg_llava.data.box_columns import frame_records, own_records
from mg_llava.data.sources import DataSource
from mg_llava.pictures.open import picture_size
from mg_llava.videos.open import open_video
from mg_llava.videos.places import read_video_name
from xtuner.constants import IMAGE_TOKEN, VIDEO_TOKEN
from xtuner.data.pictures.files import MOST_BYTES, PictureFiles
from xtuner.data.records.formats import RecordContent, names_video, read_record
from xtuner.data.records.json_stream import Record
from xtuner.data.records.messages import is_video
from xtuner.data.sources import open_pictures, open_source
from xtuner.data.sources.places import picture_name
from xtuner.data.sources.writing import Row, RowWriter
from xtuner.data.text.conversations import Conversation, RecordError, parse_record
from xtuner.data.text.turns import PARTS_JOINT
from xtuner.errors import ProblemsError, SampleError, XTunerError
from xtuner.log import get_logger

_SHOWN = 50
_ROLES = {"user": "human", "assistant": "gpt", "system": "system"}


def write_dataset(sources: Sequence[DataSource], out_folder: str, shard_bytes: int, group_bytes: int) -> dict[str, int]:
    """Writes the records of `sources`, each once, with the bytes of their pictures and videos.

    The rows give the same samples as the sources: boxes are those of the records or box files, before any selection.
    Boxes of videos' frames stay in their box file, which goes on knowing the videos by their names.

    Args:
        sources: see `read_sources`.
        out_folder: new or empty folder; it appears when it is complete.
        shard_bytes: about the size of a file.
        group_bytes: about the size of the pictures and videos of a row group.

    Returns:
        Counts of records, pictures, videos (where there are any) and files.

    Raises:
        ProblemsError: records or pictures that cannot be read, all of them.
        XTunerError: the folder holds something, or the disk is full.
    """
    problems: list[str] = []
    counts: Counter[str] = Counter(records=0, pictures=0)
    videos = any(_have_videos(source) for source in sources if source.data_path is not None)
    with RowWriter(out_folder, shard_bytes, group_bytes, videos) as writer:
        for source in sources:
            if source.data_path is None:
                raise XTunerError("a source has no data_path: name the records.")
            for row in _rows(source, problems):
                counts["records"] += 1
                counts["pictures"] += len(row["images"])
                if videos:
                    counts["videos"] += len(row["videos"])
                if not problems:
                    writer.write(row)
        if problems:
            more = len(problems) - _SHOWN
            listed = [*problems[:_SHOWN], *([f"and {more:,} more"] if more > 0 else [])]
            raise ProblemsError(f"the data, of which nothing is written ({len(problems):,} in all)", listed)
        counts["files"] = writer.finish()
    return dict(counts)


def _have_videos(source: DataSource) -> bool:
    """Says whether a record names a video; the columns of a file are settled before its first row."""
    records = open_source(str(source.data_path), source.columns, random_access=False).records()
    return any(isinstance(item, Record) and names_video(item.value) for item in records)


def _rows(source: DataSource, problems: list[str]) -> Iterator[Row]:
    """Yields the rows of a source's good records; a sentence per faulty one is appended to `problems`."""
    records = open_source(str(source.data_path), source.columns, random_access=False)
    files = open_pictures(source.image_folder or "", source.data_path, in_order=True)
    store = BoxStore(source.box_json_path) if source.box_json_path else None
    told = False
    for item in records.records():
        if not isinstance(item, Record):
            problems.append(item)
            continue
        try:
            talk = parse_record(item.value, item.index, videos=True)
            content = read_record(item.value, videos=True)
            found = _boxes(talk, store) if source.box_json_path != "" else []
            if not told and store is not None and any(map(partial(_has_frames, store), content.videos)):
                told = True
                get_logger().info(
                    "Boxes of videos' frames are not written: go on with box_json_path='%s'.", source.box_json_path
                )
            yield {
                "id": None if item.value.get("id") is None else str(item.value["id"]),
                "source": source.name,
                "images": [_picture(path, files) for path in content.images],
                "videos": [_video(name, files) for name in content.videos],
                "conversations": _messages(content, talk.where),
                **_box_columns(found),
            }
        except RecordError as error:
            problems.append(str(error))
        except XTunerError as error:
            kind = f"{error.kind}: " if isinstance(error, SampleError) else ""
            name = item.value.get("id") if isinstance(item.value, Mapping) else None
            problems.append(f"{kind}record '{name}' (number {item.index + 1}): {error}")


def _picture(path: str, files: PictureFiles) -> dict[str, Any]:
    """The picture's bytes and name; its header is looked at, so that what is no picture is not handed on."""
    found = files.open(path)
    picture_size(found)
    return {"bytes": _content(found, "picture", path), "path": image_key(picture_name(path))}


def _video(name: str, files: PictureFiles) -> dict[str, Any]:
    """The video's bytes, and its name with the range that the record asks for; its container is looked at."""
    path, *_ = read_video_name(name)
    found = files.open(path)
    if isinstance(found, str) and os.path.isdir(found):
        raise SampleError(
            "folder of frames", f"video '{path}' is a folder of frames, which a row cannot hold: make it a video file."
        )
    with open_video(found, listed=False, name=path):
        pass
    return {"bytes": _content(found, "video", path), "path": image_key(picture_name(name))}


def _content(found: str | io.BytesIO, what: str, path: str) -> bytes:
    if isinstance(found, io.BytesIO):
        return found.getvalue()
    if os.path.getsize(found) > MOST_BYTES:
        raise SampleError(f"{what} too large", f"{what} '{path}' has more than {MOST_BYTES / 1e6:,.0f} MB.")
    with open(found, "rb") as file:
        return file.read()


def _has_frames(store: BoxStore, name: str) -> bool:
    return bool(frame_records(store, read_video_name(name).path))


def _messages(content: RecordContent, where: str) -> list[dict[str, Any]]:
    messages = []
    for message in content.messages:
        texts = [
            part if isinstance(part, str) else VIDEO_TOKEN if is_video(part) else IMAGE_TOKEN for part in message.parts
        ]
        places = ((IMAGE_TOKEN, "picture", content.places_in_text), (VIDEO_TOKEN, "video", content.videos_in_text))
        for token, what, is_meant in places:
            if message.role == "user" and not is_meant and any(token in text for text in message.texts):
                raise SampleError(
                    f"place of a {what} as text",
                    f"{where} has '{token}' in a text where no {what} is meant, which a row cannot say: change it.",
                )
        loss = False if message.role == "assistant" and not message.supervised else None
        messages.append({"from": _ROLES[message.role], "value": PARTS_JOINT.join(texts), "loss": loss})
    return messages


def _boxes(talk: Conversation, store: BoxStore | None) -> Sequence[BoxRecord | None]:
    if talk.boxes:
        return own_records(talk)
    if store is None:
        return []
    return [store.find(picture_name(path), talk.id, len(talk.images)) for path in talk.images]


def _box_columns(found: Sequence[BoxRecord | None]) -> dict[str, Any]:
    """The columns of a record's boxes, one entry per picture; all null where none of its pictures is known."""
    if all(record is None for record in found):
        return dict.fromkeys(("boxes", "labels", "scores", "width", "height"))
    sizes = [(None, None) if record is None or record.size is None else record.size for record in found]
    return {
        "boxes": [[] if record is None else record.found.boxes.tolist() for record in found],
        "labels": [[] if record is None else list(record.found.labels) for record in found],
        "scores": [[] if record is None else record.found.scores.tolist() for record in found],
        "width": [width for width, _ in sizes],
        "height": [height for _, height in sizes],
    }
