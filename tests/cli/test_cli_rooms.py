"""``data``, ``models``, ``train``, ``lab``, ``app``."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import study_kit

from tests.ports import free_port
from workbench.cli import serve
from workbench.errors import BadInput
from workbench_datasets import files


def test_data_list_and_where(cli: Callable[..., Any], real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(real_data))
    rows = {row["name"]: row for row in json.loads(cli("data", "list", "--json").stdout)["data"]}
    assert len(rows) == 7
    assert rows["books"]["files"] == 13
    assert all(row["licence"] and row["source"] for row in rows.values())
    places = json.loads(cli("data", "where", "vattention", "--json").stdout)["files"]
    assert len(places) == 4
    assert "books" in cli("data", "list").stdout
    assert "dracula.txt: " in cli("data", "where", "books").stdout


def test_data_fetch_of_what_is_here_needs_no_network(
    cli: Callable[..., Any], real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(real_data))
    done = cli("data", "fetch", "memorybank")
    assert done.exit_code == 0, done.output
    assert "memorybank: 2 files" in done.stderr


def test_models_list_shows_what_ships(cli: Callable[..., Any]) -> None:
    rows = json.loads(cli("models", "list", "--json").stdout)["models"]
    shipped = {path.parent.name for path in (files.files_root() / "models").glob("*/model.safetensors")}
    assert {row["name"] for row in rows} == shipped
    for row in rows:
        assert 0 < row["MB"] <= 16
        assert cli("models", "card", row["name"]).exit_code == (0 if row["card"] else 2)


@pytest.mark.slow
def test_models_eval_measures_the_card(cli: Callable[..., Any]) -> None:
    command = ("models", "eval", "embedded", "--quick", "--part", "induction")
    value = json.loads(cli(*command, "--json").stdout)
    assert value["model"] == "embedded"
    assert value["quick"] is True
    assert {"metric", "group", "value", "low", "high", "n", "gate"} == set(value["measures"][0])
    shown = cli(*command)
    assert shown.exit_code == 0, shown.output
    assert cli("models", "eval", "embedded", "--part", "inducton").exit_code == 2
    assert "induction head" in shown.stdout


def test_train_a_tiny_model(cli: Callable[..., Any], tmp_path: Path) -> None:
    done = cli("train", "embedded", "--size", "tiny", "--steps", "2", "--device", "cpu", "-o", str(tmp_path / "run"))
    assert done.exit_code == 0, done.output
    folder = Path(done.stdout.strip())
    assert folder.is_relative_to(tmp_path)
    assert list(folder.glob("*.safetensors"))


@pytest.mark.slow
def test_lab_serves_the_start_notebook_under_its_token(tmp_path: Path) -> None:
    port = free_port()
    env = {**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "HOME": str(tmp_path)}
    process = study_kit.start("lab", "--no-browser", "--port", str(port), "--copy-to", str(tmp_path / "copy"), env=env)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(rf"(http://localhost:{port}/)lab/tree/(\S+)\?token=([0-9a-f]{{48}})", line)
        assert found, line
        assert (tmp_path / "copy" / found[2]).is_file()
        study_kit.wait_for(lambda: answers(f"{found[1]}api/status?token={found[3]}") == 200)
        assert answers(f"{found[1]}api/contents/{found[2]}?token={found[3]}") == 200
        assert answers(f"{found[1]}api/status?token=wrong") == 403
    finally:
        process.terminate()
        _, stderr = process.communicate(timeout=100)
    assert ("adding --allow-root" in stderr) == (os.geteuid() == 0)


def answers(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return int(error.code)
    except OSError:
        return 0


def test_a_copy_never_overwrites_what_the_reader_changed(tmp_path: Path) -> None:
    source = tmp_path / "source" / "01"
    source.mkdir(parents=True)
    (source / "a.ipynb").write_text("{}")
    serve._copy(tmp_path / "source", tmp_path / "copy")
    (tmp_path / "copy" / "01" / "a.ipynb").write_text("mine")
    (source / "b.ipynb").write_text("{}")
    serve._copy(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy" / "01" / "a.ipynb").read_text() == "mine"
    assert (tmp_path / "copy" / "01" / "b.ipynb").read_text() == "{}"


@pytest.mark.parametrize("command", ["lab", "app"])
def test_a_taken_port_is_a_usage_error(command: str, cli: Callable[..., Any], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = cli(
            command, "--no-browser", "--port", str(port), *(["--copy-to", str(tmp_path)] if command == "lab" else [])
        )
        assert done.exit_code == 2, done.output
        assert f"--port {port} is taken" in done.stderr
        with pytest.raises(BadInput):
            serve.free_port(port, "127.0.0.1", 8888)
        assert serve.free_port(None, "127.0.0.1", port) != port


def test_a_missing_start_notebook_is_said(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.files, "notebooks_root", lambda: tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    done = cli("lab", "--no-browser")
    assert done.exit_code == 1
    assert "00-start-here.ipynb does not exist" in done.stderr


def test_a_browser_needs_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not serve.has_display()
    monkeypatch.setenv("DISPLAY", ":0")
    assert serve.has_display()


def test_python_m_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("memory-workbench ")
