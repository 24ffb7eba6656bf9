"""Small language models trained apart from one another, and probes of one that read the hidden states of another."""
