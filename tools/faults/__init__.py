"""Faults planted in programs, engines and rules, to see that ``verify`` finds them."""
