"""``partitioner run``, ``import`` and ``export``."""
