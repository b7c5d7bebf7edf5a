"""Which layouts of a graph are legal, and which were chosen.

    local_sizes --> left_sizes --> strategies --> solution --> conversions, exports, from_plan, check, run_again
"""
