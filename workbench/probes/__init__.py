"""Taking models apart: head outputs cached, replaced, gated and frozen; induction heads; similarity of activations."""
