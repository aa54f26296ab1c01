"""Help with examples on every command, exit codes, readable errors, and a quick start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench import __version__, catalogue
from workbench.errors import ModelError

COMMANDS = [
    *(["papers"], ["run"], ["figures"], ["look"], ["app"], ["lab"]),
    *(["models"], ["models", "list"], ["models", "card"], ["models", "eval"]),
    *(["data"], ["data", "list"], ["data", "fetch"], ["data", "where"], ["train"], ["train", "embedded"]),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_examples(command: list[str], cli: Callable[..., Any]) -> None:
    shown = cli(*command, "--help")
    assert shown.exit_code == 0
    assert "Examples" in shown.stdout
    assert f"$ workbench {' '.join(command)}" in shown.stdout


def test_version(cli: Callable[..., Any]) -> None:
    assert cli("--version").stdout.strip() == f"memory-workbench {__version__}"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["papres"], "papers"),
        (["papers", "sirlm"], "did you mean 'sirllm'"),
        (["run", "sirlm"], "did you mean 'sirllm'"),
        (["figures", "flash-atention"], "did you mean 'flash-attention'"),
        (["data", "where", "boks"], "did you mean 'books'"),
        (["models", "card", "embeded"], "embedded"),
        (["look", "x", "--text", "a", "--prompt", "b"], "give the text once"),
        (["look", "x"], "give the text once"),
        (["look", "x", "--prompt", "b", "-o", "map.jpg"], "must end in .png or .svg"),
        (["run", "flash-attention", "--device", "mars"], "device must be 'cpu', 'cuda' or 'cuda:N', got 'mars'"),
        (["run", "flash-attention", "--device", "cuda:99"], "device 'cuda:99' was asked for, but torch sees"),
        (["models", "eval", "embeded"], "did you mean 'embedded'"),
        (["models", "eval", "embedded", "--device", "mars"], "device must be 'cpu', 'cuda' or 'cuda:N', got 'mars'"),
        (
            ["train", "embedded", "--size", "tiny", "--device", "mars"],
            "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got 'mars'",
        ),
        (["train", "lists", "--device", "cuda:x"], "or 'cuda:N', got 'cuda:x'"),
        (["lab", "--no-browser", "--ip", "256.0.0.1"], "--ip 256.0.0.1 is no address of this machine"),
        (["app", "--no-browser", "--ip", "256.0.0.1"], "--ip 256.0.0.1 is no address of this machine"),
        (["look", "x", "--text", "/nowhere/at/all.txt"], "cannot be read"),
        (["run"], "slugs"),
        (["run", "sirllm", "--seeds", "0"], "seeds"),
        (["train", "embedded", "--variant", "embeded"], "embedded"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_usage_errors_are_2_and_say_what_would_do(arguments: list[str], hint: str, cli: Callable[..., Any]) -> None:
    done = cli(*arguments)
    assert done.exit_code == 2, done.output
    assert hint in done.stderr
    assert "Traceback" not in done.output
    assert done.stdout == ""


def test_a_paper_without_a_study_is_told_apart_from_a_misspelling(cli: Callable[..., Any]) -> None:
    open_ones = [entry.paper.slug for entry in catalogue.entries() if not entry.study]
    if not open_ones:
        pytest.skip("every paper has a study")
    done = cli("run", open_ones[0])
    assert done.exit_code == 2
    assert f"'{open_ones[0]}' is in the catalogue but has no study yet" in done.stderr


def test_an_error_of_ours_is_one_message_and_debug_shows_the_traceback(cli: Callable[..., Any]) -> None:
    arguments = ("look", "/nowhere/model", "--prompt", "a b c")
    quiet = cli(*arguments)
    assert quiet.exit_code == 1
    assert quiet.stderr.startswith("error: ")
    assert "Traceback" not in quiet.output
    assert isinstance(cli("--debug", *arguments).exception, ModelError)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "sirllm"], "the same command goes on from there"),
        (["train", "lists"], "`train lists` begins anew"),
        (["models", "eval"], "stopped; the same command begins anew"),
    ],
    ids=["run", "train lists", "models eval"],
)
def test_ctrl_c_promises_what_is_kept(
    arguments: list[str], says: str, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for place in ("studies.runner.run_all", "training.lists.train_lists", "models.evaluate.evaluate_embedded"):
        monkeypatch.setattr(f"workbench.{place}", stopped)
    done = cli(*arguments)
    assert done.exit_code == 130
    assert says in done.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "embedded", "--size", "tiny", "--steps", "1", "--out"],
        ["train", "lists", "--steps", "1", "--out"],
        ["figures", "vattention", "-o"],
        ["lab", "--no-browser", "--copy-to"],
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_a_folder_that_cannot_be_is_said_before_the_work(
    arguments: list[str], cli: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    done = cli(*arguments, str(tmp_path / "file"))
    assert done.exit_code == 1, done.output
    assert f"cannot write to {tmp_path / 'file'}" in done.stderr
    assert "choose another --" in done.stderr


def test_a_bug_keeps_its_traceback(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody wrote for the reader must not be dressed up as one."""
    monkeypatch.setattr(catalogue, "entries", lambda: int("x"))
    assert type(cli("papers").exception) is ValueError


def test_starting_is_quick_and_light() -> None:
    code = (
        "import sys; from workbench.cli import app\n"
        "try: app(['papers', '--json'], prog_name='workbench')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'altair', 'pandas', 'scipy', 'ray', 'IPython', 'anywidget'}\n"
        "import time; print(sorted(heavy & set(sys.modules)), time.process_time(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, seconds = done.stderr.rsplit(maxsplit=1)
    assert loaded == "[]"
    assert float(seconds) < 3, "0.3 s of the processor on a quiet machine; waiting for it does not count"
