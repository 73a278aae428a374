"""Layers and helpers that two or more rooms use."""
