"""Graph x Cluster --> Plan.

    pins --> candidates --> search --> write_plan        pin_conflicts, reprice, assumed
"""
