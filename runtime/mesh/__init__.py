"""Who speaks with whom, and how: process groups by axis, collectives as autograd functions.

    step_clock, make_groups --> groups --> axis --> collectives --> vocab_parallel, column_linears --> bind
"""
