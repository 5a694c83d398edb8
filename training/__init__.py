"""Training: patches, features, loss, trainer; installed as `satclip_engine.training`."""
