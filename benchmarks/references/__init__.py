"""Independent references: what a method does, written from its paper by someone who has not seen
the plugin, or a library's implementation that has been held against the paper.

One file a method, named after the plugin. `benchmarks/fidelity.py` holds the plugins against them.
"""
