"""How each framework spells the decisions of a step: its file read into a Configuration, and written from one.

    flags, documents (text <-> keys and values) --> dialect (rows of keys, read both ways) <--> configuration
    core_keys --> megatron, bridge     torchtitan  deepspeed  fsdp  nanotron --> known (all, and which a file is)
"""
