"""`--plan`: what a run would read, make and take. A sample of the inputs goes through the stages' own functions.

`sample` reads the pieces, `whole` says what they tell of the whole, `costs` holds what the stages cost on a known
machine, and `plan` puts the three together.
"""
