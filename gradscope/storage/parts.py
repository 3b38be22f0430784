"""Part files: how the rows of a run's tables lie on disk.

A part is a Parquet file ``part-FIRST-LAST-LEVEL-CRC.parquet``: the first and the last step it
holds, how often its rows were merged, and the CRC-32 of its footer. Pages carry their own
checksums, so that a damaged part is noticed before a number is taken from it. Parts sort by name
in order of steps. They are written as a hidden temporary file, synced and renamed; one that is
listed is whole. A merged part is renamed in before the parts it replaces are deleted; until then
these lie within its range of steps and are not listed.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute  # cast() would import it in the middle of a training
import pyarrow.parquet as pq

from gradscope import schema
from gradscope.storage import files

PARTS_PER_MERGE = 8
"""Adjacent parts of one level that are merged into one of the next level."""

LARGEST_MERGE = 256 * 2**20
"""Bytes; parts that are larger together stay as they are."""

ROWS_PER_GROUP = 2**18
"""Rows from which on a merged part starts another row group, always with a whole step: about as
many are in memory while merging."""

_KEYS = ("step", "layer", "shortcut")

_NAME = re.compile(r"part-(\d{12})-(\d{12})-(\d)-([0-9a-f]{8})\.parquet")
_RUN_ID = "gradscope run"  # key in the footer
_TEMPORARY = ".part.tmp"
_FOOTER_TAIL = 8  # length of the footer (4 bytes) and the magic bytes "PAR1"


class Part(NamedTuple):
    """One part file: rows of the steps `first` to `last`."""

    path: Path
    first: int
    last: int
    level: int
    footer_crc: int


class DamagedPart(Exception):
    """A part file whose content is not what was written; internal, never shown to the user."""


def list_parts(folder: Path) -> list[Part]:
    """Return the parts that together hold each row once, in order of steps."""
    found: list[Part] = []
    with suppress(FileNotFoundError, NotADirectoryError):
        found = [part for name in os.listdir(folder) if (part := _named(folder / name))]
    found.sort(key=lambda part: (part.first, -part.last, -part.level))
    parts: list[Part] = []
    for part in found:
        if not parts or part.last > parts[-1].last:
            parts.append(part)
    return parts


def foreign_files(folder: Path) -> list[Path]:
    """Return the visible files in `folder` that are no parts."""
    with suppress(FileNotFoundError, NotADirectoryError):
        names = sorted(os.listdir(folder))
        return [folder / n for n in names if not n.startswith(".") and not _named(folder / n)]
    return []


def _named(path: Path) -> Part | None:
    """Return the part that a file is by its name, None if it is called otherwise."""
    match = _NAME.fullmatch(path.name)
    if not match:
        return None
    first, last, level = (int(digits) for digits in match.groups()[:3])
    return Part(path, first, last, level, int(match[4], 16)) if first <= last else None


def arrow_table(columns: dict[str, np.ndarray]) -> pa.Table:
    """Return `columns` as an Arrow table without nulls; the arrays are not copied."""
    arrays = [_arrow(values) for values in columns.values()]
    fields = [
        pa.field(name, array.type, nullable=False)
        for name, array in zip(columns, arrays, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _arrow(values: np.ndarray) -> pa.Array:
    """Return `values` as Arrow array; `pa.array` would import pandas into a training."""
    packed = values.dtype == bool
    data = np.packbits(values, bitorder="little") if packed else np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, values.size, [None, pa.py_buffer(data)])


def write_part(
    folder: Path,
    run_id: str,
    tables: Iterable[pa.Table],
    layout: pa.Schema,
    steps: tuple[int, int],
    level: int,
) -> None:
    """Write `tables`, one row group each, as one part of the steps `steps[0]` to `steps[1]`.

    Raises
    ------
    OSError
        If the disk refuses; no temporary file is left behind.
    """
    floats = [field.name for field in layout if pa.types.is_floating(field.type)]
    temporary = folder / _TEMPORARY
    try:
        with new_file(temporary) as file:
            with pq.ParquetWriter(
                file,
                layout,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                use_byte_stream_split=floats,
                write_statistics=["step"],
                write_page_checksum=True,
                store_schema=False,
            ) as writer:
                for table in tables:
                    writer.write_table(table, row_group_size=table.num_rows)
                writer.add_key_value_metadata({_RUN_ID: run_id})
            file.flush()
            os.fsync(file.fileno())
            crc = _footer_crc(file)
        name = f"part-{steps[0]:012d}-{steps[1]:012d}-{level}-{crc:08x}.parquet"
        files.replace(temporary, folder / name)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(folder)


def merge_parts(folder: Path, run_id: str, first: int = 0) -> None:
    """Merge parts from the step `first` on while their number at the end of `folder` asks for it.

    Eight parts of a level become one of the next, so that n parts become about 7 log8(n), and a
    row is rewritten log8(n) times.

    Raises
    ------
    OSError
        If the disk refuses.
    DamagedPart
        If a part to be merged cannot be trusted.
    """
    while True:
        parts = [part for part in list_parts(folder) if part.first >= first][-PARTS_PER_MERGE:]
        level = parts[-1].level if parts else 0
        if len(parts) < PARTS_PER_MERGE or any(part.level != level for part in parts):
            return
        if level == 9 or sum(part.path.stat().st_size for part in parts) > LARGEST_MERGE:
            return
        layouts = []
        for part in parts:
            with _open(part, run_id) as file:
                layouts.append(file.schema_arrow)
        layout = pa.unify_schemas(layouts, promote_options="permissive")
        steps = (parts[0].first, parts[-1].last)
        write_part(folder, run_id, _regrouped(parts, layout, run_id), layout, steps, level + 1)
        for part in parts:
            with suppress(PermissionError):  # read for long: a resume removes it
                files.remove(part.path)


def read_part(
    part: Part,
    run_id: str,
    columns: Sequence[str] | None,
    after: int,
    until: int,
    grids: Mapping[int, np.ndarray] | None = None,
) -> Iterator[tuple[int | None, dict[str, np.ndarray]]]:
    """Yield the rows of the steps `after` < step <= `until`, a dict for each row group.

    Parameters
    ----------
    part : Part
    run_id : of the run that the part is to belong to
    columns : names of the columns to read, None for all; one the part lacks is left out
    after, until : steps
    grids : number of a row group -> int64, ascending
        Its steps, where it is known to hold the same rows for each, in order. The columns that
        number its rows are then not read; "step" is the grid, one element a step and not a row.

    Yields
    ------
    int or None
        Number of the row group, None where some of its rows are left out.
    dict of column to array

    Raises
    ------
    FileNotFoundError
        If the part was merged away since it was listed.
    DamagedPart
        If the content is not what was written.
    """
    file = _open(part, run_id)
    with _damage(), file:
        names = file.schema_arrow.names
        wanted = names if columns is None else [name for name in columns if name in names]
        for group in range(file.num_row_groups):
            held = _steps(file, group)
            if held.max <= after or held.min > until:
                continue
            cut = held.min <= after or held.max > until
            grid = (grids or {}).get(group)
            read = [name for name in wanted if grid is None or name not in _KEYS]
            table = file.read_row_group(group, columns=read)
            rows = {name: table.column(name).to_numpy() for name in read}
            if grid is not None:
                first, stop = np.searchsorted(grid, (after, until), side="right")
                each = table.num_rows // grid.size
                rows = {n: values[first * each : stop * each] for n, values in rows.items()}
                rows["step"] = grid[first:stop]
            elif cut:
                asked = (rows["step"] > after) & (rows["step"] <= until)
                rows = {name: values[asked] for name, values in rows.items()}
            yield None if cut else group, rows


def remove_leftovers(folder: Path, committed: int) -> None:
    """Remove what a crash left behind: temporary files, merged parts, rows of unfinished steps.

    Parameters
    ----------
    folder : of one table
    committed : the last step of the run that counts
    """
    listed = {part.path for part in list_parts(folder) if part.first <= committed}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == _TEMPORARY or (_named(path) and path not in listed):
            files.remove(path)


def new_file(path: Path) -> BinaryIO:
    """Open a new file in the place of `path`; what a link there leads to stays as it is."""
    files.remove(path)
    return open(path, "x+b")


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a loss of power, where the platform can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _damage() -> Iterator[None]:
    """Turn whatever a reader of broken Parquet may raise into `DamagedPart`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, AttributeError, MemoryError) as e:
        raise DamagedPart((str(e) or type(e).__name__).splitlines()[0]) from e


