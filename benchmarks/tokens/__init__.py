"""Taggers word by word: across tokenizers and architectures, and across languages through word pairs."""
