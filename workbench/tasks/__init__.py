"""How a memory is questioned and scored: examples with gold answers in, tidy scores out."""
