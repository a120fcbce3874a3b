"""autotune: freeze-thaw AutoML for PyTorch."""
