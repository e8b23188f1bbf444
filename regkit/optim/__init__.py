"""What happens right after the optimizer moved: the proximal step in its own metric."""
