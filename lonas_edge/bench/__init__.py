"""Bench: the latency of an exported sub-network beside other forms of the same model.

`arms.py` says what is compared, `runners.py` how each is run, `worker.py` runs each in a process of its own, `measure.py` takes
them in turn, `statistics.py` says what follows, `report.py` and `plots.py` show it; `tune.py` searches run-time properties.
"""
