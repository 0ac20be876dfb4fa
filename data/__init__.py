"""Records, readers, step boundaries, prompts and the built-in arithmetic world. Imports no other package."""
