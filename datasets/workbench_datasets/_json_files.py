"""Reading JSON that somebody else wrote: every failure names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench_datasets.registry import DataMissing


def read_json(file: Path) -> Any:
    """The JSON in a file; ``DataMissing`` where there is no file, ``ValueError`` where it holds something else."""
    if not file.is_file():
        raise DataMissing(f"there is no file {file}")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not JSON in UTF-8: {error}") from error
