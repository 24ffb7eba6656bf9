"""Images, reconstruction, graphs and audio: own, stitched, absolute and chance, each by one command."""
