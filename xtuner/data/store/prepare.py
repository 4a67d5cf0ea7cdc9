"""Records to a prepared folder, once: streamed, on all cores, restartable, the same for any number of processes."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any

from xtuner.data.records.json_stream import Record
from xtuner.data.records.records import RecordSource
from xtuner.data.store import shards
from xtuner.data.store.cache import cache_folder, lock, publish
from xtuner.data.store.fingerprint import fingerprint
from xtuner.data.store.parallel import map_batches, processes_for
from xtuner.data.store.prepared import SETTINGS, PreparedData, check_settings
from xtuner.data.store.progress import FileProgress
from xtuner.data.store.shards import ShardWriter, write_json
from xtuner.data.text.encoder import NAMED, EncodedBatch, RecordEncoder
from xtuner.errors import ProblemsError, XTunerError, counted
from xtuner.log import get_logger, tell_from_any_rank

_SHOWN_PROBLEMS = 50


def prepare(
    source: RecordSource,
    out_folder: str | os.PathLike[str],
    settings: Mapping[str, Any],
    encoder: RecordEncoder,
    num_proc: int | None = None,
) -> dict[str, int]:
    """Encodes records into `out_folder`, which appears only when it is complete.

    A folder that was made with the same settings is left as it is. Finished shards of a run that was killed stand in a
    hidden folder beside it and are used again.

    Args:
        source: of the records.
        out_folder: new or empty folder, or one prepared before.
        settings: everything that the content depends on, see `xtuner.data.store.fingerprint.text_settings`.
        encoder: makes the record batches.
        num_proc: processes; None chooses by cores and the records' size. The result is the same for any number.

    Returns:
        Counts: ``records``, ``kept``, ``dropped: ...`` per reason and ``cut off: ...`` per kind.

    Raises:
        ProblemsError: faulty records, all named; nothing is left behind.
        XTunerError: `out_folder` holds something else, the disk is full, or no sample is left.
    """
    out = Path(os.path.abspath(out_folder))
    with lock(out):
        if (out / SETTINGS).is_file():
            return dict(check_settings(out, settings)["report"])
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise XTunerError(f"'{out}' exists and is not a prepared data set: choose a new folder.")
        unfinished = out.with_name(f".{out.name}.unfinished")
        try:
            writer = ShardWriter(unfinished, settings, encoder.schema)
            report = _encode(source, writer, encoder, num_proc)
            write_json(unfinished / SETTINGS, {**settings, "report": report, "shards": writer.finish()})
            publish(unfinished, out)
        except XTunerError as error:
            # finished shards are of use again only where the machine was at fault, not the data
            if not isinstance(error.__cause__, BrokenProcessPool):
                shutil.rmtree(unfinished, ignore_errors=True)
            raise
        except OSError as error:
            if (out / SETTINGS).is_file():
                # a network's disk without locks: another machine was first
                return dict(check_settings(out, settings)["report"])
            raise XTunerError(
                f"the prepared data cannot be written to '{out}': {error}; free some space and start again (finished "
                "work is kept), or choose another folder (XTUNER_CACHE sets the folder of the automatic cache)."
            ) from error
    told = ", ".join(counted(count, kind) for kind, count in report.items() if count)
    # whichever process had the lock first
    tell_from_any_rank("Prepared '%s': %s", out, told)
    return report


def load_prepared(
    source: RecordSource | None,
    settings: Mapping[str, Any],
    encoder: RecordEncoder,
    offline_folder: str | None = None,
) -> PreparedData:
    """Opens the prepared samples of a data source, preparing them first where that was not done before.

    Args:
        source: of the records; may be None where `offline_folder` is given.
        settings: as for `prepare`.
        encoder: as for `prepare`.
        offline_folder: use exactly this folder. None: the automatic cache, by the settings' fingerprint. Of several
            processes one prepares while the others wait for its lock, however long that takes.

    Raises:
        XTunerError: the folder does not exist or was made with other settings; or as `prepare`.
    """
    if offline_folder is not None:
        check_settings(Path(offline_folder), settings)
        return PreparedData(offline_folder)
    if source is None:
        raise XTunerError("no training data: set data_path (see docs/data.md) or offline_processed_text_folder.")
    folder = cache_folder() / "prepared" / fingerprint(settings)
    if not folder.is_dir():
        prepare(source, folder, settings, encoder)
    try:
        return PreparedData(folder)
    except XTunerError as error:
        # our own cache: made anew instead of asking the user to
        get_logger().warning("%s Preparing it again.", error)
        with lock(folder):
            shutil.rmtree(folder, ignore_errors=True)
        prepare(source, folder, settings, encoder)
        return PreparedData(folder)


def _encode(source: RecordSource, writer: ShardWriter, encoder: RecordEncoder, num_proc: int | None) -> dict[str, int]:
    """Lets `writer` make the shards that are missing; returns the counts of all."""
    problems: list[str] = []
    notes: dict[str, list[str]] = {}
    done = len(writer.shards) * writer.records_per_shard
    data_path = source.data_path
    with FileProgress(data_path, "Preparing", source.size()) as progress:
        batches = _batches(source, progress, done, problems)
        results = map_batches(encoder, batches, processes_for(progress.size, num_proc))
        good = _without_faults(results, progress, problems, notes)
        while writer.write(good):
            pass
    if problems:
        shown = problems[:_SHOWN_PROBLEMS]
        more = f" ({len(problems):,} in total, first {len(shown)} shown)" if len(problems) > len(shown) else ""
        raise ProblemsError(f"data file '{data_path}'{more}", shown)
    report: Counter[str] = Counter({"records": 0, "kept": 0})
    for shard in writer.shards:
        report.update(shard["counts"])
    if not report["kept"]:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in report.items() if count)
        raise XTunerError(f"data file '{data_path}' contains no sample to train on: {counts or 'it is empty'}.")
    for kind, names in notes.items():
        more = ", ..." if report[kind] > len(names) else ""
        tell_from_any_rank("'%s': %s %s: %s%s", data_path, f"{report[kind]:,}", kind, ", ".join(names), more)
    return dict(report)


def _without_faults(
    results: Iterator[EncodedBatch], progress: FileProgress, problems: list[str], notes: dict[str, list[str]]
) -> Iterator[EncodedBatch]:
    """Yields the batches up to the first fault; then only collects the other faults, so that all can be named."""
    for result in results:
        progress.advance(result.counts["records"])
        problems += result.problems
        for kind, names in result.notes.items():
            first = notes.setdefault(kind, [])
            first += names[: NAMED - len(first)]
        if not problems:
            yield result


def _batches(source: RecordSource, progress: FileProgress, done: int, problems: list[str]) -> Iterator[list[Record]]:
    def records() -> Iterator[Record]:
        for item in source.records(progress.on_bytes):
            if isinstance(item, Record):
                yield item
            else:
                problems.append(item)

    stream = islice(records(), done, None)
    while batch := list(islice(stream, shards.BATCH)):
        yield batch
