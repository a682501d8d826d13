"""What can be read from the residual stream at each depth, by a lens or a probe?

Results are Datasets on the axis `depth`: a readout `name` [depth] stands beside its interval `name_low`,
`name_high`, and beside what it is a mean of, on an axis of its own (`window`, `item`, `seed`, …).
"""
