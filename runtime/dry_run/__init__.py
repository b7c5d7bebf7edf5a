"""A step of every rank in one process, on meta tensors and process groups that only record.

    recording_group --> match_tapes, recording_transport --> replay_worker --> dry_run
                                          valueless_engine --> dry_run, counted_peak
"""
