"""A training graph: one normalized fx.GraphModule that ends in the loss, and what can be asked of it.

    nodes --> dependence --> counts --> graph --> tied_blocks, resize_batch, interpret, saved_by_autograd, targets
"""
