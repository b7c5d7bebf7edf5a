"""``partitioner generate``: prompts in, texts out, under a plan.

    arguments --> command --starts--> ranks --> runtime.generate --one token at a time--> command

``pieces`` is the text of tokens that come one by one, where stop texts end it.
"""
