"""Which model types of transformers work as encoders: every one is built tiny, wrapped, saved, loaded and stitched."""
