"""Errors that a person can mend; the command line prints the message alone."""

from __future__ import annotations


class InputError(Exception):
    """Bad input: one line that names what is wrong and the mend (exit status 2)."""


class DoesNotFit(Exception):
    """No plan fits the cluster's memory: names the tightest plan and the bytes it misses (exit status 3)."""
