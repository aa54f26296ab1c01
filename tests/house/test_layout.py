"""Facts about the tree that every contributor relies on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

FLOORS = {
    "workbench_kernels": set(),
    "workbench_datasets": set(),
    "workbench.systems": {"workbench_kernels", "workbench_datasets"},
    "workbench.sandbox": set(),
    "workbench.llm": {"workbench_kernels", "workbench_datasets", "workbench.models", "workbench.sandbox"},
    "workbench.memory": {
        "workbench_kernels",
        "workbench_datasets",
        "workbench.models",
        "workbench.llm",
        "workbench.sandbox",
        "workbench.systems",
    },
    "workbench.models": {"workbench_kernels", "workbench_datasets", "workbench.memory"},
    "workbench.training": {"workbench_kernels", "workbench_datasets", "workbench.models", "workbench.memory"},
    "workbench.tasks": {
        "workbench_kernels",
        "workbench_datasets",
        "workbench.models",
        "workbench.llm",
        "workbench.sandbox",
        "workbench.memory",
        "workbench.systems",
    },
    "workbench.probes": {
        "workbench_kernels",
        "workbench_datasets",
        "workbench.models",
        "workbench.memory",
        "workbench.systems",
    },
    "workbench.views": set(),
}
SHARED = {"workbench"} | {
    f"workbench.{name}"
    for name in ("checks", "errors", "registry", "storage", "statistics", "provenance", "catalogue", "_version")
}
BANNED = {
    "block pointers are gone from Triton": re.compile(r"make_block_ptr"),
    "remote code is never run": re.compile(r"trust_remote_code\s*=\s*True"),
    "pickles are never read": re.compile(r"\btorch\.load\(|\bpickle\.loads?\("),
    "unfinished": re.compile(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError\b(?!.*abstract)"),
}


def tracked(root: Path, *patterns: str) -> list[Path]:
    out = subprocess.run(["git", "ls-files", *patterns], cwd=root, capture_output=True, text=True, check=True).stdout
    return [root / line for line in out.splitlines() if (root / line).is_file()]


def packages(root: Path) -> list[tuple[str, Path]]:
    sources = {"workbench": root, "workbench_kernels": root / "kernels", "workbench_datasets": root / "datasets"}
    found = []
    for name, base in sources.items():
        for path in (base / name).rglob("*.py"):
            parts = path.relative_to(base).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


def test_source_roots_are_not_packages(root: Path) -> None:
    assert not (root / "kernels" / "__init__.py").exists()
    assert not (root / "datasets" / "__init__.py").exists()


def test_hugging_face_datasets_is_not_shadowed(root: Path) -> None:
    code = "import datasets, workbench_datasets, workbench_kernels; print(datasets.__version__, datasets.__file__)"
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert str(root / "datasets") not in out.split()[1]


@pytest.mark.parametrize("code", ["import workbench", "from workbench import WorkbenchError", "import workbench.cli"])
def test_imports_are_lazy(code: str) -> None:
    heavy = "{'torch', 'transformers', 'altair', 'pandas', 'ray', 'sklearn', 'scipy', 'IPython'}"
    check = f"{code}; import sys; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_floors_import_downwards_only(root: Path) -> None:
    wrong = []
    for module, path in packages(root):
        floor = next((name for name in FLOORS if module == name or module.startswith(f"{name}.")), None)
        if floor is None:
            continue
        allowed = FLOORS[floor] | (set() if floor.startswith("workbench_") else SHARED)
        for name in imports(path):
            ours = name.split(".")[0] in ("workbench", "workbench_kernels", "workbench_datasets")
            inside = name == floor or name.startswith(f"{floor}.")
            if (
                ours
                and not inside
                and not any(name == ok or (ok != "workbench" and name.startswith(f"{ok}.")) for ok in allowed)
            ):
                wrong.append(f"{module} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_kernels_never_import_transformers(root: Path) -> None:
    assert not [
        m
        for m, path in packages(root)
        if m.startswith("workbench_kernels") and {"transformers", "workbench"} & imports(path)
    ]


def test_nothing_banned_in_the_sources(root: Path) -> None:
    wrong = []
    for path in tracked(root, "*.py", "*.js"):
        if path == Path(__file__):
            continue
        text = path.read_text()
        wrong += [f"{path.relative_to(root)}: {why}" for why, pattern in BANNED.items() if pattern.search(text)]
    assert not wrong, "\n".join(wrong)


def test_browser_code_fetches_nothing(root: Path) -> None:
    allowed = "http://www.w3.org/"  # XML namespaces are names, not addresses
    for path in tracked(root, "*.js", "*.css"):
        urls = [url for url in re.findall(r"https?://[^\s'\"`)]+", path.read_text()) if not url.startswith(allowed)]
        assert not urls, f"{path.name} names {urls}"


def test_files_are_rooms_not_halls(root: Path) -> None:
    long = {str(p.relative_to(root)): n for p in tracked(root, "*.py") if (n := p.read_text().count("\n")) > 450}
    assert not long, f"split these files: {long}"


def test_nothing_large_is_committed(root: Path) -> None:
    assert not [str(p) for p in tracked(root) if p.stat().st_size > 17_000_000]


def test_notebooks_are_committed_without_outputs(root: Path) -> None:
    import json

    for path in tracked(root, "*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs"), f"{path.name} carries outputs: run `nbstripout` or clear them"
            assert cell.get("execution_count") is None, f"{path.name} carries execution counts"
