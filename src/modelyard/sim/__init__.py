"""Simulation: the real scheduler on a virtual clock."""
