"""Token memories that are real `transformers` caches: full, streaming, sirllm."""
