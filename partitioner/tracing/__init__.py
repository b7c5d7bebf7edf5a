"""nn.Module and example batch --> Graph.

    cast_parameters
    record_calls --> repeated_modules --> capture --> third_capture --> trace <-- unroll_blocks <-- find_blocks
"""
