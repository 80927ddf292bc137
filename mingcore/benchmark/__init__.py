"""`mingcore bench`: how fast a checkpoint speaks here, from the first chunk to a full batch."""
