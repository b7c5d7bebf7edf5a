"""Linear layers as ops of torch: forward and both gradients, by kernels where they were chosen.

    gemm        dispatch, layer --> fused
"""
