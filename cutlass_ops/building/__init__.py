"""Kernels compiled ahead of time, kept by what decided their bytes, their device code counted."""
