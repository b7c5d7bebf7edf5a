"""From the ops that export captures to the few that rules read.

    movement_ops, attention_ops, selection_ops --> canonical_ops --> normalize
    constant_values --> index_ops, loss_forms, unsorted_experts --> normalize
"""
