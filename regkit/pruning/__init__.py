"""What is zero: measures."""
