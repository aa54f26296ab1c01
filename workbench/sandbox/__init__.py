"""Where model-written code runs: a process of its own, with limits and without a network."""
