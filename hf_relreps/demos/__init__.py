"""What the quickstart, the notebooks and the tests run on: data, and models made on the spot."""
