"""Distributed processes and signals."""
