"""Processes: started, watched, stopped, and whose fault it was.

    first_failure, watchdog --> launch        process_group        keep_heap
"""
