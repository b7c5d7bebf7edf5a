"""The corpus of a run, read and encoded once in a process."""

from __future__ import annotations

from functools import cache

from runtime.data.corpus import Corpus
from runtime.data.sources import open_corpus
from tools.run.going_on import Settings

_opened = cache(open_corpus)


def corpus_of(settings: Settings) -> Corpus:
    """What the run was asked to read, by the tokenizer that it was asked to take; raises InputError."""
    return _opened(settings["data"], settings["tokenizer"], settings["text_field"])
