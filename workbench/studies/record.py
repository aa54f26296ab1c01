"""The only writer of ``datasets/recorded/<slug>.csv``: a recorded scale replaces its own rows and leaves the others.

Studies and bench tables (``bench-<name>``) both write through it.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import provenance, storage
from workbench.errors import BadInput, StorageError
from workbench.studies.cells import Finished, check_writable
from workbench_datasets import files, recorded

if TYPE_CHECKING:
    import pandas as pd


#: Bytes of CSV above which the file is kept compressed: a reader of a diff gains nothing from 50,000 rows.
LARGEST_PLAIN = 1_000_000


def check() -> None:
    """Raise before the run when its rows could not be recorded."""
    folder = recorded.folder()
    if not files.in_checkout() and folder.is_relative_to(files.files_root()):
        raise BadInput(
            "recording writes into a checkout's datasets/recorded; set WORKBENCH_RECORDED to a folder of yours"
        )
    check_writable(folder, "set WORKBENCH_RECORDED to a folder you may write to")


def write(slug: str, scale: str, cells: Sequence[Finished], *, kept: Path | None) -> Path:
    """Replace the rows of ``scale`` in the recorded file by these cells, atomically.

    ``kept`` is the folder in which the run outlives a failure to write it, if there is one.
    """
    plain, packed = (recorded.folder() / f"{slug}{ending}" for ending in recorded.ENDINGS)
    merged = _merge(_held(recorded.path(slug)), _rows(cells), scale)
    text = merged.to_csv(index=False, lineterminator="\n").encode()
    small = len(text) <= LARGEST_PLAIN
    target, other = (plain, packed) if small else (packed, plain)
    try:
        # No time stamp in the archive: equal rows are equal bytes.
        storage.write_bytes(target, text if small else gzip.compress(text, mtime=0))
        other.unlink(missing_ok=True)
        return target
    except StorageError as error:
        hint = f" The run itself is kept in {kept}; run again with --record to only write." if kept else ""
        raise StorageError(f"{error}{hint}") from error


def _rows(cells: Sequence[Finished]) -> pd.DataFrame:
    import pandas as pd

    blocks = []
    for cell in cells:
        rows = cell.frame.drop(columns="seed")
        for place, name in enumerate(provenance.COLUMNS):
            rows.insert(place, name, cell.provenance[name])
        blocks.append(rows)
    return _as_text(pd.concat(blocks, ignore_index=True))


def _as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The values as the CSV spells them, so that rows of other scales stay as they are, byte by byte."""
    import pandas as pd

    return pd.read_csv(io.StringIO(frame.to_csv(index=False)), dtype=str, keep_default_na=False)


def _held(path: Path) -> pd.DataFrame | None:
    import pandas as pd

    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else None


def _merge(old: pd.DataFrame | None, new: pd.DataFrame, scale: str) -> pd.DataFrame:
    import pandas as pd

    if old is None:
        return new
    others = old.loc[old["scale"] != scale]
    return pd.concat([others, new], ignore_index=True).fillna("") if len(others) else new
