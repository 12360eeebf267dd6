"""`python -m lonas_edge`, for launchers that start modules: `torchrun --nproc-per-node 2 -m lonas_edge train …`."""

from lonas_edge.cli import main

main()
