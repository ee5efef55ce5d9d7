"""Whole runs: run folders, training from start to finish, sweeps, comparison and evaluation."""
