"""A whole step: stages cut, memory of ranks, seconds.

    cut_stages, sharded_peaks --> stage_peaks --> split --> rank_memory --> least_recompute, step_seconds
"""
