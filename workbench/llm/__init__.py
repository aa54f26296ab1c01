"""The chat-model door: messages in; text, a checked object or tool calls out."""

from workbench.llm.asking import ask
from workbench.llm.base import (
    NO_MODEL,
    Backend,
    ChatModel,
    ContextTooLong,
    LlmError,
    Message,
    NoModel,
    Reader,
    Reply,
    Request,
    Tool,
    ToolCall,
    Usage,
)
from workbench.llm.ledger import Ledger
from workbench.llm.opening import open_llm
from workbench.llm.scripted import Rules, Scripted

__all__ = [
    "NO_MODEL",
    "Backend",
    "ChatModel",
    "ContextTooLong",
    "Ledger",
    "LlmError",
    "Message",
    "NoModel",
    "Reader",
    "Reply",
    "Request",
    "Rules",
    "Scripted",
    "Tool",
    "ToolCall",
    "Usage",
    "ask",
    "open_llm",
]
