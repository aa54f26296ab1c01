"""``open_llm``: a chat model by name."""

from __future__ import annotations

from typing import Any

from workbench.errors import BadInput
from workbench.llm.base import ChatModel
from workbench.llm.scripted import Rules

FORMS = '"openai:MODEL@http://host:port/v1", "hf:ID or folder", "embedded", "rules" or a ChatModel'


def _model_and_url(rest: str) -> tuple[str, str | None]:
    """Model names may hold an @ themselves ("@cf/meta/llama"), so only the one before http counts."""
    at = rest.find("@http")
    if at >= 0:
        return rest[:at], rest[at + 1 :]
    if "@" in rest[1:]:
        raise BadInput(f"the address after @ must begin with http:// or https://, got {rest.rpartition('@')[2]!r}")
    return rest, None


def open_llm(name: Any, **options: Any) -> ChatModel:
    """A chat model by name, or the one that is given.

    Args:
        name: ``openai:MODEL@URL`` (URL may be left out: then OPENAI_BASE_URL), ``hf:ID`` or ``hf:FOLDER``,
            ``embedded`` (the small model that ships), ``rules`` (no language model), or a ChatModel as it is.
        options: those of the back end (``OpenAiChat``, ``HfChat``, ``EmbeddedChat``).

    Raises:
        BadInput: another form, or options for a model that is already open.
        LlmError: the client package or the model is missing.
    """
    if not isinstance(name, str):
        if isinstance(name, ChatModel) and not options:
            return name
        raise BadInput(f"a chat model is {FORMS}; got {type(name).__name__}{' with options' if options else ''}")
    scheme, _, rest = name.partition(":")
    if scheme == "openai" and rest:
        from workbench.llm.openai_http import OpenAiChat

        model, url = _model_and_url(rest)
        return OpenAiChat(model, base_url=url, **options)
    if scheme == "hf" and rest:
        from workbench.llm.hf import HfChat

        return HfChat(rest, **options)
    if name == "embedded":
        from workbench.llm.embedded import EmbeddedChat

        return EmbeddedChat(**options)
    if name == "rules" and not options:
        return Rules()
    raise BadInput(f"a chat model is {FORMS}; got {name!r}")
