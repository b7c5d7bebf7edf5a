"""``partitioner verify``."""
