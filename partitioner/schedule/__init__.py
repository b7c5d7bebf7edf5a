"""Tables of actions: what every pipeline rank does, in order; walked in time and memory.

    tables --> simulate, fullest_moments
"""
