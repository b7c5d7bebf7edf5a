"""Graph x Plan --> Program.

    program, gradient_free_calls --> lower --> traffic, parameter_bytes, check
    program --> shard_groups --> traffic
"""
