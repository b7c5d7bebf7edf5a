"""A training step: the Action table walked, stages and data ranks kept in step.

    stage_transport --> worker --> engine <-- gradient_sync, shared_inputs, first_nonfinite
"""
