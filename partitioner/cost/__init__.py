"""What a unit costs under its layouts: seconds, bytes that live, bytes that are sent.

    op_work --> op_seconds --> conversion_seconds --> kept_activations --> forward_peak --> backward_peak --> unit_cost
    materialized --> communication, measured_gemms, unit_cost --> price_units        state_bytes
"""
