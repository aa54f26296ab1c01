"""Kills a writer again and again and looks for what is lost. Also a script: its log is the proof.

    python tests/stores/crash_writer.py FILE --rounds 200 --seed 0

The writer carries out operations drawn from a seed, numbered from 0, and says each number only after the store has
acknowledged it. After SIGKILL the file must be what the same operations make in memory: all that were said and at most
one more, which was finished but not yet said.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from store_kit import Letters

from workbench.memory.durable import NewItem, Store


def carry_out(store: Store, seed: int, number: int) -> None:
    """Operation ``number`` of ``seed``: one acknowledged unit, whatever the store holds. It always logs an event."""
    rng = random.Random(f"{seed}-{number}")
    alive = [item.id for item in store.items()]
    text = "".join(rng.choices("abcdefghij ", k=rng.choice([3, 30, 300, 5_000]))) + "."
    kind = rng.choice(["add", "many", "update", "link", "delete", "undo", "transaction"]) if len(alive) > 3 else "add"
    if kind == "add":
        store.add(text, key=f"key {number}", time=float(number))
    elif kind == "many":
        store.add_many([NewItem(f"{text} {i}", time=float(number)) for i in range(rng.choice([2, 20]))])
    elif kind == "update":
        store.update(rng.choice(alive), text=f"{text} {number}", strength=float(number))
    elif kind == "link":
        source, target = rng.sample(alive, 2)
        store.update(source, links=[target], meta={"linked at": number})
    elif kind == "delete":
        store.delete(rng.choice(alive))
    elif kind == "undo":
        store.undo()
    else:
        with store.transaction():
            store.delete(rng.choice(alive))
            store.add(text, time=float(number))


def write(path: str, seed: int, start: int) -> None:
    """Never ends: somebody has to kill it."""
    with Store(path, encoder=Letters(), clock=lambda: 1.0) as store:
        sys.stdout.write("open\n")
        sys.stdout.flush()
        number = start
        while True:
            carry_out(store, seed, number)
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
            number += 1


@dataclass
class Report:
    """What many kills did. ``ahead`` of the operations were finished, but not yet said when the kill came."""

    kills: int = 0
    while_opening: int = 0
    operations: int = 0
    items: int = 0
    lost: int = 0
    ahead: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"kills {self.kills} (while opening {self.while_opening}), "
            f"operations acknowledged {self.operations - self.ahead}, finished but unsaid {self.ahead}, "
            f"items {self.items}, items lost {self.lost}, problems {self.problems}"
        )


def crash(path: Path, rounds: int, seed: int) -> Report:
    """Start and kill a writer on ``path`` ``rounds`` times; look at the file after each kill."""
    report, model = Report(), Store(encoder=Letters(), clock=lambda: 1.0)
    rng = random.Random(seed)
    for _ in range(rounds):
        said, opened = _run_and_kill(path, seed, report.operations, rng)
        report.kills += 1
        report.while_opening += not opened
        for number in range(report.operations, report.operations + said):
            carry_out(model, seed, number)
        report.operations += said
        with Store(path, encoder=Letters(), clock=lambda: 1.0) as store:
            _compare(store, model, seed, report)
    report.items = len(model)
    model.close()
    return report


def _run_and_kill(path: Path, seed: int, start: int, rng: random.Random) -> tuple[int, bool]:
    """How many operations the writer said before it was killed at a random moment, and whether it had opened."""
    command = [sys.executable, __file__, str(path), "--write", str(start), "--seed", str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    heard = ""
    if rng.random() < 0.2:  # while Python starts, or while the file is made or opened
        time.sleep(rng.uniform(0.05, 0.4))
    else:
        heard = "".join(process.stdout.readline() for _ in range(rng.randint(1, 15)))
        time.sleep(rng.uniform(0, 0.03))
    os.kill(process.pid, signal.SIGKILL)
    heard += process.stdout.read()
    assert process.wait() == -signal.SIGKILL, "the writer ended by itself"
    said = heard[: heard.rfind("\n") + 1].split()  # a last line without its end was not said
    return len([line for line in said if line != "open"]), bool(said)


def _compare(store: Store, model: Store, seed: int, report: Report) -> None:
    """The file against the model after what was said; after one more operation if the file has more events."""
    if len(store.events()) > len(model.events()):
        carry_out(model, seed, report.operations)
        report.operations += 1
        report.ahead += 1
    held, wanted = store.items(), model.items()
    report.lost += len({item.id for item in wanted} - {item.id for item in held})
    report.problems += store.check()
    if held != wanted or store.forgotten() != model.forgotten() or list(store.events()) != list(model.events()):
        report.problems.append(f"after operation {report.operations - 1} the file is not what the operations make")
    if not np.array_equal(store.vectors(), Letters().encode([item.index_text for item in held])):
        report.problems.append(f"after operation {report.operations - 1} a vector is not that of its text")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=int)
    given = parser.parse_args()
    if given.write is not None:
        write(str(given.path), given.seed, given.write)
    sys.stdout.write(f"{crash(given.path, given.rounds, given.seed)}\n")


if __name__ == "__main__":
    main()
