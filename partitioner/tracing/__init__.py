"""nn.Module and example batch --> Graph.

    record_calls --> repeated_modules --> capture --> third_capture --> trace <-- unroll_blocks <-- find_blocks
"""
