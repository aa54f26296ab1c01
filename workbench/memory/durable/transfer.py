"""Export and import: JSON lines for people and other programs, Parquet with the vectors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import BadInput, DataMissing
from workbench.memory.durable import rows, vectors, writing
from workbench.memory.durable.items import FIELDS, Item, NewItem, Row, new_row
from workbench.storage import atomic_write

if TYPE_CHECKING:
    import pyarrow as pa

    from workbench.memory.durable.store import Store

#: What one exported item says, in this order; `index_text` is null while it follows `text`.
_EXPORTED = ("id", *FIELDS)
_FORMAT = 1
_MARK = b"memory-workbench-store"


def export_jsonl(store: Store, path: str | Path) -> Path:
    """One JSON object a line for each living item, by id: id, key, kind, text, time, strength, tags, links, meta,
    index_text. An existing file is replaced when the new one is complete."""
    with atomic_write(path) as file:
        for record in _records(store):
            file.write(rows.dumps({name: record[name] for name in _EXPORTED}) + "\n")
    return Path(path)


def _records(store: Store) -> Iterable[Row]:
    with store._moment() as database:
        return [{"id": id, **row} for id, row in rows.fetch(database, "WHERE alive ORDER BY id")]


def import_jsonl(store: Store, path: str | Path, why: str = "") -> list[Item]:
    """Add the items of a file that ``export_jsonl`` wrote (or any with the same fields; only ``text`` is required).

    Ids are given anew, links are carried over to the new ids. Raises DataMissing without the file and BadInput, with
    the line, for what cannot be read or kept; the store is then unchanged.
    """
    records = []
    for line, text in enumerate(_utf8(_bytes(path), path).split("\n"), 1):
        if text.strip():
            records.append(_record(text, f"{path}, line {line}"))
    return _add(store, records, None, why or f"imported from {Path(path).name}")


def _bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataMissing(f"there is no file {path} to import") from error
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error


def _utf8(data: bytes, path: str | Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 (byte {error.start}); convert it first, nothing was imported") from error


def _record(text: str, where: str) -> Row:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where} is no JSON ({error}); nothing was imported") from error
    if not isinstance(record, dict):
        raise BadInput(f"{where} must be an object with at least 'text', got {type(record).__name__}")
    return _checked(record, where)


def _checked(record: Row, where: str) -> Row:
    if unknown := sorted(set(record) - set(_EXPORTED)):
        raise BadInput(f"{where} has the unknown field {unknown[0]!r}; known are {', '.join(_EXPORTED)}")
    if not isinstance(record.get("id"), int | None):
        raise BadInput(f"{where} has an id that is no whole number; nothing was imported")
    if "text" not in record:
        raise BadInput(f"{where} has no 'text'; nothing was imported")
    return {**record, "where": where}


def _add(store: Store, records: Sequence[Row], encoded: np.ndarray | None, why: str) -> list[Item]:
    """Add records in one unit: first the items, then the links between them (which may point forwards)."""
    made = [_row(store, record) for record in records]
    targets = _targets(records)
    if not made:
        return []
    if encoded is None:
        encoded = writing.encode_rows(store.encoder, made)
    with store._writing(why) as unit:
        items = writing.add(unit, [{**row, "links": []} for row in made], encoded, store._maker())
        ids = [item.id for item in items]
        for item, links in zip(items, targets):
            if links:
                writing.update(unit, item.id, {"links": [ids[place] for place in links]}, None, None)
    return store.items(ids)


def _row(store: Store, record: Row) -> Row:
    try:
        fields = {name: record[name] for name in FIELDS if name in record}
        row = new_row(NewItem(**fields), store.now())
    except BadInput as error:
        raise BadInput(f"{record['where']}: {error}; nothing was imported") from error
    return {**row, "stale": int(record.get("stale", 0))}


def _targets(records: Sequence[Row]) -> list[list[int]]:
    """The places in ``records`` that each record's links point to. Raises BadInput for a link out of the file."""
    places: dict[Any, int] = {}
    for place, record in enumerate(records):
        if record.get("id") is not None:
            if record["id"] in places:
                raise BadInput(f"{record['where']} repeats the id {record['id']!r}; nothing was imported")
            places[record["id"]] = place
    found = []
    for record in records:
        links = list(record.get("links") or [])
        if missing := [link for link in links if link not in places]:
            raise BadInput(f"{record['where']} links to {missing[0]!r}, which is not in the file; nothing was imported")
        found.append([places[link] for link in links])
    return found