def _open(part: Part, run_id: str) -> pq.ParquetFile:
    with _damage():
        if not stat.S_ISREG(os.stat(part.path).st_mode):  # to open a pipe would wait for ever
            raise ValueError("it is no file")
        with open(part.path, "rb") as file:
            if _footer_crc(file) != part.footer_crc:
                raise ValueError("its footer does not match the checksum in its name")
        opened = pq.ParquetFile(part.path, page_checksum_verification=True)
        if (opened.metadata.metadata or {}).get(_RUN_ID.encode()) != run_id.encode():
            opened.close()
            raise ValueError("it belongs to another run")
        _check_table(opened, part.path.parent.name)
        first, last = _steps(opened, 0).min, _steps(opened, -1).max
        if (first, last) != (part.first, part.last):
            opened.close()
            raise ValueError(f"it was renamed: it holds the steps {first}-{last}")
        return opened


def _check_table(file: pq.ParquetFile, table: str) -> None:
    """Raise a ValueError if a part lacks the columns by which rows of `table` are told apart."""
    # step, and layer or shortcut; of `steps`, whose rows are told by the step, the time besides
    for column in schema.TABLES[table][:2] if table in schema.TABLES else ():
        kind = pa.from_numpy_dtype(column.dtype)
        if column.name not in file.schema_arrow.names or (
            file.schema_arrow.field(column.name).type != kind
        ):
            raise ValueError(f"it holds no column {column.name} of {table}")


