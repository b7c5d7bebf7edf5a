"""``partitioner generate``: prompts in, texts out, under a plan.

    arguments --> command --starts--> ranks --> runtime.generate --one token at a time--> command
"""
