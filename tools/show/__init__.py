"""``partitioner show``: card and tree, drawings, timelines, the page."""
