"""`lonas-edge compress`: the recommended pipeline as one command, and its report.

The package is not named `compress`: `lonas_edge.compress` is the function of the Python API.
"""
