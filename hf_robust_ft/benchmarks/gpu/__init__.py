"""What one CUDA machine shows of the attack and of training, by itself: no network, no download, a fixed time."""
