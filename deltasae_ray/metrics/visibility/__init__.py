"""Which features of a change the base dictionary can see, latent by latent. Pure: arrays and
dictionaries in, a decision out."""
