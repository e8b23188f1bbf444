"""What is removed together: channels found by running the model, attention heads, hidden units."""
