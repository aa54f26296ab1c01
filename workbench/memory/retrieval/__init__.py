"""Finding items by meaning or by words: encoders and indices behind one small protocol."""
