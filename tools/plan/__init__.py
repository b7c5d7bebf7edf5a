"""``partitioner plan`` and ``partitioner clusters``."""
