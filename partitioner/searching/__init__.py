"""Graph x Cluster --> Plan.

    pins --> refinements --> splits --> candidates --> search --> write_plan        pin_conflicts, reprice, assumed
"""
