"""What a unit costs under its layouts: seconds, bytes that live, bytes that are sent.

    op_work --> op_seconds --> forward_peak, backward_peak, kept_activations, communication, measured_gemms --> unit_cost
"""
