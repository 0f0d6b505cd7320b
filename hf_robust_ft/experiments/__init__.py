"""Many runs: grids, searches, sweeps, plans, the embedded example."""
