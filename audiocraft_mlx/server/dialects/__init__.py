"""Interfaces that existing programs speak, on the same jobs."""
