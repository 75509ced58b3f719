"""Which latents of a delta dictionary the reference can see."""
