"""Which parameters, which groups, and what is removed together with a channel.

Enters: a model, and an example to run it on. Leaves: views of its parameters as rows of groups,
and what is left out, with the reason. Never: a penalty; the user's model is changed.
"""
