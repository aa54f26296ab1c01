"""Memory systems: arenas with byte counters, tiers, cost models."""
