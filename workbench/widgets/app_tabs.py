"""The tabs of the app. Each draws from the session when it is seen, and never before."""

from __future__ import annotations

from workbench.widgets.app_tab import Tab
from workbench.widgets.app_tab_conflict import ConflictTab
from workbench.widgets.app_tabs_maps import HeadsTab, MicroscopeTab, SimilarityTab
from workbench.widgets.app_tabs_memory import MemoryTab, TimelineTab
from workbench.widgets.app_tabs_run import GenerationTab, ProofTab

_LOOKING: tuple[type[Tab], ...] = (HeadsTab, MicroscopeTab, SimilarityTab, MemoryTab, TimelineTab)
_RUNNING: tuple[type[Tab], ...] = (GenerationTab, ConflictTab, ProofTab)
TAB_CLASSES: dict[str, type[Tab]] = {tab.name: tab for tab in (*_LOOKING, *_RUNNING)}

__all__ = ["TAB_CLASSES", "Tab"]
