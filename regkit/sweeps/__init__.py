"""Many runs: sweeps that go on, paths of strengths, cross-validation, ensembles."""
