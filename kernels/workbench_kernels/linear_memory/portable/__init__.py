"""Linear memories in Triton: chunk by chunk, any rule, forward and backward."""
