"""One page about one or several runs: curves, intervals, breakdowns, comparisons, the worst samples."""
