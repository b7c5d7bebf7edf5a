"""A machine's devices and links, timed with all ranks at work together.

    device_probes, link_probes --> sweep        step_timing
"""
