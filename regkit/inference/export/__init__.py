"""Leave PyTorch's training code: files of a model that other programs run."""
