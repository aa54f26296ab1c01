"""The timeline of a launch on a card's multiprocessors: its controls, and what it cannot start with."""

from __future__ import annotations

import pytest

from workbench.errors import BadInput
from workbench.widgets.sm_timeline import SmTimeline


def test_timeline_widget_follows_its_controls():
    timeline = SmTimeline(heads=16, n=4096)
    launch = timeline.schedule.makespan
    timeline.order = "longest-first"
    assert timeline.schedule.makespan < launch
    timeline.grid = "heads"
    assert len(timeline.schedule.placed) == 16
    assert "grid='heads'" in timeline._line.value
    kept = timeline.schedule
    timeline.grid, timeline.batch, timeline.heads, timeline.n = "rows", 16, 32, 16384
    assert "more than the 5,000" in timeline._line.value
    assert kept is not None
    picture = timeline._repr_mimebundle_()
    assert "<svg" in (picture[0] if isinstance(picture, tuple) else picture)["text/html"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"head": 2}, "no setting 'head'; it has .*heads"),
        ({"heads": 0}, "heads must be >= 1, got 0"),
        ({"sms": 0}, "sms and occupancy must be >= 1, got sms=0"),
        ({"heads": 64, "n": 16384, "rows": 64}, "more than the 5,000"),
    ],
)
def test_timeline_says_what_it_cannot_start_with(words, told):
    with pytest.raises(BadInput, match=told):
        SmTimeline(**words)


def test_timeline_takes_any_card():
    assert SmTimeline(heads=7, n=128, sms=7).schedule.utilisation == 1.0


def test_every_control_has_a_name_for_screen_readers():
    def controls(widget):
        for child in getattr(widget, "children", ()):
            if hasattr(child, "value") and hasattr(child, "description") and type(child).__name__ != "HTML":
                yield child
            yield from controls(child)

    found = list(controls(SmTimeline(heads=2, n=512)))
    assert len(found) == 8
    assert all(control.description and control.tooltip for control in found)
