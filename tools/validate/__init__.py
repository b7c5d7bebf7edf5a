"""``partitioner validate``; programs that fit clusters to published runs and rank plans by running them."""
