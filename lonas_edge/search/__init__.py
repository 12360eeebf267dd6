"""Search: from a search space to evaluated sub-networks, their Pareto front, and the picks worth exporting."""

SEARCH = "search.json"  # the record, in the output directory
STUDY = "study.log"  # Optuna's trials, without --storage
LATENCY = "latency_table.json"  # the latency table, if the cost is a latency
SUBNETWORKS = "subnetworks"  # files for --subnet: the front and the picks
