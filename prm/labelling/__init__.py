"""Step labels without people: rollouts from prefixes (Monte Carlo, binary search, OmegaPRM) and a judge."""
