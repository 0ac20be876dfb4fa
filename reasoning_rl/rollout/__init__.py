"""Where responses come from. `hf.HFGenerator` runs the policy itself; other engines stand beside it."""
