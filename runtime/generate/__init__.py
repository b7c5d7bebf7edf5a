"""Answers: texts continued by a Program of the training graph at few positions, with a cache of keys.

    requests --> rows --tokens, start--> decoder (a Program of many positions, one of one) --logits--> choose --> rows

Where requests come one by one, to one rank, ``together`` tells them to all.
"""
