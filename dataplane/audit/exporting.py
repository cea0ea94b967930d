"""The log as one file, for other tools and for another bus: JSON Lines, or Parquet.

A file keeps every message as the log does: sequence, time, subject, headers, body. Parquet adds
columns for what a message means, so that it can be asked without this code; on the way back they
are passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from dataplane.audit.archive import put_back
from dataplane.config import ConfigError
from streams.jetstream import JetStreamLog
from streams.kept import FileLog, FileUnreadable, KeptLog
from streams.log import LogState, StoredLog
from streams.restoring import Restoring
from streams.stored import Stored, to_line

_PARQUET = ".parquet"
_JSON_LINES = (".jsonl", ".ndjson")
_ROWS = 10_000


class Exported(msgspec.Struct, frozen=True):
    """What an export wrote; sequences are 0 where it was nothing."""

    messages: int
    first_sequence: int
    last_sequence: int


async def export_log(
    log: StoredLog, path: Path, *, after: int = 0, until: int | None = None
) -> Exported:
    """Write messages behind `after`, up to `until` or what is there now; whole or not at all.

    Raises ConfigError for a name that says no form, or where pyarrow is missing.
    """
    state = await log.state()
    end = state.last_sequence if until is None else min(until, state.last_sequence)
    count, first, last = 0, 0, 0
    with _written(path) as write:
        async with aclosing(log.messages(after=after, until=end)) as batches:
            async for batch in batches if end > after else _nothing():
                write(batch)
                count += len(batch)
                first, last = first or batch[0].sequence, batch[-1].sequence
    return Exported(count, first, last)


async def import_log(path: Path, log: JetStreamLog, *, replicas: int = 1) -> LogState:
    """Put an exported log onto an empty bus. Raises NotEmpty and FileUnreadable."""
    kept = open_exported(path)
    state = await kept.state()
    if not state.last_sequence:
        raise FileUnreadable(f"{path}: there is no message in it")
    newest = 0
    async for batch in kept.messages(after=state.last_sequence - 1):
        newest = batch[-1].time_ns
    what = Restoring(state.created, state.first_sequence, state.last_sequence, newest)
    await put_back(log, kept, what, replicas=replicas)
    return await log.state()


def open_exported(path: Path) -> KeptLog:
    """The log in a file. Raises FileUnreadable; ConfigError for no file, or without pyarrow."""
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    return ParquetLog(path) if path.suffix == _PARQUET else FileLog(path)


@contextmanager
def _written(path: Path) -> Iterator[Callable[[list[Stored]], None]]:
    """What takes messages; the file is there once all has been taken."""
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no directory {path.parent}")
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix == _PARQUET:
            with _parquet_writer(partial) as write:
                yield write
        elif path.suffix in _JSON_LINES:
            with partial.open("wb") as file:
                yield lambda batch: file.writelines(map(to_line, batch))
                file.flush()
                os.fsync(file.fileno())
        else:
            raise ConfigError(f"PATH {path} ends with none of .jsonl, .ndjson, .parquet")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


async def _nothing() -> AsyncGenerator[list[Stored], None]:
    for nothing in list[list[Stored]]():
        yield nothing


# Parquet


def _arrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "Parquet needs pyarrow: pip install 'dataplane[parquet]', or export as .jsonl"
        ) from None
    return pyarrow, pyarrow.parquet


@contextmanager
def _parquet_writer(path: Path) -> Iterator[Callable[[list[Stored]], None]]:
    arrow, parquet = _arrow()
    text = arrow.string()
    schema = arrow.schema(
        [
            ("sequence", arrow.int64()),
            ("time", arrow.timestamp("ns", tz="UTC")),
            ("subject", text),
            ("headers", text),
            ("body", arrow.binary()),
            *((name, text) for name in _MEANINGS),
        ]
    )
    pending: list[Stored] = []
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:

        def put() -> None:
            writer.write_table(arrow.Table.from_pylist([*map(_row, pending)], schema=schema))
            pending.clear()

        def take(batch: list[Stored]) -> None:
            pending.extend(batch)
            if len(pending) >= _ROWS:
                put()

        yield take
        put()


_MEANINGS = ("type", "owner", "config_key", "id", "chain", "cause", "problem")


def _row(message: Stored) -> dict[str, Any]:
    recorded = message.recorded()
    return {
        "sequence": message.sequence,
        "time": message.time_ns,
        "subject": message.subject,
        "headers": json.dumps(dict(message.headers)),
        "body": message.body,
        **{name: getattr(recorded, name) for name in _MEANINGS},
    }


class ParquetLog(KeptLog):
    """A log that was exported to Parquet."""

    def __init__(self, path: Path) -> None:
        """Raises FileUnreadable where it is no such file."""
        arrow, parquet = _arrow()
        self._path = path
        try:
            self._file = parquet.ParquetFile(path)
            first, last, expected = 0, 0, None
            for batch in self._file.iter_batches(_ROWS, columns=["sequence"]):
                sequences = batch.column(0).to_pylist()
                if sequences != list(range(expected or sequences[0], sequences[-1] + 1)):
                    raise FileUnreadable(f"{path}: its sequences are not without a gap")
                first, last, expected = first or sequences[0], sequences[-1], sequences[-1] + 1
        except (arrow.ArrowException, IndexError) as error:
            raise FileUnreadable(f"{path}: {error}") from None
        self._state = LogState(path.name, first or 1, last)

    async def state(self) -> LogState:
        """As `ReadingLog.state`."""
        return self._state

    async def messages(
        self, *, after: int = 0, until: int | None = None
    ) -> AsyncGenerator[list[Stored], None]:
        """As `StoredLog.messages`."""
        arrow, _ = _arrow()
        columns = ["sequence", "time", "subject", "headers", "body"]
        end = self._state.last_sequence if until is None else until
        for batch in self._file.iter_batches(500, columns=columns):
            sequences = batch.column(0)
            if not len(sequences) or sequences[-1].as_py() <= after:
                continue
            if sequences[0].as_py() > end:
                return
            times = batch.column(1).cast(arrow.int64()).to_pylist()
            rest = (batch.column(n).to_pylist() for n in (2, 3, 4))
            rows = zip(sequences.to_pylist(), times, *rest, strict=True)
            yield [
                Stored(sequence, time_ns, subject, json.loads(headers), body)
                for sequence, time_ns, subject, headers, body in rows
                if after < sequence <= end
            ]

    async def close(self) -> None:
        """Nothing is held open for long."""
