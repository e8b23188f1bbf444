"""The sweeps in Triton: one launch over many weights, driven by a table of addresses."""
