"""The user's module while it runs here: watched, refused by name where a graph can't hold what it does, left as it was.

    places --> uncapturable, hooks, generators, kept_functions        generators --> untouched
"""
