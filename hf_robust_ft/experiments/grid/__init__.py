"""Grids of runs: backbones x datasets x eps x schedules x seeds, each run once, and the paper's tables made of them."""
