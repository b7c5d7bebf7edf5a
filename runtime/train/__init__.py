"""A training step: the batch cut, stages and data ranks kept in step.

    shared_inputs --> step_batches --> engine <-- gradient_sync, loss_scale, first_nonfinite <-- worker
"""
