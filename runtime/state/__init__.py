"""What a rank holds: parameters, optimizer state, as parts of full tensors.

    shard_pieces --> parameters, safetensors_files --> export_weights        optimizer, learning_rates
    compute_copies
"""
