"""Which layouts of a graph are legal, and which were chosen.

    strategies --> solution --> exports, from_plan, check
"""
