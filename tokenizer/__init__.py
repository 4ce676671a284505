"""Text to ids and back; knows nothing of torch."""
