"""Key-value caches with a memory: which tokens stay, at which positions, and why (one mechanism a file)."""
