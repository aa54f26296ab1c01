"""Collecting and removing what untrusted code left, tried on the shapes that break the usual tools."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.sandbox.jail import folders


def test_sweep_removes_any_shape(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (top / "link").symlink_to(tmp_path / "kept")
    (top / "a" / "dangling").symlink_to("nowhere")
    (top / "a" / "b" / "f").write_text("x")
    os.mkfifo(top / "pipe")
    (top / "a" / "b").chmod(0)
    (top / "a").chmod(0o500)
    folders.sweep(str(top))
    assert sorted(os.listdir(tmp_path)) == ["kept"]
    assert (tmp_path / "kept" / "file").exists()


def test_sweep_has_no_depth_limit(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    handle = os.open(top, os.O_RDONLY)
    for _ in range(120):  # 12,000 characters: three times the longest path
        os.mkdir("d" * 100, dir_fd=handle)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)
    folders.sweep(str(top))
    assert os.listdir(tmp_path) == []


def test_collect_takes_new_and_changed_plain_files_only(tmp_path: Path) -> None:
    box = tmp_path / "box"
    (box / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("s")
    for name, text in {"same": "1", "changed": "2", "new": "3", "sub/new": "4", "large": "x" * 100}.items():
        (box / name).write_text(text)
    (box / "link").symlink_to(tmp_path / "secret")
    os.link(tmp_path / "secret", box / "second")
    os.mkfifo(box / "pipe")
    given_before = {"same": hashlib.sha256(b"1").hexdigest(), "changed": hashlib.sha256(b"1").hexdigest()}
    found = list(folders.collect(str(box), given_before, 20))
    assert {name: data for name, data, why in found if not why} == {"changed": b"2", "new": b"3", "sub/new": b"4"}
    assert {name for name, _, why in found if why} == {"link", "second", "pipe", "large"}


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 400), max_size=12), limit=st.integers(0, 1000))
def test_collect_never_returns_more_than_the_limit(tmp_path_factory, sizes: list[int], limit: int) -> None:
    box = tmp_path_factory.mktemp("box")
    for n, size in enumerate(sizes):
        (box / f"{n:02}").write_bytes(bytes(size))
    found = list(folders.collect(str(box), {}, limit))
    assert len(found) == len(sizes)
    assert sum(len(data or b"") for _, data, _ in found) <= limit


def test_usage_stops_early_and_counts_what_it_cannot_see_as_too_much(tmp_path: Path) -> None:
    for n in range(30):
        (tmp_path / f"{n}").write_bytes(bytes(5000))
    size, count = folders.usage(str(tmp_path), 10**9, 10**9)
    assert count == 30
    assert size >= 30 * 5000
    assert folders.usage(str(tmp_path), 10**9, 7)[1] == 8
    assert folders.usage(str(tmp_path / "0"), 10, 10) == (0, 0)  # not a folder (any more)
