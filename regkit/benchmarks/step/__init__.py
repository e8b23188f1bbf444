"""What each penalty adds to a training step, measured on the machine at hand."""
