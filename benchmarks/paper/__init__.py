"""The paper's tables, measured again: one module for each, one way to run them, one page made of their results.

A table is a module with

- a docstring: a line that becomes the heading, then the protocol and what differs from the paper,
- ``SEEDS``: how many seeds it takes unless told otherwise,
- ``PAPER``: the paper's figures,
- ``run(options) -> dict``: results as JSON, with a list of dicts under ``rows`` and spreads over seeds,
- ``render(results) -> str``: the Markdown below heading and protocol, ours beside the paper's,
- ``headline(results) -> tuple[str, str, str]``: the paper in short, ours in short, whether the shape is the same.
"""