def _steps(file: pq.ParquetFile, group: int) -> pq.Statistics:
    """Return the first and the last step of a row group, as its `min` and `max`."""
    group = range(file.num_row_groups)[group]
    column = file.schema_arrow.names.index("step")
    return file.metadata.row_group(group).column(column).statistics


def _footer_crc(file: BinaryIO) -> int:
    end = file.seek(0, os.SEEK_END)
    if end < _FOOTER_TAIL:
        raise ValueError(f"it holds {end} bytes, too few for a Parquet file")
    file.seek(end - _FOOTER_TAIL)
    length = int.from_bytes(file.read(4), "little")
    if length + _FOOTER_TAIL > end or file.read(4) != b"PAR1":
        raise ValueError("it does not end as a Parquet file does")
    file.seek(end - _FOOTER_TAIL - length)
    return zlib.crc32(file.read(length + _FOOTER_TAIL))


def _regrouped(parts: Sequence[Part], layout: pa.Schema, run_id: str) -> Iterator[pa.Table]:
    """Yield the parts' rows as tables of `ROWS_PER_GROUP` rows or more, the last one of fewer."""
    held: list[pa.Table] = []
    for part in parts:
        file = _open(part, run_id)
        with _damage(), file:
            for group in range(file.num_row_groups):
                held.append(_conform(file.read_row_group(group), layout))
                if sum(table.num_rows for table in held) >= ROWS_PER_GROUP:
                    yield pa.concat_tables(held)
                    held = []
    if held:
        yield pa.concat_tables(held)


def _conform(table: pa.Table, layout: pa.Schema) -> pa.Table:
    """Widen columns to `layout`, and fill those that `table` lacks with NaN."""
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else _arrow(np.full(table.num_rows, np.nan, field.type.to_pandas_dtype()))
        for field in layout
    ]
    return pa.Table.from_arrays(columns, schema=layout)
