"""Ensembles: what averaging the scores of several fits of one recipe gains, and of what."""
