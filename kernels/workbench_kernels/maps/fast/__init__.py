"""The maps as Triton kernels for CUDA cards: tiles of scores live in registers, nothing but results is written."""
