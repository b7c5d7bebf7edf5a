"""A rank's row of the Action table, walked: stages forward and backward, values between them.

    stage_transport, sharded_stages, recompute --> worker        keep_heap
"""
