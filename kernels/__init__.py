"""Numba functions over arrays, and the Arrow schemas they work on: no Bytewax, no I/O."""
