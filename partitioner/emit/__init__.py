"""One block as the fx code of a rank: conversions, local sizes, GEMM ops, fusions.

    local_sizes, gemm_ops --> block_code        epilogue_words --> find_fusions --> write_fusions --> product_rows
"""
