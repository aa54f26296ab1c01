"""Exports come back as they went; what is no export is refused and nothing is imported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_kit import Letters, state

from workbench.errors import BadInput, DataMissing, StorageError
from workbench.memory.durable import Item, NewItem, Store


def filled() -> Store:
    store = Store(encoder=Letters(), clock=lambda: 7.0)
    store.add_many(
        [
            NewItem(
                "aaa",
                key="k\u2028\n",
                kind="fact",
                time=1.1,
                strength=0.1,
                tags=["x", "é"],
                meta={"n": [1, {"u": None}]},
            ),
            NewItem("bbb \U0001f600", index_text="b"),
            NewItem("ccc\r\nd"),
            NewItem("gone"),
        ]
    )
    for source, target in ((1, 3), (1, 2), (3, 1), (2, 4)):
        store.link(source, target)
    store.delete(4)
    store.update(2, text="changed", index_text="e", lazy=True)
    return store


def moved(items: Sequence[Item], by: int) -> list[Item]:
    return [replace(item, id=item.id + by, links=tuple(link + by for link in item.links)) for item in items]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_exports_come_back(tmp_path: Path, kind: str) -> None:
    source, path = filled(), tmp_path / f"out.{kind}"
    getattr(source, f"export_{kind}")(path)
    with Store(tmp_path / "s.db", encoder=Letters()) as store:
        store.add("was here before")
        made = getattr(store, f"import_{kind}")(path)
        expected = moved(source.items(), 1)
        if kind == "jsonl":  # without vectors: what was stale is encoded
            expected[1] = replace(expected[1], stale=False)
        assert made == store.items([2, 3, 4]) == expected
        if kind == "parquet":
            assert np.array_equal(store.vectors([2, 3, 4]), source.vectors())
        assert store.check() == []
        store.undo()
        assert len(store) == 1


def test_parquet_of_another_encoder_is_encoded_anew(tmp_path: Path) -> None:
    filled().export_parquet(tmp_path / "out.parquet")
    with Store(encoder=Letters(9, "nine")) as store:
        made = store.import_parquet(tmp_path / "out.parquet")
        assert np.array_equal(store.vectors(), Letters(9).encode([item.index_text for item in made]))
        assert not any(item.stale for item in store)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_empty_store_goes_and_comes(tmp_path: Path, kind: str) -> None:
    with Store(encoder=Letters()) as store:
        getattr(store, f"export_{kind}")(tmp_path / "out")
        assert getattr(store, f"import_{kind}")(tmp_path / "out") == []
        assert len(store.events()) == 0


def test_json_lines_are_plain(tmp_path: Path) -> None:
    path = filled().export_jsonl(tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [line["id"] for line in lines] == [1, 2, 3]
    assert list(lines[0]) == ["id", "key", "kind", "text", "time", "strength", "tags", "links", "meta", "index_text"]
    assert lines[0]["links"] == [3, 2]


def test_lines_of_another_program_need_only_text(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('\ufeff{"text": "one"}\n\n{"text": "two", "time": "2023-05-01", "tags": ["x"]}\n', encoding="utf-8")
    with Store(encoder=Letters(), clock=lambda: 5.0) as store:
        assert [(i.text, i.time, i.tags) for i in store.import_jsonl(path)] == [
            ("one", 5.0, ()),
            ("two", 1682899200.0, ("x",)),
        ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"text": "a"}\n{"text": "b"', "line 2 is no JSON"),
        (b'{"text": "a"}\n[1]', "line 2 must be an object"),
        (b'{"text": "a"}\n{"txt": "b"}', "line 2 has the unknown field 'txt'"),
        (b'{"key": "a"}', "line 1 has no 'text'"),
        (b'{"text": "a"}\n{"text": ""}', "line 2: the text is empty"),
        (b'{"text": "a", "time": -1}', "line 1: a time must lie"),
        (b'{"text": "a", "time": NaN}', "line 1: a time must be a finite"),
        (b'{"text": "a", "id": 1}\n{"text": "b", "id": 1}', "line 2 repeats the id 1"),
        (b'{"text": "a", "id": 1, "links": [5]}', "line 1 links to 5"),
        (b'{"text": "a", "id": 1, "links": [1]}', "cannot link to itself"),
        (b'{"text": "a", "id": 1, "links": [[1]]}', "line 1"),
        (b'{"text": "a", "id": [1]}', "line 1"),
        (b'{"text": "a", "links": "xyz"}', "line 1"),
        (b'{"text": "a", "links": 5}', "line 1"),
        (b'{"text": "a", "key": "taken"}', "taken by item 1"),
        (b'{"text": "a", "key": "k"}\n{"text": "b", "key": "k"}', "given twice"),
        (b'{"text": "\\ud800"}', "line 1: the text holds a lone surrogate"),
        (b'{"text": ' + b"[" * 100_000, "line 1 is no JSON"),
    ],
)
def test_lines_that_cannot_be_kept_are_refused(store: Store, tmp_path: Path, data: bytes, message: str) -> None:
    store.add("here", key="taken")
    before, events = state(store), len(store.events())
    (tmp_path / "in.jsonl").write_bytes(data)
    with pytest.raises(BadInput, match=message):
        store.import_jsonl(tmp_path / "in.jsonl")
    assert state(store) == before
    assert len(store.events()) == events


def test_files_that_are_not_there_or_not_ours(tmp_path: Path) -> None:
    import pandas as pd

    with Store(encoder=Letters()) as store:
        for work in (store.import_jsonl, store.import_parquet):
            with pytest.raises(DataMissing, match="no file"):
                work(tmp_path / "nothing")
            with pytest.raises(BadInput, match="cannot read"):
                work(tmp_path)
        (tmp_path / "x.parquet").write_bytes(b"PAR1 not really PAR1")
        with pytest.raises(BadInput, match="no Parquet file"):
            store.import_parquet(tmp_path / "x.parquet")
        pd.DataFrame({"text": ["a"]}).to_parquet(tmp_path / "y.parquet")
        with pytest.raises(BadInput, match="not written by export_parquet"):
            store.import_parquet(tmp_path / "y.parquet")
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="cannot write"):
            store.export_jsonl(tmp_path / "file" / "out.jsonl")
        assert len(store.events()) == 0


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9).filter(str.strip), max_size=4),
    st.data(),
)
def test_any_text_goes_and_comes(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("transfer")
    with Store(encoder=Letters()) as source, Store(encoder=Letters()) as lines, Store(encoder=Letters()) as table:
        source.add_many([NewItem(text, time=1.5, tags=[text], meta={text: text}) for text in texts])
        for id in range(1, len(texts) + 1):
            links = data.draw(st.lists(st.integers(1, len(texts)).filter(lambda link, id=id: link != id), max_size=2))
            source.update(id, links=links)
        source.export_jsonl(folder / "out.jsonl")
        source.export_parquet(folder / "out.parquet")
        assert lines.import_jsonl(folder / "out.jsonl") == source.items()
        assert table.import_parquet(folder / "out.parquet") == source.items()
        assert np.array_equal(table.vectors(), source.vectors())
