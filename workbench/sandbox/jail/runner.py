"""The interpreter that runs the code: ``python -I -S runner.py SETTINGS``; all walls stand before this file starts."""

from __future__ import annotations

import builtins
import json
import os
import sys
import traceback

MEMORY_EXIT = 97  # the limit on address space was met and the code did not catch it


def refuse_in_python(kinds: list[str], box: str) -> None:
    """An audit hook for what the kernel could not close. It stops accidents, not code that means harm."""
    prefix = os.path.realpath(box) + os.sep
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    changes = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
    starts = {"os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system", "subprocess.Popen"}

    def inside(path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return isinstance(path, int)
        real = os.path.realpath(os.fsdecode(path))
        return real.startswith(prefix) or real == os.devnull

    def hook(event: str, args: tuple) -> None:
        if "network" in kinds and event.startswith("socket."):
            raise PermissionError(f"the sandbox has no network ({event})")
        if "processes" in kinds and event in starts:
            raise PermissionError(f"the sandbox starts no processes on this system ({event})")
        if "writes" in kinds:
            opened = event == "open" and isinstance(args[2], int) and args[2] & writing
            if (opened or event in changes) and not inside(args[0]):
                raise PermissionError(f"the sandbox writes only inside its folder ({event} {args[0]!r})")

    sys.addaudithook(hook)


def run(settings: dict) -> int:
    main, box = settings["main"], settings["box"]
    with open(main, "rb") as file:
        source = file.read()
    sys.path.insert(0, box)  # with -I the folder of this file is not on the path
    sys.path += settings["packages"]
    sys.argv = ["main.py", *settings["args"]]
    module = type(sys)("__main__")
    module.__dict__.update(__file__=main, __builtins__=__builtins__)
    sys.modules["__main__"] = module
    for name in ("exit", "quit"):  # usually made by ``site``, which -S leaves out
        setattr(builtins, name, sys.exit)
    if settings["refuse"]:
        refuse_in_python(settings["refuse"], box)
    try:
        exec(compile(source, main, "exec", dont_inherit=True), module.__dict__)
    except SystemExit:
        raise
    except BaseException as problem:
        below = problem.__traceback__.tb_next if problem.__traceback__ else None
        try:
            traceback.print_exception(type(problem), problem, below)
        except MemoryError:
            return MEMORY_EXIT
        return MEMORY_EXIT if isinstance(problem, MemoryError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(run(json.loads(sys.argv[1])))
