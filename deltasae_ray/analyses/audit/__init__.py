"""Which directions an adapter writes, how loud they are, and whether the reference has them."""