def export_parquet(store: Store, path: str | Path) -> Path:
    """The living items with their vectors (a list of float32 each); the schema's metadata names the encoder."""
    import pyarrow.parquet as parquet

    with store._moment() as database:
        records = [{"id": id, **row} for id, row in rows.fetch(database, "WHERE alive ORDER BY id")]
        made = vectors.maker(database)
        found = vectors.load(database, [row["vector"] for row in records], made.dim) if made else None
    with atomic_write(path, "wb") as file:
        parquet.write_table(_table(records, found, made), file)
    return Path(path)


def _table(records: Sequence[Row], found: np.ndarray | None, made: vectors.Maker | None) -> pa.Table:
    import pyarrow as pa

    kinds = {"id": pa.int64(), "time": pa.float64(), "strength": pa.float64(), "stale": pa.bool_()}
    kinds |= {"tags": pa.list_(pa.string()), "links": pa.list_(pa.int64())}
    columns = {}
    for name in (*_EXPORTED, "stale"):
        values = [record[name] for record in records]
        if name == "meta":
            values = [rows.dumps(value) for value in values]
        columns[name] = pa.array([bool(v) for v in values] if name == "stale" else values, kinds.get(name, pa.string()))
    dim = made.dim if made else 0
    flat = pa.array(found.reshape(-1) if found is not None else np.zeros(0, np.float32))
    columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, dim) if dim else pa.array([], pa.list_(pa.float32()))
    told = {"format": _FORMAT, "encoder": asdict(made) if made else None}
    return pa.table(columns).replace_schema_metadata({_MARK: json.dumps(told).encode()})


def import_parquet(store: Store, path: str | Path, why: str = "") -> list[Item]:
    """Add the items of a file that ``export_parquet`` wrote. Vectors of the store's own encoder are taken over, others
    are made anew. Raises as ``import_jsonl`` does."""
    found = _read(path)
    told = json.loads(found.schema.metadata[_MARK])
    if told["format"] > _FORMAT:
        raise BadInput(
            f"{path} has format {told['format']}, this program reads up to {_FORMAT}; update memory-workbench"
        )
    blocks = found.column("vector").combine_chunks()
    records = []
    for place, row in enumerate(found.drop_columns(["vector"]).to_pylist()):
        where = f"{path}, row {place + 1}"
        stale = row.pop("stale", False)
        records.append({**_checked({**row, "meta": json.loads(row["meta"])}, where), "stale": stale})
    encoder = store.encoder if records else None
    made = told["encoder"]
    own = encoder is not None and made is not None and (made["name"], made["dim"]) == (encoder.name, encoder.dim)
    encoded = None
    if own:
        encoded = np.asarray(blocks.flatten(), dtype=np.float32).reshape(len(records), made["dim"])
    else:
        records = [{**record, "stale": False} for record in records]
    return _add(store, records, encoded, why or f"imported from {Path(path).name}")


def _read(path: str | Path) -> pa.Table:
    import io

    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        found = parquet.read_table(io.BytesIO(_bytes(path)))
    except pa.ArrowException as error:
        raise BadInput(f"{path} is no Parquet file ({error}); nothing was imported") from error
    missing = {*_EXPORTED, "vector"} - set(found.column_names)
    if missing or _MARK not in (found.schema.metadata or {}):
        raise BadInput(f"{path} was not written by export_parquet of a store; nothing was imported")
    return found
