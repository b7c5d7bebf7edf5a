"""``partitioner compare`` and ``partitioner diff``."""
