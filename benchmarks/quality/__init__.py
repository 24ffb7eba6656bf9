"""How much of its own score a model keeps when its parts are stitched, and what that depends on."""
