"""What a cluster is made of, as data: numbers of devices and links, checked as they are read; no GPU is known by name.

    parts/*.toml --parts--> tables --checked_table--> Device (Products, Attention), Link (Protocols)
"""
