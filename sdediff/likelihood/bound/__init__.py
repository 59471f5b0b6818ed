"""The variational bound: of a chain, of some of its steps, or in continuous time."""
