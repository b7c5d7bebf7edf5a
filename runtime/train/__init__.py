"""A training step: the Action table walked, stages and data ranks kept in step.

    stage_transport, sharded_stages --> worker --> engine <-- gradient_sync, loss_scale, shared_inputs, first_nonfinite
"""
