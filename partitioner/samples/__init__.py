"""Where the samples of a batch lie in every value, and what follows from how many there are.

    paired_captures --> batch_laws --> batch_numbers        samples_first        batch_dimension
"""
