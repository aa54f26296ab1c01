"""The wheel works in an environment that has the dependencies and nothing of this repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.packaging, pytest.mark.slow, pytest.mark.xdist_group("packaging")]


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def empty(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment: the wheel, and the dependencies by a path file.

    Path files found through a path file are not run, so the editable install of this checkout stays invisible.
    """
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(folder / "bin" / "python"),
        "install",
        "-q",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*command, "--ignore-installed", str(wheel)], check=True, capture_output=True)
    return folder


def run(empty: Path, cwd: Path, *command: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"WORKBENCH_CACHE": str(cwd / "cache")}
    done = subprocess.run(
        [str(empty / "bin" / command[0]), *command[1:]], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def test_the_wheel_holds_the_three_packages_and_their_files(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "workbench/py.typed",
        "workbench_kernels/__init__.py",
        "workbench_datasets/_files/catalogue.toml",
        "workbench_datasets/_files/models/embedded/model.safetensors",
        "workbench_datasets/_files/notebooks/00-start-here.ipynb",
    ):
        assert wanted in names
    assert any(name.endswith(".js") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "datasets/", "kernels/"))]


def test_it_imports_from_the_environment(empty: Path, tmp_path: Path, root: Path) -> None:
    names = ("workbench", "workbench_kernels", "workbench_datasets")
    code = f"import importlib as i; print(*(i.import_module(n).__file__ for n in {names}))"
    for place in run(empty, tmp_path, "python", "-c", code).split():
        assert Path(place).is_relative_to(empty)


def test_papers_and_a_study_work_from_it(empty: Path, tmp_path: Path) -> None:
    papers = {row["slug"]: row for row in json.loads(run(empty, tmp_path, "workbench", "papers", "--json"))["papers"]}
    assert len(papers) == 47
    assert all(papers["sirllm"][part] for part in ("mechanism", "study", "notebook", "reported"))
    study = json.loads(run(empty, tmp_path, "workbench", "run", "sirllm", "--json"))["studies"][0]
    assert study["slug"] == "sirllm"
    assert study["claims"]
