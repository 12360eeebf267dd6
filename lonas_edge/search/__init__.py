"""Search: from a search space to evaluated sub-networks, their front, and the picks worth exporting."""

SEARCH = "search.json"  # what a search found, in its output directory
STUDY = "study.log"  # Optuna's trials, where no other storage is named
LATENCY = "latency_table.json"  # the latency table that predicted, where the cost is one
SUBNETWORKS = "subnetworks"  # the networks of the front and the picks, for --subnet
