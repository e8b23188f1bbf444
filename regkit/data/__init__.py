"""Video files to batches of clips. Each plug is a `VideoData` that says where its videos are."""
