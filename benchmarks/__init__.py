"""Measurements, each side by side with a baseline in one run."""
