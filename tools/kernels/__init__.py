"""``partitioner kernels``, and what a GPU says of them."""
