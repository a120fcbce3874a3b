"""Executors: local worker processes, Ray actors, replay of recorded tables; and the store that
checkpoints are kept in."""
