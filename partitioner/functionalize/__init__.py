"""An exported graph without regions and without writes: autocast written out, in-place ops through any view as values.

    regions, autocast, view_inverses --> inplace_ops --> functionalize        assigned_state
"""
