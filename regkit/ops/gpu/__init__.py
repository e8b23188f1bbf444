"""The passes in Triton: a few launches over many weights, driven by a table of addresses."""
