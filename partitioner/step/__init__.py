"""A whole step: stages cut, memory of ranks, seconds.

    cut_stages, stage_peaks --> split --> rank_memory --> least_recompute, step_seconds
"""
