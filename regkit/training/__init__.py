"""One run: from a configuration to a folder with weights, curves and a summary.

Enters: a typed configuration. Leaves: a run folder. Never: other runs are looked at, except by
`runs`, which reads their folders.
"""
