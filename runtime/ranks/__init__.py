"""Processes: started, watched, stopped, and whose fault it was.

    meeting_store, doing --> hang --> watchdog --> first_failure, rank_process --> launch
                                          '------> process_group        error_file
"""
