"""The tabs of the app. Each draws from the session when it is seen, and never before."""

from __future__ import annotations

from workbench.widgets.app_tab import Tab
from workbench.widgets.app_tabs_maps import HeadsTab, MicroscopeTab, SimilarityTab
from workbench.widgets.app_tabs_memory import MemoryTab, TimelineTab
from workbench.widgets.app_tabs_run import GenerationTab, ProofTab

TAB_CLASSES: dict[str, type[Tab]] = {
    tab.name: tab for tab in (HeadsTab, MicroscopeTab, SimilarityTab, MemoryTab, TimelineTab, GenerationTab, ProofTab)
}

__all__ = ["TAB_CLASSES", "Tab"]
