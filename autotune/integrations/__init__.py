"""autotune inside other people's tools. Each needs its tool, and is imported by name only."""
