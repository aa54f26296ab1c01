"""A widget around one chart that leaves its picture (SVG) in a saved notebook."""

from __future__ import annotations

from typing import Any

import ipywidgets as w


class WithPicture(w.VBox):
    """Subclasses give ``chart()``, the Altair chart of the moment."""

    def chart(self) -> Any:
        raise AttributeError(f"{type(self).__name__} has no chart of its own")

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and the same picture for a notebook that is opened without a kernel."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:
            import vl_convert

            data = bundle[0] if isinstance(bundle, tuple) else bundle
            data["text/html"] = str(vl_convert.vegalite_to_svg(self.chart().to_dict()))
        return bundle
