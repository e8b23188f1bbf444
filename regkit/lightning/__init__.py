"""Lightning: the callback that regularizes any module, a video classifier, what TensorBoard shows.

The only room of the library that knows Lightning.
"""
