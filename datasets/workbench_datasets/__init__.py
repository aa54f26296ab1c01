"""Examples with gold answers: seeded generators, real texts through a registry, reported numbers, recorded runs."""
