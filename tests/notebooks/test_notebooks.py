"""Every notebook runs from top to bottom, offline and without a warning, and is committed without outputs."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from queue import Empty
from typing import Any

import nbformat
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from traitlets import DottedObjectName, Type
from traitlets.config import Config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(path for path in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
PAPERS = [path for path in NOTEBOOKS if path.parent != FOLDER]

#: What a notebook may take on two quiet cores, and what a crowded test machine is given before the test fails.
BUDGET_SECONDS, LIMIT_SECONDS = 30, 150
#: A proxy where nobody listens: whatever a notebook tries to fetch from another host fails at once.
OFFLINE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


class LookingAgain(AsyncZMQSocketChannel):
    """Asks its socket anew every half second.

    One long poll was seen to sleep on until its timeout although the kernel's reply had long arrived; the socket
    signals only changes, and a change between two looks is lost.
    """

    async def get_msg(self, timeout: float | None = None) -> dict[str, Any]:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = 0.5 if deadline is None else min(0.5, max(0.0, deadline - time.monotonic()))
            try:
                return await super().get_msg(timeout=left)
            except Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    raise


class Client(AsyncKernelClient):
    shell_channel_class = Type(LookingAgain)
    iopub_channel_class = Type(LookingAgain)


class ThisPython(AsyncKernelManager):
    """Starts kernels with the interpreter that runs the tests, whatever kernels the user has installed."""

    client_class = DottedObjectName(f"{__name__}.Client")
    client_factory = Type(klass=AsyncKernelClient, default_value=Client)

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


def name(path: Path) -> str:
    return str(path.relative_to(FOLDER))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def execute(notebook: nbformat.NotebookNode, folder: Path) -> float:
    """Run every cell in ``folder``; the seconds from the kernel's start to the last cell."""
    environment = {
        **os.environ,
        **OFFLINE,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    options: dict[str, Any] = {
        "timeout": LIMIT_SECONDS,
        "startup_timeout": LIMIT_SECONDS,
        "kernel_manager_class": ThisPython,
    }
    with tempfile.TemporaryDirectory(prefix="workbench-kernel-") as sockets:
        # no ports: those that were free when they were chosen may be taken when the kernel is up
        through_files = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
        options |= {"config": Config(ThisPython=through_files), "resources": {"metadata": {"path": str(folder)}}}
        started = time.perf_counter()
        NotebookClient(notebook, **options).execute(env=environment)
        return time.perf_counter() - started


def stderr_of(notebook: nbformat.NotebookNode) -> str:
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stderr")


def fetched_from_elsewhere(notebook: nbformat.NotebookNode) -> set[str]:
    """Scripts, styles and pictures that an output would fetch from another host when it is shown."""
    shown = [
        str(output.get("data", {}).get("text/html", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    ]
    widgets = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    scripts = [str(widget["state"].get("_esm", "")) for widget in widgets.values()]
    tags = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(https?://[^\"' >]+)", "".join(shown))
    imports = re.findall(r"(?:\bfrom|\bimport)\s*\(?\s*[\"'](https?://[^\"']+)", "".join(shown + scripts))
    networks = re.findall(r"[\"'](https?://cdn\.[^\"']+)", "".join(shown))  # a script that loads others, as Vega's does
    return {*tags, *imports, *networks}


def test_there_is_a_start_notebook():
    assert (FOLDER / "00-start-here.ipynb") in NOTEBOOKS


def test_the_look_for_strangers_finds_them():
    cell = nbformat.v4.new_code_cell()
    cell.outputs = [nbformat.v4.new_output("display_data", {"text/html": '<script src="https://cdn.example/vega.js">'})]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    assert fetched_from_elsewhere(notebook) == {"https://cdn.example/vega.js"}
    cell.outputs[0].data["text/html"] = '<script>const paths = {"vega": "https://cdn.example/vega@6?noext"};</script>'
    assert fetched_from_elsewhere(notebook) == {"https://cdn.example/vega@6?noext"}
    state = {"one": {"state": {"_esm": 'import embed from "https://esm.example/vega-embed";'}}}
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": state}}
    assert fetched_from_elsewhere(notebook) == {"https://esm.example/vega-embed"}


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_SECONDS + 60)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_runs_top_to_bottom(path: Path, tmp_path: Path, record_property):
    notebook = read(path)
    seconds = execute(notebook, tmp_path)
    record_property("seconds", round(seconds, 1))
    assert seconds < LIMIT_SECONDS, (
        f"{name(path)} took {seconds:.0f} s; its budget on two quiet cores is {BUDGET_SECONDS} s"
    )
    complaint = re.search(r".*(Warning|Traceback|Error).*", stderr_of(notebook))
    assert complaint is None, f"{name(path)} complains on stderr: {complaint and complaint.group()}"
    strangers = fetched_from_elsewhere(notebook)
    assert not strangers, f"outputs of {name(path)} fetch from other hosts: {sorted(strangers)[:3]}"
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"], "no cell ran"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_is_committed_without_outputs(path: Path):
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert not cell.outputs, f"a cell of {name(path)} has outputs; clear them before committing"
            assert cell.execution_count is None
    assert "widgets" not in read(path).metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_has_unique_cell_ids_and_short_cells(path: Path):
    cells = read(path).cells
    assert len({cell.id for cell in cells}) == len(cells)
    longest = max(len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code")
    assert longest <= 45, f"a cell of {name(path)} has {longest} lines; a reader follows about 30"


@pytest.mark.parametrize("path", PAPERS, ids=name)
def test_paper_notebooks_take_the_seven_steps_in_order(path: Path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    steps = [int(digit) for digit in re.findall(r"^#{1,3} *(?:[Ss]tep *)?([1-7])\b", text, flags=re.MULTILINE)]
    assert steps == [1, 2, 3, 4, 5, 6, 7], (
        f"{name(path)} has the steps {steps}; see DESIGN: a notebook, always in this order"
    )
