"""A widget around one chart that leaves its picture (SVG) in a saved notebook."""

from __future__ import annotations

from typing import Any

import ipywidgets as w

from workbench.errors import BadInput


class WithPicture(w.VBox):
    """Subclasses give ``chart()``, the Altair chart of the moment."""

    def take(self, state: dict[str, Any]) -> None:
        """Set traits by name; a word that is none of them is refused, not kept aside."""
        for name, value in state.items():
            if not self.has_trait(name):
                own = ", ".join(type(self).class_own_traits())
                raise BadInput(f"{type(self).__name__} has no setting {name!r}; it has {own}")
            setattr(self, name, value)

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
