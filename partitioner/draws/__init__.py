"""Random draws by key: the same numbers under every plan, and in the eager module.

    random_calls --> keyed_draws --> eager_draws
"""
