"""Pools of many kinds on which ways of searching are compared: `launch.benchmark --suite=proposers`."""
