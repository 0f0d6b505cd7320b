"""What makes Trainer survive: saving, resuming, publishing, upstream faults."""
