"""What a trained net is for: films classified, decisions explained, files for others."""
