"""Few measurements of a new target, and what many known devices and the graph tell of the rest.

``basis`` makes rows of numbers of graphs, ``gaussian`` is the mathematics, ``model`` the model that is saved.
"""
