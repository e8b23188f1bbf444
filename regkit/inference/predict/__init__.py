"""What happens when in a film or a stream: windows, their classes, smoothed, drawn, written."""
