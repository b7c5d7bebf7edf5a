"""What a run tells while it goes on.

    rank 0 --> metrics --> telling --> terminal, log_file, tensorboard_log      step_trace      calibration_advice
"""
