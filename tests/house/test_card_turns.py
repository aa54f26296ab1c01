"""GPU tests share a card in turns: side by side, or one alone; who waits for the whole card is not passed over."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

from tests.gpu.card_turns import turn


def _visit(folder: Path, whole: bool, rounds: int, log: Any, all_there: Any) -> None:
    all_there.wait(60)
    for _ in range(rounds):
        with turn(folder, whole):
            begun = time.monotonic()
            time.sleep(0.02)
            log.put((whole, begun, time.monotonic()))


def _visits(folder: Path, guests: list[tuple[bool, int]]) -> list[tuple[bool, float, float]]:
    spawn = multiprocessing.get_context("spawn")
    log, all_there = spawn.Queue(), spawn.Barrier(len(guests))  # or one may be done before another has started
    processes = [spawn.Process(target=_visit, args=(folder, *guest, log, all_there)) for guest in guests]
    for process in processes:
        process.start()
    seen = [log.get(timeout=60) for _ in range(sum(rounds for _, rounds in guests))]
    for process in processes:
        process.join(60)
    return seen


def test_one_alone_and_the_others_side_by_side(tmp_path: Path) -> None:
    seen = _visits(tmp_path, [(False, 40), (False, 40), (False, 40), (True, 10)])
    alone = [(a, b) for whole, a, b in seen if whole]
    shared = [(a, b) for whole, a, b in seen if not whole]
    assert len(alone) == 10
    assert not [(a, b) for a, b in alone for c, d in shared if a < d and c < b]
    assert any(a < d and c < b for a, b in shared for c, d in shared if (a, b) != (c, d))


def test_a_turn_ends_with_its_process(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path,))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    process.kill()
    process.join(60)
    with turn(tmp_path, whole=True):
        pass


def _hold(folder: Path) -> None:
    with turn(folder, whole=True):
        (folder / "held").touch()
        time.sleep(60)


def test_who_waits_for_the_whole_card_comes_before_those_after_it(tmp_path: Path) -> None:
    """Two guests whose stays always overlap leave no gap of their own accord."""
    seen = _visits(tmp_path, [(False, 60), (False, 60), (True, 1)])
    (mine,) = [begun for whole, begun, _ in seen if whole]
    assert mine < max(begun for whole, begun, _ in seen if not whole)
