"""Memory mechanisms of five kinds (cache, layers, stores, associative, parametric) behind one small protocol."""

from workbench.memory.base import MEMORIES, Event, EventLog, Memory

__all__ = ["MEMORIES", "Event", "EventLog", "Memory"]
