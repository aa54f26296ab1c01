"""The chat-model door: messages in; text, a checked object or tool calls out."""
