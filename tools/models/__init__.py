"""What MODEL names, as a module and a batch, and traced.

    entry_point, hf_heads, shrink_config, text_length --> load --> traced, load_planned
    plain_decoder --> load
    precision_option
"""
