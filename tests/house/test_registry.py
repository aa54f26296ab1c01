from __future__ import annotations

import pytest

from workbench.errors import BadInput, UnknownName, WorkbenchError
from workbench.memory.base import EventLog
from workbench.registry import Registry, slug_of


def test_names_come_from_the_folder_without_importing() -> None:
    registry: Registry[type] = Registry("cache", ["workbench.memory.cache"], "memory_workbench.none")
    assert "base" not in registry.names()
    assert slug_of("workbench.studies.flash_attention") == "flash-attention"


def test_a_misspelt_name_suggests_the_nearest() -> None:
    registry: Registry[type] = Registry("cache", [], "memory_workbench.none")
    registry.register("streaming")(dict)
    with pytest.raises(UnknownName, match="did you mean 'streaming'") as caught:
        registry.get("streamin")
    assert isinstance(caught.value, WorkbenchError)
    assert isinstance(caught.value, ValueError)


def test_two_classes_cannot_share_a_name() -> None:
    registry: Registry[type] = Registry("cache", [], "memory_workbench.none")
    registry.register("x")(dict)
    with pytest.raises(BadInput, match="already registered"):
        registry.register("x")(list)
    assert registry.get("x") is dict


def test_the_log_replays_to_any_moment() -> None:
    log = EventLog()
    log.append("write", [0, 1, 2], "prompt")
    log.append("evict", [1], "budget")
    log.append("merge", [0, 2], "alike", into=[7])
    assert [log.held(step) for step in (-1, 0, 1, 2)] == [set(), {0, 1, 2}, {0, 2}, {7}]
    assert log.diff(0, 2) == {"entered": {7}, "left": {0, 1, 2}, "stayed": set()}
    assert list(log.frame()["kind"]) == ["write", "evict", "merge"]


@pytest.mark.parametrize("step", [-2, 5])
def test_a_step_outside_the_log_is_refused(step: int) -> None:
    log = EventLog()
    log.append("write", [0], "prompt")
    with pytest.raises(BadInput, match="outside this log"):
        log.held(step)


def test_an_unknown_kind_of_event_is_refused_and_nothing_is_logged() -> None:
    log = EventLog()
    with pytest.raises(BadInput, match="not one of"):
        log.append("forget", [1], "no such kind")
    assert len(log) == 0
