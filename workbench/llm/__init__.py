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
from workbench.llm.cached import Cached
from workbench.llm.checking import check
from workbench.llm.embedded import EmbeddedChat, EmbeddedReader
from workbench.llm.extractive import ExtractiveReader
from workbench.llm.hf import HfChat
from workbench.llm.ledger import Ledger
from workbench.llm.openai_http import OpenAiChat
from workbench.llm.opening import open_llm
from workbench.llm.scripted import Rules, Scripted

__all__ = [
    "NO_MODEL",
    "Backend",
    "Cached",
    "ChatModel",
    "ContextTooLong",
    "EmbeddedChat",
    "EmbeddedReader",
    "ExtractiveReader",
    "HfChat",
    "Ledger",
    "LlmError",
    "Message",
    "NoModel",
    "OpenAiChat",
    "Reader",
    "Reply",
    "Request",
    "Rules",
    "Scripted",
    "Tool",
    "ToolCall",
    "Usage",
    "ask",
    "check",
    "open_llm",
]
