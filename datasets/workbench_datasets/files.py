"""Where the files that ship with the package are: beside the packages in a checkout, inside this one in a wheel."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PACKED = _HERE / "_files"


def in_checkout() -> bool:
    return not _PACKED.is_dir()


def files_root() -> Path:
    """The folder that holds catalogue.toml, reported/, recorded/ and models/."""
    return _HERE.parent if in_checkout() else _PACKED


def notebooks_root() -> Path:
    return _HERE.parent.parent / "notebooks" if in_checkout() else _PACKED / "notebooks"
