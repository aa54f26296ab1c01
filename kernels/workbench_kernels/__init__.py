"""Tensors in, tensors out: each operation has one public function, a plain torch path and a fast path."""
