"""Many runs: sweeps that go on, searches, paths of strengths, folds, ensembles, the report.

Enters: words that name several runs. Leaves: their folders, a choice and a page on all of them.
Never: what one run does is decided here.
"""
