"""What TensorBoard shows of one run beside its curves, and the same pictures as files."""
