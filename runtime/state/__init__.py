"""What a rank holds: parameters, optimizer state, as parts of full tensors.

    shard_pieces --> parameters, safetensors_files --> export_weights        optimizer, learning_rates
    compute_copies
    parameters_on_meta --> deferred_init --> module_start: how a module without memory begins
"""
