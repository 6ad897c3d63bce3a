"""Which method, how many experts, which base: the grid of a second paper, run and judged."""
