"""Two texts as one sample: a cross-encoder, and two passes of a text encoder, side by side."""
