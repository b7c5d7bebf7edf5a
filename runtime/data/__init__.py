"""What a model is trained on: documents, their tokens, and the windows cut from them.

    files --> documents --> tokens --> corpus: one row of tokens, and where documents end --> windows of seq tokens
                                              windows --> packing (labels, positions, documents) --> batches --> filling
                                                 separation: does the model keep a window's documents apart?
"""
