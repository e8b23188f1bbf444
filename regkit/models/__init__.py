"""Video models. Each plug is a `VideoModel` that names its frame embeddings.

Enters: (batch, channels, frames, height, width). Leaves: (batch, classes). Never: a penalty.
"""
