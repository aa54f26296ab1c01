"""Durable stores of items with text, vector, time and links."""
