"""The ordinary use: code in, report out; bad input at every door; properties that hold for any input."""

from __future__ import annotations

import ast
import concurrent.futures
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.errors import BadInput
from workbench.sandbox import Limits, Report, SandboxUnavailable, protections, run
from workbench.sandbox.jail.supervisor import held_by_kernel
from workbench.sandbox.limits import check_files

SLOW_AND_SHARED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
few = settings(max_examples=8, deadline=None, suppress_health_check=SLOW_AND_SHARED)


def test_report_of_a_good_program(place: Path, without: tuple[str, ...]) -> None:
    code = """
import sys
print(open("in/a.txt").read(), sys.stdin.read(), sys.argv[1:])
print("aside", file=sys.stderr)
open("out.bin", "wb").write(bytes(range(256)))
open("in/b.txt", "w").write("changed")
"""
    files = {"in/a.txt": "given", "in/b.txt": b"old", "helper.py": "x = 1"}
    report = run(code, files=files, args=["é", "--flag"], stdin="typed", without=without)
    assert report.ok
    assert report.exit_code == 0
    assert report.stdout == "given typed ['é', '--flag']\n"
    assert report.stderr == "aside\n"
    assert report.files == {"out.bin": bytes(range(256)), "in/b.txt": b"changed"}
    assert report.left_out == {}
    assert not report.truncated
    assert 0 < report.seconds < 10
    assert report.message == "ok: the code ran to its end"


def test_given_modules_can_be_imported(place: Path, without: tuple[str, ...]) -> None:
    assert run("import helper; print(helper.x)", files={"helper.py": "x = 7"}, without=without).stdout == "7\n"


def test_input_that_fills_every_limit_weakens_no_wall(place: Path) -> None:
    usual = run("").protections
    limits = Limits(disk_mb=1, file_mb=1, files=8)
    files = {"full": bytes(2**20 - 4096), "a/b": b"x", "c": b"", "d/e/f": b""}
    for code in ("", "#" * 2**24):
        report = run(code, files=files, limits=limits)
        assert report.ok, report
        assert report.protections.keys() == usual.keys()
        assert [how for name, how in report.protections.items() if name != "user"] == [
            how for name, how in usual.items() if name != "user"
        ]


def test_tracebacks_show_the_code_and_nothing_of_ours(place: Path) -> None:
    report = run("def f():\n    return 1 / 0\nf()")
    assert (report.status, report.exit_code) == ("error", 1)
    assert "line 2, in f\n    return 1 / 0" in report.stderr
    assert "runner.py" not in report.stderr
    assert report.message.endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("this is no python at all", "SyntaxError"),
        ("print(1", "SyntaxError"),
        ("x = '\0'", "null bytes"),
        ("  indented", "IndentationError"),
        ("# coding: latin-9000\n", "SyntaxError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise BaseException('odd')", "odd"),
    ],
)
def test_code_that_is_no_program(place: Path, code: str, says: str) -> None:
    report = run(code)
    assert report.status == "error"
    assert says in report.stderr


@pytest.mark.parametrize(("code", "exit_code"), [("exit(3)", 3), ("import sys; sys.exit('no')", 1), ("exit()", 0)])
def test_exit_codes(place: Path, code: str, exit_code: int) -> None:
    report = run(code)
    assert report.exit_code == exit_code
    assert report.status == ("ok" if exit_code == 0 else "error")


def test_death_by_a_signal_is_named(place: Path, without: tuple[str, ...]) -> None:
    report = run("import os\nos.abort()", without=without)
    assert (report.status, report.exit_code) == ("killed: SIGABRT", -6)


def test_output_that_is_not_text(place: Path) -> None:
    report = run("import sys; sys.stdout.buffer.write(b'\\xff\\x00ok\\xc3\\xa9\\xc3')")
    assert report.stdout == "\\xff\0oké\\xc3"


def test_file_names_that_are_not_text(place: Path) -> None:
    report = run("open(b'\\xff.txt', 'w').write('x')")
    assert report.files == {"\\xff.txt": b"x"}


def test_empty_program_and_empty_stdin(place: Path) -> None:
    report = run("import sys; print(repr(sys.stdin.read()))")
    assert report.stdout == "''\n"
    assert run("").ok


def test_installed_packages_only_on_request(place: Path) -> None:
    code = "import numpy\nprint(numpy.arange(6).reshape(2, 3).sum() + numpy.linalg.norm(numpy.ones((64, 64))))"
    assert "ModuleNotFoundError" in run(code).stderr
    report = run(code, packages=True)
    assert report.stdout == "79.0\n", report


def test_four_at_once(place: Path) -> None:
    def one(n: int) -> Report:
        return run(f"import time\nopen('n','w').write('{n}')\ntime.sleep(0.3)\nprint(open('n').read())")

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(one, range(4)))
    assert [report.stdout for report in reports] == ["0\n", "1\n", "2\n", "3\n"]
    users = {report.protections["user"] for report in reports}
    assert len(users) == 4 or not next(iter(users)).startswith("uid")  # none can signal or count the others


def test_protections_are_a_table(place: Path) -> None:
    table = protections().set_index("promise")
    assert {"network", "writes", "reads", "signals", "processes", "disk", "leftovers"} <= set(table.index)
    assert set(table["by"]) <= {"kernel", "kernel in part", "watcher", "python", "nobody"}
    assert table["without_kernel_walls"]["network"] == "refused in Python"  # no pretending
    assert table["means"].str.len().min() > 5


def test_what_is_required_and_cannot_be_held_is_not_run(place: Path) -> None:
    with pytest.raises(SandboxUnavailable, match="the kernel cannot hold network"):
        run("open('ran', 'w')", require=["network"], without=["namespaces", "landlock", "seccomp"])


