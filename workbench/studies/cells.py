"""Cells: one study at one scale with one seed, computed once and kept under the hash of everything it depends on."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import provenance, storage
from workbench.errors import BadInput, StorageError
from workbench.studies.base import Progress, Scale, Study

if TYPE_CHECKING:
    import pandas as pd

_METADATA = b"memory_workbench"
_THIS_PROCESS = secrets.token_hex(8)


@dataclass(frozen=True)
class Finished:
    """A computed cell: its tidy frame and the provenance of its rows (``workbench.provenance.COLUMNS``)."""

    frame: pd.DataFrame
    provenance: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Cell:
    """One task of a plan. ``scale.settings`` already hold the device."""

    study: Study
    scale: Scale
    seed: int

    @property
    def label(self) -> str:
        return f"{self.study.slug} {self.scale.name} seed {self.seed}"

    def key(self) -> str:
        """Hash of the configuration: study, scale, settings, seed, device, libraries, code and shipped weights."""
        configuration = {
            "study": self.study.slug,
            "scale": self.scale.name,
            "settings": self.scale.settings,
            "seed": self.seed,
            "device": provenance.device_name(self.scale.settings["device"]),
            "libraries": provenance.libraries(),
            "code": _code(self.study),
        }
        try:
            text = json.dumps(configuration, sort_keys=True)
        except TypeError as error:
            raise BadInput(
                f"the settings of {self.study.slug} {self.scale.name} must be JSON values: {error}"
            ) from error
        return hashlib.sha256(text.encode()).hexdigest()

    def path(self) -> Path:
        name = f"{self.scale.name}-seed{self.seed}-{self.key()[:20]}.parquet"
        return storage.cache_dir("studies", self.study.slug, name)


def _code(study: Study) -> str:
    """A study typed into a notebook has no file to hash: its cells are reused within this process only."""
    module = sys.modules.get(type(study).__module__)
    file = getattr(module, "__file__", None) if module else None
    if file is not None and Path(file).is_file():
        return provenance.code_fingerprint(file)
    with contextlib.suppress(OSError, TypeError):
        source = hashlib.sha256(inspect.getsource(type(study)).encode()).hexdigest()
        return f"{provenance.code_fingerprint()}-{source}-{_THIS_PROCESS}"
    return f"{provenance.code_fingerprint()}-{_THIS_PROCESS}"


def compute(study: Study, scale: Scale, seed: int, quiet: bool = False) -> bytes:
    """Run one cell and pack it; every back end calls this, so that all of them give the same bytes of data."""
    with _reproducible(seed, int(scale.settings.get("threads", 1))):
        start = time.perf_counter()
        frame = study.run(scale, seed, Progress(f"{study.slug} {scale.name} seed {seed}", quiet))
        seconds = time.perf_counter() - start
    frame = _tidy(study, frame, seed)
    return _pack(frame, provenance.collect(study.slug, scale.name, seed, scale.settings["device"], seconds))


@contextlib.contextmanager
def _reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seed the global generators and fix torch's threads for one cell; the caller's are put back."""
    import random

    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.get_num_threads()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  (libraries that a study calls may draw from it)
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
        torch.set_num_threads(before[3])


def _tidy(study: Study, frame: Any, seed: int) -> pd.DataFrame:
    import pandas as pd

    if not isinstance(frame, pd.DataFrame) or frame.empty:
        raise BadInput(f"{study.slug}.run must return a frame with rows, got {type(frame).__name__}")
    if not all(isinstance(name, str) for name in frame.columns) or frame.columns.has_duplicates:
        raise BadInput(f"{study.slug}.run must return columns with distinct names, got {list(frame.columns)}")
    taken = sorted(set(frame.columns) & (set(provenance.COLUMNS) - {"seed"}))
    if taken:
        raise BadInput(f"{study.slug}.run uses the columns {', '.join(taken)}, which hold provenance; rename them")
    if "seed" in frame and not (frame["seed"] == seed).all():
        raise BadInput(f"{study.slug}.run gives another seed than {seed} in its column 'seed'")
    rest = frame.drop(columns="seed", errors="ignore").reset_index(drop=True)
    rest.insert(0, "seed", seed)
    return rest


def _pack(frame: pd.DataFrame, source: dict[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise BadInput(f"the frame of {source['study']} is not tidy, one type a column: {error}") from error
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _METADATA: json.dumps(source).encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def unpack(data: bytes) -> Finished:
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    return Finished(table.to_pandas(), json.loads(table.schema.metadata[_METADATA]))


def keep(cell: Cell, data: bytes) -> None:
    storage.write_bytes(cell.path(), data)


def find(cell: Cell) -> Finished | None:
    """The finished cell of exactly this configuration; a file that cannot be read counts as absent."""
    import pyarrow as pa

    path = cell.path()
    try:
        return unpack(path.read_bytes())
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None


def check_writable(folder: Path, advice: str) -> None:
    """Raise before the work instead of after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror or error}; {advice}") from error
