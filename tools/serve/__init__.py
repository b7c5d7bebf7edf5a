"""``partitioner serve``: a model that answers over HTTP, as OpenAI's API has it, on all ranks of a plan.

    client --> door --questions, checked--> texts --> desk --Word--> runtime.generate.together, on every rank
      ^                                       |                                              |
      +---- replies, event streams <--pieces--+ <----- the tokens of a call, rank 0 ---------+
           a thread with an event loop (listening)                the main thread (rank)
"""
