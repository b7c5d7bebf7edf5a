"""Who speaks with whom, and how: process groups by axis, collectives as autograd functions.

    step_clock --> groups --> axis --> collectives --> vocab_parallel, column_linears --> bind
"""
