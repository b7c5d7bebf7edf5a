"""Ops of ours that graphs and programs hold beside aten's: the model's own kinds of ops, and collectives.

    own_ops (drawn by distributions)    autograd_functions    collective_kinds --> collectives --> payloads
                                                                                            conversions, rank_form
"""
