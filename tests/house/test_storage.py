"""A file is the old one or the new one, also when writing fails half way (a full disk: a real limit on file size)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.errors import StorageError
from workbench.storage import atomic_write, write_text

FULL = """
import resource, signal, sys
from workbench.storage import write_text
from workbench.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_text(sys.argv[1], 'x' * 100_000)
except StorageError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "table.csv", "old")
    out = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True).stdout
    assert "is unchanged" in out
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "table.csv", "old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(f"half {1 // 0}")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_text(tmp_path / "file" / "table.csv", "new")
