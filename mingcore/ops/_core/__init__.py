"""What all ops share: checks, registry, schemas, packing, records, the CUDA driver."""
