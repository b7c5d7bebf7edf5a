"""How a tensor and an op may be divided: layouts, equations over dimensions, one rule an op.

    Layout --> equations --> op_equations, channel_, einsum_ and view_equations --> op_rules
"""
