"""Which answers of a stitched model not to trust: measured on frozen encoders out of packages."""
