"""Speed: what relative representations cost beside absolute ones; one figure for each promise.

``python -m benchmarks.speed`` measures all and writes ``benchmarks/results/speed/*.json`` and ``docs/speed.md``.
"""
