"""Training of location encoders; installed as `satclip_engine.training`.

    sources/     images with their locations: folders, lists, rasters
    images/      image encoders, their weights, augmented views
    features/    image features: the cache on disk, and those of a trunk that is trained
    loop/        batches, model, optimizer, validation, state, the loop
    results/     checkpoints, log, picture, display

`patches`, `raster_patches`, `images`, `features`, `config`, `samples` and `session` are public.
"""
