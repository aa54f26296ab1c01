"""Binder's install steps, run for real in a clean environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = [pytest.mark.packaging, pytest.mark.slow, pytest.mark.xdist_group("packaging"), pytest.mark.timeout(900)]


def can_install(python: Path) -> bool:
    """Is a package index within reach? (A dry run resolves one tiny package and installs nothing.)"""
    command = [str(python), "-m", "pip", "install", "-q", "--dry-run", "--no-deps", "six"]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_the_install_steps_end_in_a_working_workbench(root: Path, tmp_path: Path) -> None:
    environment, home = tmp_path / "environment", tmp_path / "home"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    if not can_install(python):
        pytest.skip("no package index can be reached from here")
    checkout = tmp_path / "checkout"
    # what other tests write meanwhile may be gone before it is copied
    skip = shutil.ignore_patterns(".venv", ".git", ".hypothesis", "artefacts", "__pycache__", ".*_cache", "*.tmp")
    shutil.copytree(root, checkout, ignore=skip)
    env = os.environ | {
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "HOME": str(home),
        "WORKBENCH_TORCH_INDEX": "",
    }
    env.pop("JUPYTER_CONFIG_DIR", None)
    subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "-r", "binder/requirements.txt"], cwd=checkout, env=env, check=True
    )
    done = subprocess.run(["bash", "binder/postBuild"], cwd=checkout, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    config = json.loads((home / ".jupyter" / "jupyter_server_config.json").read_text())
    start = config["LabApp"]["default_url"].removeprefix("/lab/tree/")
    assert (checkout / start).is_file()
    code = "import workbench; print(workbench.load('embedded').n_layers)"
    out = subprocess.run(
        ["bash", "binder/start", str(python), "-c", code], cwd=checkout, env=env, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert int(out.stdout) >= 4
    listed = subprocess.run(
        [str(python), "-m", "pip", "list"], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert "nvidia" not in listed


def test_the_python_of_binder_is_one_we_support(root: Path) -> None:
    wanted = (root / "binder" / "runtime.txt").read_text().strip().removeprefix("python-")
    assert tuple(map(int, wanted.split("."))) >= (3, 11)
    assert sys.version_info >= (3, 11)
