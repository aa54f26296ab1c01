"""Patterns recalled by a cue."""
