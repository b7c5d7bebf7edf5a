"""What a rank holds: parameters, optimizer state, checkpoints, as parts of full tensors.

    shard_pieces --> parameters, dcp_chunks --> checkpoint        safetensors_files        optimizer
    compute_copies
"""
