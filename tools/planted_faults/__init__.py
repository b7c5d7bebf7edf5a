"""Faults planted in programs, engines, rules and casts, to see that ``verify`` finds them."""
