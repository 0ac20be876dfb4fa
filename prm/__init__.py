"""Step-level process reward models: losses, training, scoring; and the supervised loop that SFT shares."""
