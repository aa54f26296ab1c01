"""Where a number came from: study, scale, seed, device, library versions, code version, date and wall time."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from workbench._version import __version__

#: Columns that `--record` adds to every row; a study may not use these names for its own columns.
COLUMNS = ("study", "scale", "seed", "device", "libraries", "code", "date", "wall_seconds")
LIBRARIES = ("numpy", "torch", "triton", "transformers")


@functools.cache
def libraries() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a number."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def code_version() -> str:
    """``git:<commit>`` in a checkout (``+changes`` when files differ from it), else ``memory-workbench <version>``.

    A copy of a checkout without its history (on a GPU machine) names the commit in ``WORKBENCH_COMMIT``.
    """
    from workbench_datasets import files

    released = f"memory-workbench {__version__}"
    if named := os.environ.get("WORKBENCH_COMMIT"):
        return f"git:{named[:12]}"
    root = files.files_root().parent
    if not files.in_checkout() or not (root / ".git").exists():
        return released
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return released
    return f"git:{commit[:12]}{'+changes' if _git(root, 'status', '--porcelain', '-uno') else ''}"


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def device_name(device: str) -> str:
    """``cpu x86_64, 2 cores`` or the GPU's own name; what a reader needs to judge a timing."""
    if device.startswith("cuda"):
        import torch

        return f"{device} {torch.cuda.get_device_name(device)}" if torch.cuda.is_available() else device
    return f"{device} {platform.machine()}, {os.cpu_count()} cores" if device == "cpu" else device


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def collect(study: str, scale: str, seed: int, device: str, wall_seconds: float) -> dict[str, str | int | float]:
    """One value for each of ``COLUMNS``."""
    return {
        "study": study,
        "scale": scale,
        "seed": seed,
        "device": device_name(device),
        "libraries": "; ".join(f"{name} {version}" for name, version in libraries().items()),
        "code": code_version(),
        "date": now(),
        "wall_seconds": round(wall_seconds, 3),
    }


#: What a study's numbers can depend on; the floors above it (views, widgets, command line) cannot change them.
_BELOW_STUDIES = (
    *("errors.py", "checks.py", "registry.py", "storage.py", "statistics.py"),
    *("models", "memory", "systems", "llm", "training", "tasks", "probes", "bench"),
)


@functools.cache
def code_fingerprint(study_file: str | None = None) -> str:
    """Hash of the source (and shipped weights) that a study's numbers depend on: the floors below it and its own file.

    Resuming reuses a finished cell only under the same fingerprint, so a changed mechanism is always measured anew,
    and a changed command line or view never throws a finished run away.
    """
    import workbench_datasets
    import workbench_kernels

    package = Path(__file__).resolve().parent
    roots = [package / name for name in _BELOW_STUDIES]
    roots += [Path(module.__file__ or "").resolve().parent for module in (workbench_kernels, workbench_datasets)]
    digest = hashlib.sha256(__version__.encode())
    own = _with_helpers(Path(study_file)) if study_file else []
    for path in [*_sources(roots), *_weights(), *own]:
        digest.update(path.name.encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _sources(roots: Iterable[Path]) -> list[Path]:
    return [path for root in roots for path in ([root] if root.is_file() else sorted(root.rglob("*.py")))]


def _with_helpers(file: Path) -> list[Path]:
    """A study's file and the private modules beside it (``_name.py``) that it imports, directly or through another."""
    found, waiting = {file}, [file]
    while waiting:
        for name in _imported(waiting.pop()):
            helper = file.parent / f"{name}.py"
            if name.startswith("_") and helper.is_file() and helper not in found:
                found.add(helper)
                waiting.append(helper)
    return sorted(found)


def _imported(file: Path) -> set[str]:
    """Last parts of the imported names: ``from a import _b``, ``from a._b import c``, ``import a._b``."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    return {name.rsplit(".", 1)[-1] for name in [*modules, *names]}


def _weights() -> list[Path]:
    from workbench_datasets.files import files_root

    return sorted((files_root() / "models").rglob("*.safetensors"))
