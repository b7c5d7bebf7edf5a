"""Seconds of one kernel by its shape: pure functions of sizes and of what hardware/ says of a device or link.

    product          tiles in waves over the multiprocessors, its inner dimension split or not; its bytes
    attention        the scores that are seen, of the fused kernel
    collective       hops and bytes, as measured inside a node, by a ring or a tree between nodes
    expert_dispatch  tokens to their experts and back, by the ranks that a token goes to
    work             what one op is of these, and what it streams beside them
"""
