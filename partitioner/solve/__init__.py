"""The layout solver: exact minima of sums of cost tables, one axis of the mesh after the other.

    choices --> variable_elimination, integer_program --> solve --> axis_by_axis
"""
