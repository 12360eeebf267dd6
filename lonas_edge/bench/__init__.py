"""Bench: latency of an exported sub-network and of other variants of the same model.

`prepare` finds or exports the variants, `worker` runs each in its own process with one of `runners`, and `latency` measures
them in interleaved rounds (`measure`). `statistics` gives ratios with intervals, `report` shows them.
`run` joins these steps.
"""
