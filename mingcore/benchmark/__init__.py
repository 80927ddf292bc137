"""`mingcore bench`: latency, throughput and memory of a checkpoint on this machine, by stage and by batch size."""
