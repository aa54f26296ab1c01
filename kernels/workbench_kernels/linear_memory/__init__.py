"""Linear and neural memories: a fixed-size state written by every token and read by every token."""

from workbench_kernels.linear_memory.api import FEATURE_MAPS, IMPLEMENTATIONS, linear_recurrence, prefix_state
from workbench_kernels.linear_memory.neural import NeuralState, neural_memory, read_memory, surprise

__all__ = [
    "FEATURE_MAPS",
    "IMPLEMENTATIONS",
    "NeuralState",
    "linear_recurrence",
    "neural_memory",
    "prefix_state",
    "read_memory",
    "surprise",
]
