"""The layout solver: exact minima of sums of cost tables.

    choices --> variable_elimination, integer_program --> solve
"""
