"""One self-contained HTML page of several runs; what `hf-robust-ft report` writes."""
