"""The numbers that arXiv 2509.23325 prints, to hold ours against."""
