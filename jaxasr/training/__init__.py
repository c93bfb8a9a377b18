"""Training in JAX: losses, data, augmentation, optimizers and the loop."""
