"""Video models. Each plug is a `VideoModel` that names its frame embeddings."""
