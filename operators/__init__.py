"""Bytewax operators over columnar batches, one file each."""
