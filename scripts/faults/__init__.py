"""Campaigns of faults: each tries many, and says how each ended."""
