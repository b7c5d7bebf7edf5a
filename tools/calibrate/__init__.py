"""``partitioner calibrate``."""
