"""What happens right after an optimizer moved: the proximal step, with that optimizer's step size.

Enters: penalties on groups of parameters (`Part`), an optimizer, a `Schedule`, and how far training
is. Leaves: changed weights, a `state_dict` of numbers, what a target density came to.
Never: a model is looked at, a loss is computed, a user's param group is written to, or anything
calls back into who called.
"""
