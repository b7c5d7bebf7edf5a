"""Is a graph its module? Both in float64, on fresh batches of sizes that were not traced.

    eager_float64, graph_float64, perturb, resample --> capture_check
"""
