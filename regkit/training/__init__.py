"""One run: from a configuration to a folder with weights, curves and a summary."""
