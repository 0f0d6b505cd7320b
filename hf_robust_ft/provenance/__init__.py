"""What a run and its files are: records, commands, hashes, names."""
