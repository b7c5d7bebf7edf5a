"""Runs that are killed, stopped, starved of disk, cut off and reshaped, and go on."""
