"""What things cost on the machine at hand, in turns within one run."""
