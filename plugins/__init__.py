"""The bundled plugins, imported as ``autotune_plugins``; registered like anyone's."""
