"""A plan or a run as words and numbers, for every screen alike."""
