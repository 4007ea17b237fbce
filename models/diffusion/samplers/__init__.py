"""From noise to data: one file for each kind of sampler, the table of them in table.py."""
