"""Encoders that transformers lacks: small convolutional nets and EfficientNet-Lite (`images`), graph nets (`graphs`).

Importing a module registers its classes with `AutoConfig` and `AutoModel`. Importing this package loads neither, and
no module loads `torch_geometric` before a graph encoder is built.
"""
