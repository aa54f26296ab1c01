"""Memories written by gradient steps."""
