"""What latents of a delta dictionary do to predictions when they are taken out."""
