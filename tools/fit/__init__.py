"""``partitioner fit``: on how many devices at least a model trains.

    arguments --> command --> least_devices --> trials (plans on so many devices) --> mends --> screen, document
"""
