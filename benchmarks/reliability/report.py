"""Counts of what was tried, as text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Report:
    """What a command prints: how often each thing happened, and everything that was lost, by name."""

    title: str
    counts: Counter[str] = field(default_factory=Counter)
    facts: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [self.title, *(f"  {what}: {count:,}" for what, count in self.counts.items())]
        lines += [f"  {what}: {value}" for what, value in self.facts.items()]
        lines.append(f"  lost: {len(self.lost)}")
        return "\n".join([*lines, *(f"    {what}" for what in self.lost[:50])])
