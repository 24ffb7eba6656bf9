"""Measurements that make tables of the documentation; each says its command and its runtime."""
