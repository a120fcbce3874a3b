"""The curve network: a transformer that predicts the rest of every learning curve of a study in
one forward pass, fitted to curves drawn from a prior (a prior-data fitted network).

`prior` draws artificial studies, `features` turns curves into tokens, `network` is the model,
`train` the command that fits it, `weights` reads and writes what it found, and `forecaster`
offers it to studies.
"""
