"""The composition root of PPO: from settings to models, reader, grader, scorer and the loop.

With cli.py and quickstart.py the only modules of this package that know the eval package.
"""

