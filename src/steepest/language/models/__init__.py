"""Language models: loading, saving, adapters and fingerprints."""
