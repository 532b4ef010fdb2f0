"""Image encoders: a backbone's feature map, pooling, and the batch-normalised embedding on top."""
