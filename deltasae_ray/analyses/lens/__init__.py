"""Which words latents of a delta dictionary promote."""