def test_without_kernel_walls_python_refuses_and_the_report_says_so(place: Path) -> None:
    bare = ["namespaces", "landlock", "seccomp"]
    report = run("import socket\nsocket.socket()", without=bare)
    assert "the sandbox has no network" in report.stderr
    assert report.protections["network"] == "refused in Python"
    assert not held_by_kernel(report.protections["reads"])
    assert not held_by_kernel(report.protections["writes"])


def test_writes_are_refused_in_python_where_nothing_else_does(place: Path, tmp_path: Path) -> None:
    report = run(f"open({str(tmp_path / 'x')!r}, 'w')", without=["namespaces", "landlock", "seccomp"])
    assert report.status == "error"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": 0},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"seconds": "10"},
        {"cpu_seconds": -1},
        {"memory_mb": 1},
        {"memory_mb": None},
        {"disk_mb": 0},
        {"processes": 0},
        {"processes": 1.5},
        {"processes": True},
        {"output_kb": 0},
        {"files": 1},
        {"open_files": 3},
        {"returned_mb": -1},
    ],
)
def test_limits_are_checked(change: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=next(iter(change))):
        Limits(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"code": b"print()"},
        {"code": None},
        {"code": "'\ud800'"},
        {"code": "#" * (2**24 + 1)},
        {"args": "text"},
        {"args": [1]},
        {"args": ["a\0b"]},
        {"args": ["x" * 20_000]},
        {"stdin": b"x"},
        {"limits": {"seconds": 1}},
        {"require": ["networks"]},
        {"without": ["walls"]},
        {"files": {"a": 3}},
        {"files": {"big": b"x" * 11_000_000}},
        {"files": {"a": "\ud800"}},
        {"files": {"a": "x", "a/b": "y"}},
        {"files": {f"f{n}": "" for n in range(1001)}},
    ],
)
def test_arguments_are_checked(place: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        run(**{"code": "", **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a\0b",
        ".",
        "..",
        "x" * 256,
        "a/" * 20 + "b",
        "/".join(["y" * 250] * 5),
        "\ud800",
        7,
        b"x",
    ],
)
def test_file_names_stay_inside(name: object) -> None:
    with pytest.raises(BadInput, match="file name"):
        check_files({name: "x"}, Limits())  # type: ignore[dict-item]


@few
@given(st.text(max_size=300), st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=50))
def test_any_text_passes_through_unchanged(place: Path, typed: str, word: str) -> None:
    code = "import sys\nd = sys.stdin.buffer.read()\nopen('o', 'wb').write(d + sys.argv[1].encode())"
    report = run(code, stdin=typed, args=[word])
    assert report.files.get("o", b"") == typed.encode("utf-8", "surrogatepass") + word.encode()


@few
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}(/[a-zé .-]{1,7}x){0,3}", fullmatch=True), st.binary(max_size=5000), max_size=6
    )
)
def test_any_files_go_in_and_come_back(place: Path, files: dict[str, bytes]) -> None:
    try:
        given_files = check_files(files, Limits())
    except BadInput:
        return
    code = """
import os
for place, _, names in list(os.walk(".")):
    for name in names:
        with open(os.path.join(place, name), "r+b") as f:
            data = f.read(); f.seek(0); f.write(data[::-1] + b"!")
"""
    report = run(code, files=files)
    assert report.ok, report
    assert report.files == {name: data[::-1] + b"!" for name, data in given_files.items()}


@few
@given(st.binary(max_size=400))
def test_any_bytes_as_a_program_give_a_report(place: Path, data: bytes) -> None:
    report = run(data.decode("latin-1"), limits=Limits(seconds=30))
    assert report.status in ("ok", "error")


def test_the_clock_counts_for_a_busy_caller(place: Path) -> None:
    start = time.monotonic()
    report = run("while True: pass", limits=Limits(seconds=0.4, cpu_seconds=60))
    assert report.status == "timeout"
    assert time.monotonic() - start < 15


def test_limits_of_memory_reach_numpy(place: Path) -> None:
    code = "import numpy\nheld = [numpy.ones(2**22) for _ in range(100)]"
    report = run(code, packages=True, limits=dataclasses.replace(Limits(), memory_mb=400))
    assert report.status == "killed: memory"


LIKE_A_CONTAINER = """
import ctypes, os, sys
if sys.argv[1:] == ["inside"]:
    from workbench.sandbox import run
    print(run("print('ran')").protections)
else:
    for capability in (21, 7, 6) if len(sys.argv) > 1 else (21,):  # CAP_SYS_ADMIN; CAP_SETUID, CAP_SETGID
        assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0
    os.execv(sys.executable, [sys.executable, __file__, "inside"])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0, reason="gives up capabilities of root")
@pytest.mark.parametrize("more", [[], ["no change of user"]])
def test_root_of_a_container_without_the_right_to_namespaces(
    place: Path, root: Path, tmp_path: Path, more: list[str]
) -> None:
    script = tmp_path / "caller.py"
    script.write_text(LIKE_A_CONTAINER)
    environment = {**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(root)}
    command = [sys.executable, str(script), *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    told = ast.literal_eval(done.stdout)
    assert "namespace" not in str(told)
    assert told["network"] in ("seccomp", "refused in Python")
    if more:
        assert told["user"].startswith("the caller's (root")
        assert not told["processes"].startswith("rlimit")


def test_importing_the_package_stays_light() -> None:
    code = (
        "import sys, workbench.sandbox; print(sorted({'torch', 'pandas', 'numpy', 'ctypes.util'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
