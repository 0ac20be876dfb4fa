"""Answer grading, metrics and benchmark runs. Imports no torch: generators and scorers are handed in."""
