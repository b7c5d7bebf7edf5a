"""Which way of running a GEMM is fastest, measured and kept.

    heuristics --> candidates        database --> tune
"""
