"""Bench: the latency of an exported sub-network beside other forms of the same model.

`making.py` finds or makes what is compared, `runners.py` says how each is run, `worker.py` runs each in a process of its own;
`latency.py` measures arms side by side, in sessions (`session.py`) in which `measure.py` takes them in turn; `statistics.py`
says what follows, `report.py` and `plots.py` show it. `run.py` joins them; `tune.py` searches run-time properties.
"""
