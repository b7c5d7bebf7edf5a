"""What a fused GEMM computes, apart from how.

    elementwise --> spec --> notation, gradient, kernel
"""
