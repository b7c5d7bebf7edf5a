"""The training state on disk, as rectangles of full tensors: saved under one plan, loaded under any other.

    FOLDER/step-00000020/.metadata, *.distcp     torch.distributed.checkpoint: parameters, optimizer state
    FOLDER/step-00000020/complete.json           step, seed, samples, optimizer, its groups, data of the user's own;
                                                 size and sum of every file

    record --> step_folders --> checkpoint_writer --> save <-- entries <-- dcp_chunks        plain_data
                   '----------> load <-- checkpoint_reader
"""
