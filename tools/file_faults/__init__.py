"""Files broken in one place, and what the commands and readers that take them say."""
