"""Plans against the eager module: loss, gradients, trained parameters, and the first op that differs.

    eager_steps, plain_steps --> parity --> trial, captured_graph        observe_nodes --> first_difference
                                 recipe_steps --> trial
"""
