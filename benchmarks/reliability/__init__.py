"""What hf_relreps bears: hostile uploads, kills, dying ranks, odd numbers, load. See docs/reliability.md."""
