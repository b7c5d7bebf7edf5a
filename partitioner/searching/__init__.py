"""Graph x Cluster --> Plan.

    pins --> refinements --> splits --> candidates --> search --> write_plan
    reprice --> same_state        pin_conflicts, assumed
"""
