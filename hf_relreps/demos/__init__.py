"""What the quickstart, the notebooks and the tests run on: data to try the library with, and a Hub on this machine."""
