"""The kernel probe: a static binary for each processor, and its source."""
